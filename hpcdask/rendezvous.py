"""How the processes of a cluster find and trust each other: the scheduler file and the token file.

Both hold a secret, so both are made with mode 0600 from their first byte and refused when others
can read them. Both are shared by a thousand ranks on a file system with caches, so both appear
whole or not at all, and readers are patient, polite and always able to say what they wait for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcdask.errors import ConfigError, RendezvousError, RendezvousTimeoutError, TokenError
from hpcdask.threads import in_thread
from hpcdask.trusted_files import StrPath, read_approved, user_folder
from hpcdask.world import launched_world

if TYPE_CHECKING:
    import random

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

TOKEN_BYTES = 32

# ---------------------------------------------------------------- tokens


def new_token() -> bytes:
    """A new cluster token: 32 random bytes."""
    return os.urandom(TOKEN_BYTES)


def parse_token(text: str, source: str = "the token") -> bytes:
    """The token that `text`, 64 hex digits, stands for.

    Raises
    ------
    TokenError
        If `text` is anything else. The message names `source` and never shows the text.
    """
    text = text.strip()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise TokenError(
            f"{source} is malformed: a token is {2 * TOKEN_BYTES} hex digits, this has "
            f"{len(text)} characters. Copy it again, or remove it to have one made."
        )
    return bytes.fromhex(text)


def token_path(environ: Mapping[str, str] | None = None) -> Path:
    """The user's own token file: ``$XDG_CONFIG_HOME/hpcdask/token``, or that in ``~/.config``."""
    return user_folder(os.environ if environ is None else environ) / "token"


def read_token_file(path: StrPath) -> bytes:
    """The token in the file `path`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TokenError
        If others can read it, another user owns it, or it holds no token.
    """
    what = f"the token file {os.fspath(path)}"
    try:
        content = read_approved(path, lambda status: _refuse_exposed_token(path, status))
    except FileNotFoundError:
        raise
    except TokenError:  # which is an OSError as well, and says all there is to say
        raise
    except OSError as exc:
        raise TokenError(
            f"cannot read {what}: {exc.strerror}. Make it readable for you alone "
            f"(chmod 600 {_quoted(path)}), or name another with HPCDASK_TOKEN_FILE."
        ) from exc
    return parse_token(content, what)


def user_token(path: StrPath | None = None) -> bytes:
    """The user's own token, made on first use.

    Any number of processes on any number of hosts may call this at once: all get the same token.

    Raises
    ------
    TokenError
        If the file cannot be made, or cannot be trusted.
    """
    path = token_path() if path is None else Path(path)
    for _ in range(3):  # again only if somebody removes it between our making and reading
        with suppress(FileNotFoundError):
            return read_token_file(path)
        _make_token_file(path)
    raise TokenError(
        f"the token file {path} vanishes each time it is made. "
        "Name one that stays with HPCDASK_TOKEN_FILE."
    )


def resolve_token(
    token: bytes | str | None = None,
    token_file: StrPath | None = None,
    contact_token: bytes | None = None,
    *,
    own_file: StrPath | None = None,
    environ: Mapping[str, str] | None = None,
) -> bytes:
    """The cluster token, from the first of the places that has one.

    Parameters
    ----------
    token : bytes or str, optional
        The token itself, as 32 bytes or as 64 hex digits.
    token_file : path, optional
        A file that holds it.
    contact_token : bytes, optional
        The token from the scheduler file. The environment (``HPCDASK_TOKEN_FILE``, then
        ``HPCDASK_TOKEN``) goes before it, and the user's own token file after.
    own_file : path, optional
        The user's own token file, if it is not in its usual place.
    environ : mapping, optional
        Environment to read; by default that of this process.

    Raises
    ------
    TokenError
        If the first place that has one has an unusable one.
    """
    environ = os.environ if environ is None else environ
    if token is not None:
        return _checked_token(token)
    if token_file:
        return _named_token_file(token_file, "--token-file")
    if environ.get("HPCDASK_TOKEN_FILE"):
        return _named_token_file(environ["HPCDASK_TOKEN_FILE"], "HPCDASK_TOKEN_FILE")
    if environ.get("HPCDASK_TOKEN"):
        return parse_token(environ["HPCDASK_TOKEN"], "the environment's HPCDASK_TOKEN")
    return contact_token or user_token(own_file or token_path(environ))


def _checked_token(token: bytes | str) -> bytes:
    if isinstance(token, str):
        return parse_token(token)
    if len(token) != TOKEN_BYTES:
        raise TokenError(
            f"a token is {TOKEN_BYTES} bytes, this has {len(token)}. "
            "Make one with hpcdask.rendezvous.new_token()."
        )
    return bytes(token)


