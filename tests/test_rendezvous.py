"""The scheduler file and the token file: who may read them, and what readers make of them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcdask import rendezvous
from hpcdask.errors import RendezvousError, RendezvousTimeoutError, TokenError
from hpcdask.rendezvous import Contact, SchedulerFileReader

TOKEN = bytes(range(32))
CONTACT = Contact(
    type="Scheduler",
    id="Scheduler-1",
    address="tcp://10.1.0.7:8786",
    dashboard="http://10.1.0.7:8787/status",
    token=TOKEN,
    started=1000.5,
    version="1.0",
    host="node1",
    pid=42,
    job="slurm:123",
)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HPCDASK_TOKEN", raising=False)
    monkeypatch.delenv("HPCDASK_TOKEN_FILE", raising=False)
    return tmp_path


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def private_file(path: Path, content: str, mode: int = 0o600) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# ---------------------------------------------------------------- tokens


def test_a_new_token_is_32_bytes_and_never_the_same() -> None:
    assert len(rendezvous.new_token()) == 32
    assert rendezvous.new_token() != rendezvous.new_token()


def test_a_token_is_read_from_64_hex_digits() -> None:
    assert rendezvous.parse_token(f" {TOKEN.hex().upper()}\n") == TOKEN


@pytest.mark.parametrize("text", ["", "secret", "zz" * 32, "ab" * 31, "ab" * 33, "a b" * 21 + "a"])
def test_a_malformed_token_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(TokenError, match="64 hex digits") as caught:
        rendezvous.parse_token(text)
    assert not text or text not in str(caught.value)


def test_the_token_path_follows_xdg() -> None:
    assert rendezvous.token_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/hpcdask/token")
    default = Path.home() / ".config/hpcdask/token"
    assert rendezvous.token_path({}) == default
    assert rendezvous.token_path({"XDG_CONFIG_HOME": "relative"}) == default


def test_the_users_token_is_made_once(home: Path) -> None:
    token = rendezvous.user_token()
    assert rendezvous.user_token() == token
    assert (home / "config/hpcdask/token").read_text() == token.hex() + "\n"


@pytest.mark.usefixtures("no_umask")
def test_the_token_file_is_private_even_without_a_umask(home: Path) -> None:
    rendezvous.user_token()
    assert mode_of(home / "config/hpcdask/token") == 0o600
    assert mode_of(home / "config/hpcdask") == 0o700
    assert mode_of(home / "config") == 0o700


def test_making_the_token_leaves_no_temporary_file(home: Path) -> None:
    rendezvous.user_token()
    assert [path.name for path in (home / "config/hpcdask").iterdir()] == ["token"]


def test_twenty_processes_that_make_the_token_at_once_agree(home: Path) -> None:
    code = (
        "import sys; from hpcdask.rendezvous import user_token;"
        "print('ready', flush=True); sys.stdin.readline(); print(user_token().hex())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(20)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    tokens = {process.communicate(timeout=60)[0] for process in processes}
    assert tokens == {rendezvous.user_token().hex() + "\n"}


def test_fifty_threads_that_make_the_token_at_once_agree(home: Path) -> None:
    barrier, tokens = threading.Barrier(50), []

    def rank() -> None:
        barrier.wait(timeout=30)
        tokens.append(rendezvous.user_token())

    threads = [threading.Thread(target=rank) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(tokens) == 50
    assert len(set(tokens)) == 1


def test_who_is_beaten_to_the_token_takes_the_winners(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rendezvous.token_path()
    real_link = os.link

    def beaten(source: Path, target: Path) -> None:
        private_file(path, TOKEN.hex())
        real_link(source, target)

    monkeypatch.setattr(os, "link", beaten)
    assert rendezvous.user_token() == TOKEN


def test_a_file_system_without_links_is_a_clear_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(TokenError, match=r"not supported.*HPCDASK_TOKEN_FILE"):
        rendezvous.user_token()
    assert list((home / "config/hpcdask").iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602])
def test_a_token_file_open_to_others_is_refused_with_the_remedy(mode: int, tmp_path: Path) -> None:
    path = private_file(tmp_path / "my token", TOKEN.hex(), mode)
    with pytest.raises(TokenError, match=f"mode {mode:04o}") as caught:
        rendezvous.read_token_file(path)
    assert f"chmod 600 '{path}'" in str(caught.value)
    path.chmod(0o600)
    assert rendezvous.read_token_file(path) == TOKEN


@root_only
def test_a_token_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = private_file(tmp_path / "token", TOKEN.hex())
    os.chown(path, 12345, -1)
    with pytest.raises(TokenError, match="belongs to user 12345"):
        rendezvous.user_token(path)


def test_a_malformed_token_file_is_refused_by_name_without_its_content(tmp_path: Path) -> None:
    path = private_file(tmp_path / "token", "hunter2")
    with pytest.raises(TokenError, match=f"token file {path} is malformed") as caught:
        rendezvous.user_token(path)
    assert "hunter2" not in str(caught.value)


def test_a_token_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot read the token file"):
        rendezvous.read_token_file(tmp_path)


def test_a_token_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    private_file(tmp_path / "file", "")
    with pytest.raises(TokenError, match=r"cannot (read|make) the token.*HPCDASK_TOKEN_FILE"):
        rendezvous.user_token(tmp_path / "file" / "hpcdask" / "token")


class TestTokenPrecedence:
    """From the last resort to the first; each test adds a place that goes before the others."""

    def test_the_users_own_file_is_the_last_resort(self, home: Path) -> None:
        assert rendezvous.resolve_token() == rendezvous.user_token()

    def test_the_scheduler_file_goes_before_it(self, home: Path) -> None:
        assert rendezvous.resolve_token(contact_token=TOKEN) == TOKEN
        assert not rendezvous.token_path().exists()

    def test_the_environment_goes_before_the_scheduler_file(self) -> None:
        environ = {"HPCDASK_TOKEN": "11" * 32}
        token = rendezvous.resolve_token(contact_token=TOKEN, environ=environ)
        assert token == b"\x11" * 32

    def test_the_environments_file_goes_before_its_token(self, tmp_path: Path) -> None:
        path = private_file(tmp_path / "token", "22" * 32)
        environ = {"HPCDASK_TOKEN": "11" * 32, "HPCDASK_TOKEN_FILE": str(path)}
        assert rendezvous.resolve_token(environ=environ) == b"\x22" * 32

    def test_arguments_go_before_all(self, tmp_path: Path) -> None:
        path = private_file(tmp_path / "token", "33" * 32)
        environ = {"HPCDASK_TOKEN": "11" * 32}
        assert rendezvous.resolve_token(None, path, TOKEN, environ=environ) == b"\x33" * 32
        assert rendezvous.resolve_token("44" * 32, path, environ=environ) == b"\x44" * 32
        assert rendezvous.resolve_token(TOKEN, environ=environ) == TOKEN

    def test_an_empty_variable_is_none(self, home: Path) -> None:
        environ = {"HPCDASK_TOKEN": "", "HPCDASK_TOKEN_FILE": ""}
        assert rendezvous.resolve_token(contact_token=TOKEN, environ=environ) == TOKEN

    def test_a_named_file_that_is_missing_is_no_reason_to_look_further(self, home: Path) -> None:
        with pytest.raises(TokenError, match=r"no token file /no/such, which --token-file names"):
            rendezvous.resolve_token(token_file="/no/such", contact_token=TOKEN)
        with pytest.raises(TokenError, match="which HPCDASK_TOKEN_FILE names"):
            rendezvous.resolve_token(environ={"HPCDASK_TOKEN_FILE": "/no/such"})

    @pytest.mark.parametrize("token", [b"", b"short", "", "short"])
    def test_an_unusable_argument_is_no_reason_to_look_further(self, token: bytes | str) -> None:
        with pytest.raises(TokenError):
            rendezvous.resolve_token(token, contact_token=TOKEN)


# ---------------------------------------------------------------- contacts


def test_a_contact_survives_json_and_pickle() -> None:
    assert Contact.from_json(CONTACT.to_json()) == CONTACT
    assert pickle.loads(pickle.dumps(CONTACT)) == CONTACT


def test_a_contact_without_authentication_survives_json() -> None:
    contact = replace(CONTACT, token=b"")
    assert Contact.from_json(contact.to_json()) == contact


def test_the_fields_of_the_file_are_those_of_the_design() -> None:
    names = "type id address dashboard token started version host pid job"
    assert list(json.loads(CONTACT.to_json())) == names.split()


def test_a_contacts_repr_hides_the_token() -> None:
    assert TOKEN.hex() not in repr(CONTACT)
    assert repr(TOKEN) not in repr(CONTACT)
    assert "token" not in repr(CONTACT)


def test_unknown_keys_are_left_out() -> None:
    text = json.dumps(json.loads(CONTACT.to_json()) | {"tls": "…", "workers": {}})
    assert Contact.from_json(text) == CONTACT


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cut off or no JSON"),
        ("[" * 100_000, "cut off or no JSON"),
        (CONTACT.to_json()[:-20], "cut off or no JSON"),
        ("[1]", "a list and no object"),
        ('{"type": "Scheduler", "id": "x"}', "without address, dashboard, token"),
        (CONTACT.to_json().replace("42", '"42"'), "wrong type of pid"),
        (CONTACT.to_json().replace("42", "true"), "wrong type of pid"),
        (CONTACT.to_json().replace("000102", "xx"), "its token is malformed"),
    ],
)
def test_foreign_content_is_no_contact_and_its_token_is_not_shown(text: str, fault: str) -> None:
    with pytest.raises(RendezvousError, match=fault) as caught:
        Contact.from_json(text)
    assert TOKEN.hex()[6:] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# ---------------------------------------------------------------- the scheduler file


@pytest.mark.usefixtures("no_umask")
def test_a_scheduler_file_is_private_even_without_a_umask(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    rendezvous.write_scheduler_file(path, CONTACT)
    assert mode_of(path) == 0o600
    assert Contact.from_json(path.read_text()) == CONTACT
    assert list(tmp_path.iterdir()) == [path]


def test_a_scheduler_file_replaces_an_open_one_by_a_private_one(tmp_path: Path) -> None:
    path = private_file(tmp_path / "s.json", "old", 0o666)
    rendezvous.write_scheduler_file(path, CONTACT)
    assert mode_of(path) == 0o600


def test_the_temporary_file_is_private_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real_replace = os.replace

    def spying(source: Path, target: Path) -> None:
        seen.append((source.parent, mode_of(source)))
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", spying)
    rendezvous.write_scheduler_file(tmp_path / "s.json", CONTACT)
    assert seen == [(tmp_path, 0o600)]


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match=f"folder {tmp_path}/no does not exist"):
        rendezvous.write_scheduler_file(tmp_path / "no" / "s.json", CONTACT)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, "may not write"), (errno.EROFS, "Read-only"), (errno.ENOSPC, "No space")],
)
def test_a_folder_that_takes_no_file_is_a_clear_error(
    number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RendezvousError, match=f"{reason}.*--scheduler-file"):
        rendezvous.write_scheduler_file(tmp_path / "s.json", CONTACT)
    assert list(tmp_path.iterdir()) == []


@not_root
def test_a_folder_without_write_permission_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RendezvousError, match="may not write to the folder"):
        rendezvous.write_scheduler_file(tmp_path / "s.json", CONTACT)
    tmp_path.chmod(0o700)


def test_a_path_that_is_a_folder_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match="cannot write the scheduler file"):
        (tmp_path / "s.json").mkdir()
        rendezvous.write_scheduler_file(tmp_path / "s.json", CONTACT)
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_our_scheduler_file_is_removed(tmp_path: Path) -> None:
    rendezvous.write_scheduler_file(tmp_path / "s.json", CONTACT)
    rendezvous.remove_scheduler_file(tmp_path / "s.json", CONTACT.id)
    assert not (tmp_path / "s.json").exists()


def test_anothers_scheduler_file_is_left(tmp_path: Path) -> None:
    rendezvous.write_scheduler_file(tmp_path / "s.json", replace(CONTACT, id="other"))
    rendezvous.remove_scheduler_file(tmp_path / "s.json", CONTACT.id)
    assert (tmp_path / "s.json").exists()


def test_removing_what_is_missing_or_foreign_raises_nothing(tmp_path: Path) -> None:
    private_file(tmp_path / "foreign", "{}")
    for name in ("missing", "foreign", ".", "foreign/below"):
        rendezvous.remove_scheduler_file(tmp_path / name, CONTACT.id)
    assert (tmp_path / "foreign").exists()


# ---------------------------------------------------------------- the reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.json"


def written_at(path: Path, content: str, modified: float) -> Path:
    os.utime(private_file(path, content), (modified, modified))
    return path


def test_a_whole_file_is_read(path: Path) -> None:
    rendezvous.write_scheduler_file(path, CONTACT)
    assert SchedulerFileReader(path).probe(0.0) == CONTACT


def test_a_missing_file_is_not_yet(path: Path) -> None:
    reader = SchedulerFileReader(path)
    assert reader.probe(100.0) is None
    assert reader.describe(107.0) == f"scheduler file {path} does not exist (looking for 7 s)"


def test_a_missing_folder_is_not_yet_and_is_said(path: Path) -> None:
    reader = SchedulerFileReader(path.parent / "no" / "s.json")
    assert reader.probe(0.0) is None
    assert "does not exist, nor does its folder" in reader.describe(0.0)


def test_a_half_written_file_is_not_yet_and_then_read(path: Path) -> None:
    reader = SchedulerFileReader(path)
    written_at(path, CONTACT.to_json()[:100], modified=50.0)
    assert reader.probe(60.0) is None
    assert reader.describe(62.0) == (
        f"scheduler file {path}, 12 s old, holds no contact yet: "
        "cut off or no JSON (100 characters) (looking for 2 s)"
    )
    private_file(path, CONTACT.to_json())
    assert reader.probe(61.0) == CONTACT


def test_a_foreign_file_is_not_yet_and_described_without_its_content(path: Path) -> None:
    reader = SchedulerFileReader(path)
    written_at(path, '{"type": "Scheduler", "secret": "hunter2"}', modified=0.0)
    assert reader.probe(7200.0) is None
    assert "2 h old, holds no contact yet: JSON, but without id" in reader.describe(7200.0)
    assert "hunter2" not in reader.describe(7200.0)


def test_a_stale_scheduler_is_not_yet_and_named(path: Path) -> None:
    stale = set[str]()
    reader = SchedulerFileReader(path, stale)
    rendezvous.write_scheduler_file(path, CONTACT)
    assert reader.probe(0.0) == CONTACT
    stale.add(CONTACT.id)
    assert reader.probe(0.0) is None
    assert "is of Scheduler-1 at tcp://10.1.0.7:8786, which is gone" in reader.describe(0.0)
    fresh = replace(CONTACT, id="Scheduler-2")
    rendezvous.write_scheduler_file(path, fresh)
    assert reader.probe(0.0) == fresh


@pytest.mark.parametrize("content", ["", CONTACT.to_json()])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_open_to_others_is_refused_at_once(content: str, mode: int, path: Path) -> None:
    private_file(path, content, mode)
    with pytest.raises(TokenError, match=f"scheduler file {path} is open.*chmod 600"):
        SchedulerFileReader(path).probe(0.0)


def test_a_file_of_another_user_is_refused_unless_we_are_root(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendezvous.write_scheduler_file(path, CONTACT)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # whom everyone trusts
        assert SchedulerFileReader(path).probe(0.0) == CONTACT
        os.chown(path, 12345, -1)
    with pytest.raises(TokenError, match="belongs to user"):
        SchedulerFileReader(path).probe(0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert SchedulerFileReader(path).probe(0.0) == CONTACT


def test_another_users_file_that_we_cannot_even_open_is_refused_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendezvous.write_scheduler_file(path, CONTACT)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)

    def denied(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(TokenError, match="belongs to user"):
        SchedulerFileReader(path).probe(0.0)


def test_a_stale_nfs_handle_is_not_yet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(*args: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    rendezvous.write_scheduler_file(path, CONTACT)
    monkeypatch.setattr(os, "read", replaced)
    reader = SchedulerFileReader(path)
    assert reader.probe(0.0) is None
    assert "cannot be read: Stale file handle" in reader.describe(0.0)


def test_a_fifo_or_a_folder_neither_hangs_nor_leaks(path: Path) -> None:
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    reader = SchedulerFileReader(path)
    assert reader.probe(0.0) is None
    assert "cannot be read: Is a directory" in reader.describe(0.0)
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert reader.probe(0.0) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folder_is_listed_before_the_file_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[..., object]:
        real: Callable[..., object] = getattr(os, name)

        def call(*args: object) -> object:
            order.append(name)
            return real(*args)

        return call

    for name in ("scandir", "open"):
        monkeypatch.setattr(os, name, noting(name))
    SchedulerFileReader(path).probe(0.0)
    assert order == ["scandir", "open"]


def test_a_file_from_the_future_is_zero_seconds_old(path: Path) -> None:
    reader = SchedulerFileReader(written_at(path, "", modified=100.0))
    reader.probe(90.0)
    assert ", 0 s old," in reader.describe(90.0)


def test_delays_grow_from_20_ms_to_1_s_and_differ_between_ranks(path: Path) -> None:
    reader = SchedulerFileReader(path)
    delays = list(itertools.islice(reader.delays(random.Random(1)), 50))
    assert delays == list(itertools.islice(reader.delays(random.Random(1)), 50))
    assert delays != list(itertools.islice(reader.delays(random.Random(2)), 50))
    assert 0.01 <= delays[0] <= 0.02
    assert all(0.5 <= delay <= 1.0 for delay in delays[-30:])
    assert all(0 < delay <= 1 for delay in itertools.islice(reader.delays(), 50))


@pytest.mark.parametrize(
    ("readers", "first", "last"), [(40, 0.04, 1), (4_000, 4, 4), (10**6, 10, 10)]
)
def test_of_many_readers_each_looks_more_rarely(
    path: Path, readers: int, first: float, last: float
) -> None:
    reader = SchedulerFileReader(path)
    delays = list(itertools.islice(reader.delays(random.Random(1), readers), 50))
    assert first / 2 <= delays[0] <= first
    assert all(last / 2 <= delay <= last for delay in delays[-30:])


# ---------------------------------------------------------------- waiting


def when_looked_at(monkeypatch: pytest.MonkeyPatch, look: int, act: Callable[[], object]) -> None:
    """Call `act` just before the look number `look`."""
    looks = itertools.count(1)
    real_probe = SchedulerFileReader.probe

    def probe(self: SchedulerFileReader, now: float) -> Contact | None:
        if next(looks) == look:
            act()
        return real_probe(self, now)

    monkeypatch.setattr(SchedulerFileReader, "probe", probe)


def test_a_file_that_is_there_is_taken_at_once(path: Path) -> None:
    rendezvous.write_scheduler_file(path, CONTACT)
    assert asyncio.run(rendezvous.wait_for_contact(path, 10)) == CONTACT


def test_a_half_written_file_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_file(path, CONTACT.to_json()[:50])
    when_looked_at(monkeypatch, 3, lambda: rendezvous.write_scheduler_file(path, CONTACT))
    assert asyncio.run(rendezvous.wait_for_contact(path, 10)) == CONTACT


def test_a_stale_file_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = replace(CONTACT, id="Scheduler-2")
    rendezvous.write_scheduler_file(path, CONTACT)
    when_looked_at(monkeypatch, 3, lambda: rendezvous.write_scheduler_file(path, fresh))
    wait = rendezvous.wait_for_contact(path, 10, stale={CONTACT.id})
    assert asyncio.run(wait) == fresh


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_a_short_deadline_is_honoured(timeout: float, path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RendezvousTimeoutError) as caught:
        asyncio.run(rendezvous.wait_for_contact(path, timeout))
    assert timeout <= time.monotonic() - start < timeout + 1
    assert str(caught.value).startswith(
        f"no scheduler within {timeout:g} s: scheduler file {path} does not exist"
    )
    assert "--scheduler-file" in str(caught.value)


def test_an_exposed_file_ends_the_wait_at_once(path: Path) -> None:
    private_file(path, CONTACT.to_json(), 0o644)
    with pytest.raises(TokenError, match="chmod 600"):
        asyncio.run(rendezvous.wait_for_contact(path, 60))


def test_the_wait_says_what_it_waits_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_REPORT", 0.05)
    said: list[str] = []

    def write_after_two_reports(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            rendezvous.write_scheduler_file(path, CONTACT)

    wait = rendezvous.wait_for_contact(path, 30, log=write_after_two_reports)
    assert asyncio.run(wait) == CONTACT
    assert said[0].startswith(f"waiting for a scheduler: scheduler file {path} does not exist")


def test_a_file_system_that_hangs_stops_neither_the_loop_nor_the_deadline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(SchedulerFileReader, "probe", lambda self, now: released.wait(60) and None)
    start = time.monotonic()
    with pytest.raises(RendezvousTimeoutError, match="file system that did not answer"):
        asyncio.run(rendezvous.wait_for_contact(path, 0.2))
    released.set()
    assert time.monotonic() - start < 5


def test_a_hundred_waiting_ranks_all_get_the_contact(path: Path) -> None:
    async def main() -> list[Contact]:
        ranks = [asyncio.create_task(rendezvous.wait_for_contact(path, 30)) for _ in range(100)]
        await asyncio.wait(ranks, timeout=0.05)  # none can be done: all are polling
        assert not any(rank.done() for rank in ranks)
        rendezvous.write_scheduler_file(path, CONTACT)
        return await asyncio.gather(*ranks)

    assert asyncio.run(main()) == [CONTACT] * 100
