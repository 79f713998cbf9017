"""The documentation's tables are made from the schema, and its examples are read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hpcdask.config import files
from hpcdask.config.jobs import generic
from hpcdask.config.schema import ALIASES, BY_KEY, SCHEMA, SECTIONS, VARIABLES
from hpcdask.config.settling import Layer, settle

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "configuration.md").read_text()


@pytest.fixture
def directive(monkeypatch: pytest.MonkeyPatch) -> object:
    """The module of the `settings` directive."""
    pytest.importorskip("docutils")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import settings

    yield settings
    del sys.modules["settings"]


def test_the_page_shows_all_settings_and_variables(directive) -> None:  # type: ignore[no-untyped-def]
    assert "```{settings}\n```" in PAGE
    assert "```{settings} variables\n```" in PAGE

    def text(*arguments: str) -> str:
        return "\n".join(node.astext() for node in directive.tables(list(arguments)))

    settings, variables = text(), text("variables")
    assert all(f"\n{generic(key)}\n" in settings for key in BY_KEY)
    names = [*VARIABLES, *(name for setting in SCHEMA for name in setting.variables)]
    assert all(name in variables for name in names)
    assert directive.TITLES.keys() == {directive.first(key) for key in BY_KEY}


def test_the_page_names_only_keys_and_variables_that_there_are() -> None:
    words = set(re.findall(r"`([a-z][a-z-]*(?:\.[a-z-]+)+)`", PAGE))
    keys = {word for word in words if word.partition(".")[0] in SECTIONS}
    assert keys
    assert keys <= BY_KEY.keys() | ALIASES.keys() | SECTIONS
    variables = set(re.findall(r"HPCDASK_[A-Z_]+", PAGE)) - {"HPCDASK_", "HPCDASK_ROOT"}
    known = {setting.variable for setting in SCHEMA} | VARIABLES.keys()
    entries = {each for each in variables if each.startswith("HPCDASK_NANNY__ENVIRON__")}
    assert variables - entries <= known


def test_every_variable_that_the_code_reads_is_in_the_schema() -> None:
    code = "\n".join(path.read_text() for path in (DOCS.parent / "hpcdask").rglob("*.py"))
    names = {*VARIABLES}
    for setting in SCHEMA:
        names |= {setting.variable, *setting.variables}
    read = set(re.findall(r'"(HPCDASK_[A-Z_]*[A-Z])"', code))
    assert "HPCDASK_LAUNCH_ID" in read
    assert read <= names


def test_the_sites_profile_can_be_used_as_it_stands() -> None:
    pytest.importorskip("yaml")
    path = DOCS / "site-profile.yaml"
    layer = files.parse(path.read_text(), path.name)
    settings = settle(Layer(), {"LOCAL_SCRATCH": "/local"}, [layer])
    assert settings["scheduler.interface"] == "ib0,eth0"
    assert settings["worker.local-directory"] == "/local/hpcdask"
    assert settings["worker.port"] == "9100:9999"
    assert settings["comm.compression"] is None
    assert settings["jobqueue.slurm.queue"] == "compute"
    assert settings["jobqueue.slurm.job-directives-skip"] == ("--mem",)


def test_the_example_of_a_users_file_can_be_used_as_it_stands() -> None:
    pytest.importorskip("yaml")
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    settings = settle(Layer(), {}, [files.parse(example, "mine.yaml")])
    assert settings["worker.resources"] == {"GPU": 1.0}


@pytest.mark.parametrize(
    "page",
    [page for page in sorted(DOCS.glob("*.md")) if "```yaml" in page.read_text()],
    ids=lambda page: page.name,
)
def test_the_files_on_each_page_can_be_used_as_they_stand(page: Path) -> None:
    pytest.importorskip("yaml")
    for example in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        layer = files.parse(example, page.name)
        settle(Layer(), {"USER": "me", "TMPDIR": "/tmp"}, [layer])  # or it raises
        assert layer.found
        assert not layer.foreign, "what means nothing here"
