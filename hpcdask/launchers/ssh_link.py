"""One host of an SSH cluster as the launcher sees it: a connection, and the process at its end."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.remote import MARK
from hpcdask.launchers.ssh_errors import (
    import_asyncssh,
    why_another_version,
    why_not_connected,
    why_not_started,
    why_silent,
)
from hpcdask.launchers.ssh_hosts import SSHHost
from hpcdask.worker_child import ending
from hpcdask.worker_class import path_of

log = logging.getLogger("hpcdask.ssh")

#: What ``asyncssh.connect`` is told unless the user says otherwise: seconds for TCP, for the login,
#: between two looks at an idle connection, and how many of these may go unanswered.
CONNECT_DEFAULTS = {
    "connect_timeout": 15,
    "login_timeout": 30,
    "keepalive_interval": 5,
    "keepalive_count_max": 3,
}
#: Seconds between two signs of life.
_HEARTBEAT = 5.0
#: Seconds that a remote process has to end when it is asked to.
_FAREWELL = 8.0
#: Lines that are kept to tell why a process has ended, and seconds to wait for them; bytes of a
#: line that is shown at once.
_LAST_LINES, _LAST_WORDS, _LONGEST_LINE = 20, 0.3, 65536


class SSHLink:
    """Starts `hpcdask.launchers.remote` on a host, and talks with it.

    Parameters
    ----------
    host : SSHHost
    settings : mapping
        What the process reads first, see there; the token is among it.
    start_timeout : float
        Seconds that the process, and whatever it is told to start, may take for that.
    on_ended : callable
        Called with a name and the reason, empty if it was asked to, when one of those that were
        started has ended.
    on_lost : callable
        Called with the reason when the connection, or the process, has ended by itself.

    Attributes
    ----------
    cpus : int
        That the host grants us; once it is open.
    address : str
        At which it was reached, as it sees that itself; empty if it does not know.
    is_open : bool
    running : set of str
        Names of those that were started there and have not ended.
    """

    def __init__(
        self,
        host: SSHHost,
        settings: Mapping[str, Any],
        start_timeout: float,
        on_ended: Callable[[str, str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.host = host
        self.cpus, self.address = 1, ""
        self.is_open = False
        self.running: set[str] = set()
        self._settings, self._start_timeout = settings, start_timeout
        self._on_ended, self._on_lost = on_ended, on_lost
        self._connection: Any = None
        self._channel: Any = None
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}  # by what is waited for
        self._gone: asyncio.Future[str] | None = None  # the reason, once it has ended
        self._is_closing = False
        self._has_said_hello = self._is_told_settings = False
        self._offered_key = ""  # fingerprint of the host key, if that was not trusted
        self._answer_lines, self._shown_lines = Lines(), Lines()
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._beating: asyncio.Task[None] | None = None

    # -- Life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and start the process.

        Raises
        ------
        LaunchError
            If there is no way to; the text names the host, the cause and the cure.
        """
        self._gone = asyncio.get_running_loop().create_future()
        try:
            await self._connect()
            await self._start_process()
        except BaseException:
            await self.close("it could not start")
            raise
        self.is_open = True
        self._beating = asyncio.ensure_future(self._beat())

    async def _connect(self) -> None:
        asyncssh = import_asyncssh()
        options = {**CONNECT_DEFAULTS, **self.host.options}
        options.setdefault("client_factory", lambda: _client(self))
        try:
            self._connection = await asyncssh.connect(self.host.name, **options)
        except TypeError as exc:  # a keyword that there is not
            raise ConfigError(f"connect_options of {self.host}: {exc}") from exc
        except (OSError, asyncssh.Error, asyncio.TimeoutError, ValueError) as exc:
            raise LaunchError(why_not_connected(self.host, exc, self._offered_key)) from exc

    async def _start_process(self) -> None:
        asyncssh = import_asyncssh()
        command = f"{self.host.python} -m hpcdask.launchers.remote"
        try:
            # Whatever ~/.ssh/config says: a terminal would not pass the end of stdin on.
            self._channel, _ = await self._connection.create_session(
                lambda: _session(self),
                command,
                encoding=None,
                request_pty=False,
                x11_forwarding=False,
            )
        except (OSError, asyncssh.Error) as exc:
            raise LaunchError(f"{self.host} lets us run no command: {exc}") from exc
        hello = await self._answer("hello")
        self._has_said_hello = True
        if why := why_another_version(self.host, hello["version"], hello["python"]):
            raise LaunchError(why)
        here = ".".join(map(str, sys.version_info[:2]))
        if hello["python"].rpartition(".")[0] != here:
            text = "%s has Python %s and we have %s: functions may not be understood there"
            log.warning(text, self.host, hello["python"], here)
        self._is_told_settings = True
        self._write(self._settings)
        ready = await self._answer("ready")
        self.cpus, self.address = ready["cpus"], ready["address"]
        text = "connected to %s: hpcdask %s, Python %s, %d CPUs"
        log.info(text, self.host, hello["version"], hello["python"], self.cpus)

    async def close(self, reason: str) -> None:
        """End the process with all that it runs, and the connection."""
        self._is_closing = True
        self.is_open = False
        if self._beating is not None:
            self._beating.cancel()
        if self._channel is not None and self._gone is not None and not self._gone.done():
            if self._is_told_settings:  # which it reads first; without any it ends, too
                self._write({"do": "quit", "reason": reason})
            with contextlib.suppress(OSError):
                self._channel.write_eof()
            await asyncio.wait({self._gone}, timeout=_FAREWELL)
        if self._connection is not None:
            self._connection.close()
            with contextlib.suppress(Exception):  # whatever ended it: it has
                await asyncio.wait_for(self._connection.wait_closed(), 2.0)

    def has_gone(self, reason: str) -> None:
        """The process or the connection has ended; the first to say so knows best."""
        if self._gone is None or self._gone.done():
            return
        self._gone.set_result(reason)
        was_open, self.is_open = self.is_open, False
        self.running.clear()
        for what in list(self._answers):
            self._fail(what, f"lost {self.host}: {reason}")
        if self._connection is not None:
            self._connection.abort()
        if was_open and not self._is_closing:
            self._on_lost(reason)

    # -- What it is told to do --------------------------------------------------------------------

    async def start(self, name: str, role: str, options: Mapping[str, Any], **shape: Any) -> Any:
        """Start a scheduler or a worker there; return what is told of it.

        Raises
        ------
        ConfigError
            If an option has a value that it cannot have.
        LaunchError
            If it cannot start for another reason.
        """
        try:
            self._write({"do": "start", "name": name, "role": role, "options": options, **shape})
            return await self._answer(name)
        except BaseException:
            self.end_soon(name, "nobody waits for it any more")
            raise

    def end_soon(self, name: str, reason: str) -> None:
        """End what was started by this name."""
        self._write({"do": "end", "name": name, "reason": reason})

    async def forward(self, address: str, port: int) -> int:
        """Open a port on this host that leads to an address as that host sees it; return it."""
        listener = await self._connection.forward_local_port("127.0.0.1", 0, address, port)
        return int(listener.get_port())

    def _write(self, what: Mapping[str, Any]) -> None:
        line = json.dumps(what, default=_plain).encode() + b"\n"
        with contextlib.suppress(OSError):  # it has gone, which we are told as well
            self._channel.write(line)

    async def _beat(self) -> None:
        """Say that we are still here, often enough."""
        interval = min(_HEARTBEAT, self._settings["silence"] / 4)
        while True:
            await asyncio.sleep(interval)
            self._write({"do": "nothing"})

    async def _answer(self, what: str) -> dict[str, Any]:
        future = self._answers[what] = asyncio.get_running_loop().create_future()
        assert self._gone is not None
        if self._gone.done():
            self._fail(what, f"lost {self.host}: {self._gone.result()}")
        try:
            return await asyncio.wait_for(future, self._start_timeout)
        except asyncio.TimeoutError:
            cure = why_silent(self.host) if what == "hello" else ""
            raise LaunchError(
                f"{self.host} said nothing within {self._start_timeout:g} s after it was asked for "
                f"{what}{cure}"
            ) from None
        finally:
            del self._answers[what]

    # -- What it says -----------------------------------------------------------------------------

    def received(self, data: bytes, is_stderr: bool) -> None:
        """Deal with a piece of its output."""
        if is_stderr:
            for line in self._shown_lines.add(data):
                self._show(line)
            return
        for line in self._answer_lines.add(data):
            if line.startswith(MARK):
                self._said(json.loads(line[len(MARK) :]))
            else:  # a login shell, or what ended instead of starting us
                self._last.append(line)

    def exited(self, code: int) -> None:
        """Its process has ended, with this code, or by this signal if negative."""
        # Its last words may still be on the way; and what tasks have started may keep its pipes.
        asyncio.get_running_loop().call_later(_LAST_WORDS, self.ended, code)

    def ended(self, code: int | None) -> None:
        """Nothing more will come of it."""
        how = "ended" if code is None else ending(code)
        for line in (*self._answer_lines.rest(), *self._shown_lines.rest()):
            self._show(line)
        if not self._has_said_hello:
            said = "\n".join(self._last)
            self._fail("hello", why_not_started(self.host, code, how, said))
        last = f", and said last: {self._last[-1]}" if self._last else ""
        self.has_gone(f"its process {how}{last}")

    def _said(self, message: dict[str, Any]) -> None:
        say, name = message["say"], message.get("name", "")
        if say == "ended":
            self.running.discard(name)
            self._on_ended(name, message["failure"])
        elif say == "failed":
            kind = ConfigError if message["is_option"] else LaunchError
            self._fail(name, f"{self.host}: {message['why']}", kind)
        elif say == "refused":
            self._fail("ready", f"{self.host}: {message['why']}")
        else:
            if say == "started":
                self.running.add(name)
            future = self._answers.get(name or say)
            if future is not None and not future.done():
                future.set_result(message)

    def _fail(self, what: str, why: str, kind: type[Exception] = LaunchError) -> None:
        future = self._answers.get(what)
        if future is not None and not future.done():
            future.set_exception(kind(why))

    def _show(self, line: str) -> None:
        """Show what was logged or printed there, with the host before it."""
        self._last.append(line)
        if self._has_said_hello:  # else it is told in the error
            # Ours may be closed, or None under pythonw and some daemons.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                sys.stderr.write(f"[{self.host}] {line}\n")
                sys.stderr.flush()


