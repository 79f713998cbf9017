"""The YAML files of user and site: where they are looked for, whom they may come from, what is
wrong in them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcdask import config
from hpcdask.config import files
from hpcdask.errors import ConfigError

pytest.importorskip("yaml")

TTL = "scheduler.worker-ttl"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user's files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "xdg" / "hpcdask"
    folder.mkdir(parents=True)
    config.refresh()
    yield folder
    config.refresh()


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        files.parse(text, "f.yaml")
    return str(caught.value)


def values(text: str) -> dict[str, Any]:
    return {key: found.raw for key, found in files.parse(text, "f.yaml").found.items()}


# -- What they say --------------------------------------------------------------------------------


def test_a_file_is_nested_and_each_value_knows_its_line() -> None:
    text = """\
# what we like
scheduler:
  worker-ttl: 45s

worker:
  lifetime:
    duration: 1h   # as the queue has it
  preload:
    - a.py
    - b
nanny: {environ: {OMP_NUM_THREADS: 2}}
"""
    found = files.parse(text, "f.yaml").found
    assert {key: (each.raw, each.source) for key, each in found.items()} == {
        TTL: ("45s", "f.yaml:3"),
        "worker.lifetime.duration": ("1h", "f.yaml:7"),
        "worker.preload": (["a.py", "b"], "f.yaml:8"),
        "nanny.environ.OMP_NUM_THREADS": ("2", "f.yaml:11"),
    }


@pytest.mark.parametrize(
    ("written", "raw"),
    [
        ("01:30:00", "01:30:00"),  # which YAML takes for 5400
        ("0755", "0755"),  # and this for 493
        ("1e3", "1e3"),
        ("on", "on"),
        ("2026-01-01", "2026-01-01"),
        ("'quoted'", "quoted"),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_a_value_is_what_stands_there(written: str, raw: str | None) -> None:
    assert values(f"scheduler-address: {written}") == {"scheduler-address": raw}


def test_anchors_and_aliases_work() -> None:
    text = "scheduler: {interface: &net ib0}\nworker: {interface: *net}\n"
    assert values(text) == {"scheduler.interface": "ib0", "worker.interface": "ib0"}


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "scheduler:\n  # port: 1\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert values(text) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "scheduler:\n  worker-tl: 1s\n",
            "f.yaml:2: there is no setting 'scheduler.worker-tl'",
        ),
        ("scheduler:\n  worker-ttl: soon\n", f"f.yaml:2: {TTL}: 'soon' is not a duration"),
        ("scheduler:\n  worker-ttl: [1s]\n", f"f.yaml:2: {TTL}: ['1s'] is not a duration"),
        ("scheduler:\n  worker-ttl: {x: 1}\n", f"f.yaml:2: {TTL} takes a duration, and no table"),
        ("scheduler: 5\n", "f.yaml:1: 'scheduler' is a section, with settings of its own"),
        ("scheduler:\n\tport: 1\n", "f.yaml:2: this is no YAML: found character '\\t'"),
        ("scheduler: {port: 1\n", "f.yaml:2: this is no YAML: expected"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: this is no YAML: but found another document"),
        ("- a\n- b\n", "f.yaml: this has no keys"),
        ("just words\n", "f.yaml: this has no keys"),
        (f"{TTL}: 1s\nscheduler: {{worker-ttl: 2s}}\n", "is set twice: f.yaml:1 and f.yaml:2"),
        ("worker:\n  name: !!python/name:os.system\n", "f.yaml:2: expected a plain value, found"),
        ("worker:\n  preload: [!x y]\n", "f.yaml:2: expected a plain value, found !x"),
        ("worker: &w\n  lifetime: *w\n", "f.yaml:2: this is in itself"),
        ("worker:\n  preload: [[a]]\n", "f.yaml:2: worker.preload: ['a'] is no text"),
        ("worker:\n  preload: &p [*p]\n", "f.yaml:2: this is in itself"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_a_distributed_yaml_can_be_pasted_in() -> None:
    found = importlib.util.find_spec("distributed")  # not imported, which starts threads
    if found is None or found.origin is None:
        pytest.skip("distributed is not installed: pip install 'hpcdask[test]'")
    text = Path(found.origin).with_name("distributed.yaml").read_text()
    layer = files.parse(text, "f.yaml")
    assert layer.found[TTL].raw == "5 minutes"
    assert layer.found["nanny.environ.OMP_NUM_THREADS"].raw == "1"
    assert "distributed.worker.profile.cycle" in layer.foreign


# -- Where they are -------------------------------------------------------------------------------


def test_the_last_file_of_a_folder_goes_first(user: Path) -> None:
    write(user / "10-first.yaml", "scheduler: {worker-ttl: 1s, port: 1}\n")
    write(user / "20-last.yml", "scheduler: {worker-ttl: 2s}\n")
    write(user / ".hidden.yaml", "nonsense: 1\n")
    write(user / "notes.txt", "nonsense: 1\n")
    settings = config.current()
    assert (settings[TTL], settings["scheduler.port"]) == (2.0, "1")
    assert settings.source(TTL) == f"{user / '20-last.yml'}:1"


def test_the_users_files_go_before_the_sites(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write(user.parent / "site.yaml", "scheduler: {worker-ttl: 1s, port: 1}\n")
    monkeypatch.setenv("HPCDASK_SITE_CONFIG", str(site))
    write(user / "a.yaml", "scheduler: {worker-ttl: 2s}\n")
    settings = config.current()
    assert (settings[TTL], settings["scheduler.port"]) == (2.0, "1")


def test_variables_name_other_files_folders_or_none(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user / "a.yaml", "scheduler: {worker-ttl: 1s}\n")
    other = user.parent / "other"
    other.mkdir()
    write(other / "b.yaml", "scheduler: {worker-ttl: 2s}\n")
    for variable, expected in (("", 30.0), (str(other), 2.0), (str(other / "b.yaml"), 2.0)):
        monkeypatch.setenv("HPCDASK_CONFIG", variable)
        assert config.get(TTL) == expected
    monkeypatch.setenv("HPCDASK_CONFIG", str(other / "missing.yaml"))
    with pytest.raises(
        ConfigError, match=r"there is no .*missing.yaml, which HPCDASK_CONFIG names"
    ):
        config.current()


def test_the_usual_places_are_the_users_the_installations_and_the_machines(tmp_path: Path) -> None:
    usual = [(place, "") for place in (Path(sys.prefix, "etc/hpcdask"), Path("/etc/hpcdask"))]
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert list(files._places(environ)) == [(tmp_path / "hpcdask", ""), *usual]


def test_a_file_is_read_once_and_again_after_a_refresh(user: Path) -> None:
    path = write(user / "a.yaml", "scheduler: {worker-ttl: 1s}\n")
    assert config.get(TTL) == 1.0
    write(path, "scheduler: {worker-ttl: 2s}\n")
    assert config.get(TTL) == 1.0
    config.refresh()
    assert config.get(TTL) == 2.0


# -- Whom they may come from ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_refused_with_the_cure(user: Path, mode: int) -> None:
    path = write(user / "a.yaml", "worker: {preload: evil.py}\n", mode)
    with pytest.raises(ConfigError) as caught:
        config.current()
    assert f"{path} can be written by others (mode {mode:04o})" in str(caught.value)
    assert f"chmod go-w {path}" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(user: Path) -> None:
    path = write(user / "a.yaml", "worker: {preload: evil.py}\n")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match=f"{path} belongs to user 12345, and is neither yours"):
        config.current()


def test_what_is_no_file_is_refused(user: Path) -> None:
    os.mkfifo(user / "a.yaml", 0o600)
    with pytest.raises(ConfigError, match=r"a.yaml is no file of at most"):
        config.current()


def test_a_file_that_cannot_be_read_is_no_reason_to_go_on_without(user: Path) -> None:
    (user / "a.yaml").symlink_to(user / "gone.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*a.yaml: No such file"):
        config.current()


# -- What they cost -------------------------------------------------------------------------------


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_files_no_yaml_is_imported(user: Path) -> None:
    code = "import sys, hpcdask; hpcdask.config.get('worker.port'); print('yaml' in sys.modules)"
    assert run_python(code).stdout == "False\n"
    write(user / "a.yaml", "worker: {port: 1}\n")
    assert run_python(code).stdout == "True\n"


def test_without_files_the_file_system_is_asked_three_times(user: Path) -> None:
    user.rmdir()
    code = """\
import sys, hpcdask.config
asked = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir"):
        asked.append(event)
sys.addaudithook(hook)
hpcdask.config.current()
hpcdask.config.current()
print(asked)
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HPCDASK")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "['os.listdir', 'os.listdir', 'os.listdir']\n", done.stderr


def test_a_file_without_pyyaml_is_an_error_with_the_command_that_mends_it(user: Path) -> None:
    path = write(user / "a.yaml", "worker: {port: 1}\n")
    # As if it were not installed: None in sys.modules makes its import fail.
    code = """\
import sys
sys.modules["yaml"] = None
import hpcdask
try:
    hpcdask.config.current()
except hpcdask.ConfigError as exc:
    print(exc)
"""
    out = run_python(code).stdout
    assert f"there is a configuration file, {path}, but PyYAML" in out
    assert "pip install 'hpcdask[yaml]'" in out
