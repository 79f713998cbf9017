"""The messages that the documentation explains are those that the program says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def messages(page: str) -> list[str]:
    """What stands in backticks at the beginning of a table's line."""
    text = (ROOT / "docs" / page).read_text()
    cells = re.findall(r"^\| (`[^|]*`)[^|]*\|", text, re.M)
    return [each for cell in cells for each in re.findall(r"`([^`]+)`", cell)]


@cache
def said() -> str:
    """All texts in the program, what is filled in left out."""
    texts = []
    for path in sorted((ROOT / "hpcdask").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[.\d]*[a-z]", "\0", node.value))
    return "\n".join(texts)


@pytest.mark.parametrize("message", messages("troubleshooting.md"))
def test_each_message_that_is_explained_can_be_seen(message: str) -> None:
    pieces = [piece.strip() for piece in re.split(r"\.\.\.|\b[A-Z]\b", message)]
    assert any(len(piece) >= 10 for piece in pieces), "nothing to look for"
    assert [piece for piece in pieces if piece not in said()] == []