def _client(link: SSHLink) -> Any:
    """What asyncssh tells of a connection."""
    asyncssh = import_asyncssh()

    class Client(asyncssh.SSHClient):  # type: ignore[name-defined, misc]
        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            link._offered_key = key.get_fingerprint()
            return False

        def connection_lost(self, exc: Exception | None) -> None:
            link.has_gone(f"its connection ended: {exc or 'it was closed there'}")

    return Client()


def _session(link: SSHLink) -> Any:
    """What asyncssh tells of a process."""
    asyncssh = import_asyncssh()

    class Session(asyncssh.SSHClientSession):  # type: ignore[name-defined, misc]
        def data_received(self, data: bytes, datatype: int | None) -> None:
            link.received(data, datatype == asyncssh.EXTENDED_DATA_STDERR)

        def exit_status_received(self, status: int) -> None:
            link.exited(status)

        def exit_signal_received(self, name: str, core: bool, text: str, language: str) -> None:
            link.exited(-getattr(signal, f"SIG{name}", 0))

        def connection_lost(self, exc: Exception | None) -> None:
            if exc is None:  # else the connection is lost, which it says itself
                link.ended(link._channel.get_returncode() if link._channel else None)

    return Session()


class Lines:
    """Puts pieces of text together to lines."""

    def __init__(self) -> None:
        self._pending = b""

    def add(self, data: bytes) -> list[str]:
        """Lines that are complete now, without their ends; of a very long one what there is."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _LONGEST_LINE:
            lines.append(self._pending)
            self._pending = b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def rest(self) -> list[str]:
        """What is left at the end."""
        return self.add(b"\n") if self._pending else []


def _plain(value: object) -> Any:
    """What JSON has no form for, among options."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type):
        return path_of(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise ConfigError(f"an option for another host cannot be {value!r}: it is no plain value")
