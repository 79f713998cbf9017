"""What the SSH launcher starts on each host: one process that runs its scheduler or its nannies.

``python -m hpcdask.launchers.remote`` says hello on stdout before it imports anything that may be
missing. Then it reads lines of JSON from stdin, never from its arguments or environment, which
others can see: first its settings, with the cluster token among them, then commands:

=============================================================  =====================================
``{"do": "start", "name", "role", "options", ...}``            start a scheduler or a worker
``{"do": "end", "name", "reason"}``                            end one of these
``{"do": "quit", "reason"}``                                   end all, and this process
``{"do": "nothing"}``                                          we are still here
=============================================================  =====================================

It answers on stdout, by lines that begin with `MARK`, since a login shell may print there, too:
``hello``, ``ready`` or ``refused``, ``started`` or ``failed``, and ``ended``. Its log, and whatever
tasks print, goes to stderr, or into a file.

When stdin ends, the launcher or the connection is gone: all that runs here ends. So it does when
nothing was read for so long that the connection must have been cut without a sign.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from hpcdask._version import __version__

#: Begins each of our lines on stdout.
MARK = "hpcdask-remote "
#: Seconds that all has to end in when the launcher is gone.
_ORPHAN_GRACE = 10.0


def main() -> int:
    """Serve the launcher until it, or the connection, is gone."""
    tell(1, say="hello", version=__version__, python=sys.version.split()[0])
    from hpcdask import config
    from hpcdask.errors import ConfigError
    from hpcdask.launchers.process import event_loop
    from hpcdask.stdio import print_line_by_line, take_stdin, take_stdout

    stdin = take_stdin()
    first, _, rest = _read_first(stdin).partition(b"\n")
    if not first:
        return 0  # the launcher does not want us
    settings = json.loads(first)
    if settings["log_directory"]:
        try:
            _log_into(settings["log_directory"], settings["title"])
        except OSError as exc:
            tell(1, say="refused", why=f"cannot write to its --log-directory: {exc}")
            return 1
    try:
        config.current()
    except ConfigError as exc:
        tell(1, say="refused", why=f"its configuration is in error: {exc}")
        return 1
    stdout = take_stdout()
    print_line_by_line()
    with event_loop() as loop:
        loop.run_until_complete(_serve(settings, stdin, rest, stdout))
    # A task that never returns must not keep the process: a thread pool of its would be joined.
    sys.stderr.flush()
    os._exit(0)


def tell(stdout: int, **what: Any) -> None:
    """Say something to the launcher."""
    line = (MARK + json.dumps(what) + "\n").encode()
    with contextlib.suppress(OSError):  # it is gone, which stdin tells, too
        os.write(stdout, line)


def _read_first(stdin: int) -> bytes:
    """Read until there is a line, and perhaps more; empty if there will be none."""
    received = b""
    while b"\n" not in received:
        data = os.read(stdin, 65536)
        if not data:
            return b""
        received += data
    return received


def _log_into(folder: str, title: str) -> None:
    """Send stderr into a file of its own in a folder of this host."""
    folder = os.path.expanduser(folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    name = f"hpc-dask-{title}-{os.uname().nodename}-{os.getpid()}.log"
    file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    os.close(file)


async def _serve(settings: dict[str, Any], stdin: int, rest: bytes, stdout: int) -> None:
    from hpcdask import logs, sizing
    from hpcdask.launchers.process import first_of, stop_signals

    logs.configure(settings["log_level"])
    agent = Agent(settings, stdout)
    inbox = Inbox(stdin, rest)
    # The address at which the launcher has reached us is one that others can reach, too.
    connection = os.environ.get("SSH_CONNECTION", "").split()
    address = connection[2] if len(connection) == 4 else ""
    agent.say("ready", cpus=sizing.cpus_here(), address=address)
    with stop_signals(for_good=True) as stopped:
        serving = asyncio.ensure_future(agent.serve(inbox, settings["silence"]))
        await first_of(serving, stopped)
        if serving.done():
            await agent.end(serving.result())
        else:
            serving.cancel()
            await agent.end("the host was asked to end it", stopped.result() == signal.SIGTERM)


class Inbox:
    """Lines from the launcher, read in a thread: it must notice the end whatever the loop does."""

    def __init__(self, stdin: int, rest: bytes) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: there will be no more
        self.last_heard = time.monotonic()
        self._stdin, self._rest = stdin, rest
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, name="hpcdask-launcher-watch", daemon=True).start()

    def _read(self) -> None:
        pending = self._rest
        while True:
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self._put(line)
            self.last_heard = time.monotonic()
            try:
                data = os.read(self._stdin, 65536)
            except OSError:
                data = b""
            if not data:
                break
            pending += data
        self._put(None)
        threading.Event().wait(_ORPHAN_GRACE)
        os._exit(1)

    def _put(self, line: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)


class Agent:
    """Does on this host what the launcher says."""

    def __init__(self, settings: dict[str, Any], stdout: int) -> None:
        self._settings, self._stdout = settings, stdout
        self._services: dict[str, Any] = {}  # by name
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, what: str, **details: Any) -> None:
        """Tell the launcher."""
        tell(self._stdout, say=what, **details)

    async def serve(self, inbox: Inbox, silence: float) -> str:
        """Follow commands until there are no more; return why."""
        while True:
            left = inbox.last_heard + silence - time.monotonic()
            try:
                line = await asyncio.wait_for(inbox.lines.get(), max(left, 0.01))
            except asyncio.TimeoutError:
                if time.monotonic() - inbox.last_heard < silence:
                    continue
                reason = f"nothing was heard from the launcher for {silence:g} s"
                _log().warning("ending: %s", reason)
                return reason
            if line is None:
                return "its launcher, or the connection to it, is gone"
            command = json.loads(line)
            what = command.pop("do")
            if what == "quit":
                return str(command["reason"])
            if what != "nothing":
                work = self._start(**command) if what == "start" else self._end_one(**command)
                task = asyncio.ensure_future(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def end(self, reason: str, leaves: bool = False) -> None:
        """End all that runs here; where it `leaves`, without losing what only it holds."""
        for task in self._tasks:
            task.cancel()
        services = list(self._services.values())
        ends = [each.leave(reason) if leaves else each.close(reason) for each in services]
        await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    async def _start(self, name: str, role: str, options: dict[str, Any], **shape: Any) -> None:
        from hpcdask.errors import ConfigError

        try:
            make = self._scheduler if role == "scheduler" else self._worker
            service = self._services[name] = make(name, options, **shape)
            await service.start()
        except Exception as exc:
            self._services.pop(name, None)
            is_known = isinstance(exc, (OSError, ValueError, RuntimeError))
            text = str(exc) if is_known and str(exc) else f"{type(exc).__name__}: {exc}"
            if isinstance(exc, ImportError):
                text += "; install what hpcdask, or your worker class, needs there"
            self.say("failed", name=name, why=text, is_option=isinstance(exc, ConfigError))
            return
        if service.status == "running":
            self.say("started", name=name, **_about(service))
            await service.finished()
        self._services.pop(name, None)
        self.say("ended", name=name, failure=service.failure)

    async def _end_one(self, name: str, reason: str) -> None:
        service = self._services.get(name)
        if service is not None:
            await service.close(reason)

    def _trust(self) -> dict[str, Any]:
        token = self._settings["token"]
        return {"token": token, "auth": token is not None}

    def _scheduler(self, name: str, options: dict[str, Any]) -> Any:
        from hpcdask.scheduler import Scheduler

        return Scheduler(own_process=True, **self._trust(), **options)

    def _worker(
        self, name: str, options: dict[str, Any], scheduler: str, kind: str, share: int
    ) -> Any:
        """Make a worker that shares this host with others, `share` in all."""
        from hpcdask.nanny import Nanny
        from hpcdask.sizing import Sharing

        make = class_of(kind)
        options.setdefault("sharing", Sharing.here(share))
        if issubclass(make, Nanny):
            options.setdefault("log_level", self._settings["log_level"])
        return make(scheduler, name=name, **self._trust(), **options)


def class_of(kind: str) -> type[Any]:
    """Return the class that a user means by `worker_class`, or by ``--remote-dask-worker``.

    Parameters
    ----------
    kind : str
        As of `find_class`; or a module that has a class Nanny, or else Worker.

    Raises
    ------
    ConfigError
        If there is none.
    """
    from hpcdask.errors import ConfigError
    from hpcdask.worker_class import find_class

    problem = None
    for path in (kind, f"{kind}.Nanny", f"{kind}.Worker"):
        try:
            return find_class(path)
        except ConfigError as exc:
            problem = problem or exc
    assert problem is not None
    raise problem


def _about(service: Any) -> dict[str, Any]:
    """What the launcher is to know of a service that has started."""
    from dataclasses import asdict

    from hpcdask.scheduler import Scheduler

    if isinstance(service, Scheduler):
        contact = asdict(service.contact())
        del contact["token"]  # which the launcher has: it need not travel again
        return {"contact": contact}
    address = getattr(service, "worker_address", service.address)
    return {"address": address, "nanny": getattr(service, "id", "")}


def _log() -> Any:
    import logging

    return logging.getLogger("hpcdask.remote")


if __name__ == "__main__":
    sys.exit(main())
