"""What happened in a simulated cluster, for a person to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

#: Entries that are remembered.
_MAX_ENTRIES = 100_000
#: Characters of one line.
_WIDTH = 240


class EventTrace:
    """Entries in the order of their happening, which are made text only when asked for."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, str, str, Any]] = deque(maxlen=_MAX_ENTRIES)

    def message(self, now: float, source: str, target: str, message: Any) -> None:
        self._entries.append((now, source, target, message))

    def note(self, now: float, who: str, text: str, *details: Any) -> None:
        """Note a fault, or what a process does by itself."""
        self._entries.append((now, who, "", (text, *details)))

    def __len__(self) -> int:
        return len(self._entries)

    def lines(self) -> list[str]:
        return [_line(*entry) for entry in self._entries]

    def relevant(self, names: Collection[str], n_lines: int) -> list[str]:
        """Return the last lines that name any of these, and the faults between them."""
        chosen: list[str] = []
        for entry in reversed(self._entries):
            line = _line(*entry)
            if _is_fault(entry) or any([_names(line, name) for name in names]):
                chosen.append(line)
                if len(chosen) == n_lines:
                    break
        return chosen[::-1]


def _is_fault(entry: tuple[float, str, str, Any]) -> bool:
    return entry[1] == "!!"


def _names(line: str, name: str) -> bool:
    """Whether a key stands in a line, not only as the beginning of another."""
    start = line.find(name)
    while start >= 0:
        end = start + len(name)
        if not (end < len(line) and (line[end].isalnum() or line[end] == "-")):
            return True
        start = line.find(name, end)
    return False


def _line(now: float, source: str, target: str, what: Any) -> str:
    if target:
        text = f"{source} -> {target}  {_shown(what)}"
    else:
        text = f"{source}  {' '.join(map(_shown, what))}"
    return f"{now:14.6f}  {text}"[:_WIDTH]


def _shown(what: Any) -> str:
    if isinstance(what, str):
        return what
    if isinstance(what, tuple) and hasattr(what, "_fields"):
        values: Iterable[str] = (f"{name}={_brief(getattr(what, name))}" for name in what._fields)
        return f"{type(what).__name__}({', '.join(values)})"
    return _brief(what)


def _brief(value: Any) -> str:
    if isinstance(value, tuple) and hasattr(value, "key"):
        attempt = f"#{value.attempt}" if hasattr(value, "attempt") else ""
        addresses = f"@{','.join(value.addresses)}" if hasattr(value, "addresses") else ""
        return f"{value.key}{attempt}{addresses}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return repr(value)