def _named_token_file(path: StrPath, source: str) -> bytes:
    try:
        return read_token_file(path)
    except FileNotFoundError:
        raise TokenError(
            f"there is no token file {os.fspath(path)}, which {source} names. "
            f"Correct the path, or leave it out to use your own token, {token_path()}."
        ) from None


def _make_token_file(path: Path) -> None:
    """Make the token file, unless another process is first. Either way it is there afterwards."""
    try:
        make_private_folder(path.parent)
        temporary = _write_private(path, new_token().hex() + "\n")
        try:
            # Unlike rename, link never replaces: of a thousand that come at once, one wins.
            # Over NFS it may report EEXIST for its own success, so nobody asks who won.
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except OSError as exc:
        raise TokenError(
            f"cannot make the token file {path}: {exc.strerror}. Make the folder writable for you, "
            "or name a token file elsewhere with HPCDASK_TOKEN_FILE."
        ) from exc


def make_private_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, all with mode 0700 whatever the umask."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(0o700)


# ---------------------------------------------------------------- private files


def _write_private(path: Path, content: str) -> Path:
    """Write `content` to a new file beside `path`, mode 0600 from the start; return its path."""
    unique = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
    temporary = path.with_name(f".{path.name}.{unique}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)  # a umask like 0777 would lock ourselves out
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def replace_private(path: StrPath, content: str) -> None:
    """Put `content` into the file `path`, mode 0600. A reader sees all of it or none of it."""
    path = Path(path)
    temporary = _write_private(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def create_private(path: StrPath, content: str) -> None:
    """As `replace_private`, for a file that is not there yet.

    Raises
    ------
    FileExistsError
        If it is: of several that come at once, one wins.
    """
    path = Path(path)
    temporary = _write_private(path, content)
    try:
        os.link(temporary, path)  # which never replaces, unlike rename
    except FileExistsError:
        # Over NFS it may report that for its own success.
        if os.stat(temporary).st_nlink != 2:
            raise
    finally:
        os.unlink(temporary)


def read_private(path: StrPath) -> str:
    """Content of a file that only its owner, who is us or root, can read.

    Raises
    ------
    TokenError
        If others can read it, or it is another user's.
    """
    return read_approved(path, lambda status: _refuse_exposed_token(path, status))


def _refuse_exposed_token(path: StrPath, status: os.stat_result) -> None:
    # Not even root takes another user's token: it would let that user run code as root.
    if status.st_uid not in (os.geteuid(), 0):
        raise _foreign_file("token file", path, status)
    _refuse_open_mode("token file", path, status)


def _refuse_exposed_contact(path: StrPath, status: os.stat_result) -> None:
    if os.geteuid() != 0 and status.st_uid not in (os.geteuid(), 0):
        raise _foreign_file("scheduler file", path, status)
    _refuse_open_mode("scheduler file", path, status)


def _foreign_file(kind: str, path: StrPath, status: os.stat_result) -> TokenError:
    return TokenError(
        f"the {kind} {os.fspath(path)} belongs to user {status.st_uid} and we are user "
        f"{os.geteuid()}: whoever wrote it could run code as us. Use one of your own."
    )


def _refuse_open_mode(kind: str, path: StrPath, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise TokenError(
            f"the {kind} {os.fspath(path)} is open to other users (mode "
            f"{stat.S_IMODE(status.st_mode):04o}), and its token lets them run code as you. "
            f"Run: chmod 600 {_quoted(path)} (or remove it, if others may have seen it)."
        )


def _quoted(path: StrPath) -> str:
    return shlex.quote(os.fspath(path))


# ---------------------------------------------------------------- the scheduler file


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a scheduler is and how to prove to it that we belong to it."""

    type: str
    id: str
    address: str
    dashboard: str  # its URL, "" without one
    token: bytes = field(repr=False)  # b"" with --no-auth
    started: float  # seconds since the epoch
    version: str
    host: str
    pid: int
    job: str  # as `hpcdask.host.batch_job` gives it

    def to_json(self) -> str:
        """The content of a scheduler file; the token is in it, as hex digits."""
        return json.dumps({**asdict(self), "token": self.token.hex()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Contact:
        """The contact in the content of a scheduler file. Keys that we do not know are left out.

        Raises
        ------
        RendezvousError
            If `text` is cut off or something else. The message never shows the token.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):  # not chained: its `doc` holds the token
            raise RendezvousError(
                f"cut off or no JSON ({len(text)} characters). Expected a scheduler file; "
                "wait until it is whole, or start the scheduler anew."
            ) from None
        values = _known_values(content)
        token = values["token"]
        values["token"] = _contact_token(token) if token else b""
        return cls(**values)


_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    **{each.name: str for each in fields(Contact)},
    "started": (int, float),
    "pid": int,
}


def _known_values(content: object) -> dict[str, Any]:
    """What a scheduler file says for each field of Contact, of the right types."""
    if not isinstance(content, dict):
        fault = f"JSON, but a {type(content).__name__} and no object"
    elif missing := [name for name in _JSON_TYPES if name not in content]:
        fault = f"JSON, but without {', '.join(missing)}"
    elif odd := [name for name, kind in _JSON_TYPES.items() if not _is_a(content[name], kind)]:
        fault = f"JSON, but with a wrong type of {', '.join(odd)}"
    else:
        return {name: content[name] for name in _JSON_TYPES}
    raise RendezvousError(
        f"{fault}. Expected the scheduler file of hpcdask; give the path that the scheduler got."
    )


def _is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _contact_token(text: str) -> bytes:
    try:
        return parse_token(text, "its token")
    except TokenError as exc:
        raise RendezvousError(str(exc)) from None


def write_scheduler_file(path: StrPath, contact: Contact) -> None:
    """Put `contact` into the file `path`, mode 0600. A reader sees all of it or none of it.

    Raises
    ------
    RendezvousError
        If the folder is missing, read-only or full.
    """
    path = Path(path)
    try:
        replace_private(path, contact.to_json())
    except OSError as exc:
        raise RendezvousError(
            f"cannot write the scheduler file {path}: {_why_not_written(path, exc)}. "
            "Name a file in a folder that you can write and all hosts can see, "
            "with --scheduler-file."
        ) from exc
    _sync_folder(path.parent)


def _why_not_written(path: Path, exc: OSError) -> str:
    if not path.parent.exists():
        return f"the folder {path.parent} does not exist"
    if isinstance(exc, PermissionError):
        return f"you may not write to the folder {path.parent}, or the file is another user's"
    return exc.strerror or str(exc)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot, and the file itself is safe
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_scheduler_file(path: StrPath, id: str) -> None:
    """Remove the file `path` if it is still that of the scheduler `id`. Never raises."""
    try:
        content = read_approved(path, lambda status: None)
        if Contact.from_json(content).id == id:
            os.unlink(path)
    except (OSError, RendezvousError) as exc:
        _log.debug("scheduler file %s is left as it is: %s", path, exc)


# ---------------------------------------------------------------- waiting for it

#: Seconds until it is said what is waited for, and the longest time between two such lines: a
#: client may wait for a job that is in the queue.
FIRST_REPORT, LONGEST_SILENCE = 2.0, 30.0

#: Seconds after which one look is given up.
PATIENCE = 5.0

#: Looks at one scheduler file, of all ranks of a job that wait for it, and the longest time in
#: seconds between two of one rank.
LOOKS_PER_SECOND, LONGEST_DELAY = 1000, 10.0

#: However short the timeout, a look at a healthy file system gets this long to end.
SHORTEST_LOOK = 0.05


class SchedulerFileReader:
    """Looks at a scheduler file, and knows what it saw last.

    Parameters
    ----------
    path : path
        The scheduler file.
    stale : collection of str
        Ids of schedulers known to be gone. Their files count as 'not yet'. It may grow meanwhile.
    """

    def __init__(self, path: StrPath, stale: Collection[str] = ()) -> None:
        self.path = Path(path)
        self.stale = stale
        self.reason = "nobody has looked at it yet"
        self._modified: float | None = None  # of the file last seen
        self._since: float | None = None  # the first look

    def probe(self, now: float) -> Contact | None:
        """Look once; `now` is in seconds since the epoch. None is 'not yet', see `reason`.

        Raises
        ------
        TokenError
            If others can read the file, or another user wrote it. Waiting would not help.
        """
        if self._since is None:
            self._since = now
        self._modified = None
        try:
            self._refresh_folder()
            contact = Contact.from_json(read_approved(self.path, self._approve))
        except TokenError:  # which is an OSError as well
            raise
        except OSError as exc:  # among them ESTALE, when it was replaced while we read it
            self.reason = self._why_unreadable(exc)
        except RendezvousError as exc:
            self.reason = f"holds no contact yet: {str(exc).partition('. ')[0]}"
        else:
            if contact.id not in self.stale:
                return contact
            self.reason = f"is of {contact.id} at {contact.address}, which is gone"
        return None

    def delays(self, rng: random.Random | None = None, readers: int = 1) -> Iterator[float]:
        """Seconds to wait between looks: from 0.02 to 1, with jitter to keep ranks apart.

        Of very many readers each waits longer, so that all of them together do not look more than
        about `LOOKS_PER_SECOND` times a second.
        """
        if rng is None:
            import random

            rng = random.Random()
        fair = min(readers / LOOKS_PER_SECOND, LONGEST_DELAY)
        longest = max(0.02, fair)
        while True:
            yield longest * rng.uniform(0.5, 1.0)
            longest = min(max(1.0, fair), 1.5 * longest)

    def describe(self, now: float) -> str:
        """What the last look found, as one sentence without its full stop. Touches no file."""
        age = "" if self._modified is None else f", {_age(now - self._modified)} old,"
        waited = "" if self._since is None else f" (looking for {_age(now - self._since)})"
        return f"scheduler file {self.path}{age} {self.reason}{waited}"

    def _refresh_folder(self) -> None:
        """List the folder: NFS then asks its server again, and forgets 'no such file'."""
        # A folder may be closed to listing and still let us open a file in it.
        with suppress(PermissionError), os.scandir(self.path.parent) as entries:
            for entry in entries:
                if entry.name == self.path.name:
                    break

    def _approve(self, status: os.stat_result) -> None:
        self._modified = status.st_mtime
        _refuse_exposed_contact(self.path, status)

    def _why_unreadable(self, exc: OSError) -> str:
        if isinstance(exc, PermissionError):
            with suppress(FileNotFoundError, NotADirectoryError):
                self._refuse_if_foreign()
        if not isinstance(exc, FileNotFoundError):
            return f"cannot be read: {exc.strerror}"
        if self.path.parent.is_dir():
            return "does not exist"
        return "does not exist, nor does its folder"

    def _refuse_if_foreign(self) -> None:
        try:
            status = os.stat(self.path)
        except PermissionError:  # the folder is closed to us: we cannot tell whose file it is
            return
        self._approve(status)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"  # the file server's clock may be ahead of ours


async def wait_for_contact(
    path: StrPath,
    timeout: float,
    *,
    stale: Collection[str] = (),
    log: Callable[[str], None] = _log.info,
) -> Contact:
    """Wait until the scheduler file `path` holds the contact of a scheduler.

    Parameters
    ----------
    path : path
        The scheduler file.
    timeout : float
        Seconds to wait at most.
    stale : collection of str
        Ids of schedulers known to be gone, whose file is therefore not waited for.
    log : callable
        Is told what is being waited for: after two seconds, and then ever more rarely.

    Raises
    ------
    RendezvousTimeoutError
        If there is none in time.
    TokenError
        If others can read the file, or another user wrote it.
    """
    reader = SchedulerFileReader(path, stale)
    delays = reader.delays(readers=ranks_like_us())
    now = time.monotonic()
    deadline, silence = now + timeout, FIRST_REPORT
    next_report = now + silence
    while True:
        contact = await _look(reader, min(deadline - now, PATIENCE))
        if contact is not None:
            return contact
        now = time.monotonic()
        if now >= deadline:
            raise _timeout_error(reader, timeout)
        if now >= next_report:
            log(f"waiting for a scheduler: {reader.describe(time.time())}")
            silence = min(2 * silence, LONGEST_SILENCE)
            next_report = now + silence
        await asyncio.sleep(min(next(delays), deadline - now))
        now = time.monotonic()


def ranks_like_us() -> int:
    """How many ranks were started together with this one, itself counted, as far as we are told."""
    try:
        return launched_world().size
    except ConfigError:
        return 1


def _timeout_error(reader: SchedulerFileReader, timeout: float) -> RendezvousTimeoutError:
    return RendezvousTimeoutError(
        f"no scheduler within {round(timeout, 2):g} s: {reader.describe(time.time())}. "
        f"Check that one was started with --scheduler-file {_quoted(reader.path)} and that "
        f"this host ({socket.gethostname()}) sees that folder."
    )


async def _look(reader: SchedulerFileReader, seconds: float) -> Contact | None:
    """One probe, in a thread: a file server that is gone stops the thread and not the loop."""
    look = in_thread(reader.probe, time.time())
    try:
        seconds = max(seconds, SHORTEST_LOOK)
        await asyncio.wait({look}, timeout=seconds)
        if look.done():
            return look.result()
    finally:
        look.cancel()
    reader.reason = f"is on a file system that did not answer for {seconds:.2g} s"
    return None
