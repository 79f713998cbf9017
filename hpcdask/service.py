"""What scheduler, worker and nanny have in common: a life from `start` to `finished`."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, TypeVar

from hpcdask import host as hosts
from hpcdask.config import Settings
from hpcdask.errors import ConfigError, LaunchError

log = logging.getLogger("hpcdask.service")

#: Exit code of a worker process that was told to end. Not 0, with which a task can end it, too:
#: by os._exit(0), or in a library that calls exit().
ENDED_AS_ASKED = 100

#: Seconds that the server of a preload may take for its next bytes.
_DOWNLOAD = 30.0

Self = TypeVar("Self", bound="Service")


class Lifetime(NamedTuple):
    """How long a worker is to live; in seconds."""

    mean: float
    stagger: float  # more or less, so that not all workers end at the same time

    @classmethod
    def of(
        cls, lifetime: float | str | None, stagger: float | str, restart: bool
    ) -> Lifetime | None:
        """Read what a user gave; None is for ever.

        Raises
        ------
        ConfigError
            If one is no duration, they do not go together, or a restart has nothing to follow.
        """
        spread = hosts.parse_timedelta(stagger)
        if lifetime is None:
            if spread or restart:
                what = "lifetime-stagger" if spread else "lifetime-restart"
                raise ConfigError(f"--{what} means nothing without a lifetime")
            return None
        mean = hosts.parse_timedelta(lifetime)
        if not mean:
            raise ConfigError("a lifetime of 0 s is none; leave it out to live for ever")
        if spread >= mean:
            raise ConfigError(
                f"a lifetime of {mean:g} s cannot be {spread:g} s shorter; give less stagger"
            )
        return cls(mean, spread)

    @classmethod
    def settled(
        cls,
        settings: Settings,
        lifetime: float | str | None,
        stagger: float | str | None,
        restart: bool | None,
    ) -> Lifetime | None:
        """As `of`, where None is what is configured; stagger and restart for who has a lifetime."""
        mean = settings.value("worker.lifetime.duration", lifetime)
        if mean is not None and stagger is None:
            stagger = settings["worker.lifetime.stagger"]
        return cls.of(mean, stagger or 0.0, bool(restart))

    def drawn(self) -> float:
        """A length for one worker."""
        return self.mean + random.uniform(-self.stagger, self.stagger)


class Service(abc.ABC):
    """A process's part in a cluster.

    ``async with service:`` starts and closes it, ``await service`` starts it, and
    ``await service.finished()`` waits until it has ended, for whatever reason.

    Attributes
    ----------
    status : str
        "created", "starting", "running", "closing", "closed" or "failed".
    failure : str
        Why it ended although nobody asked it to; empty otherwise.
    has_run : bool
        Whether it ever got as far as "running".
    lifetime : Lifetime or None
        How long it runs before it leaves by itself.
    on_closing : callable
        Called when its end begins.
    """

    def __init__(
        self, preload: Iterable[str] = (), preload_argv: Iterable[str] = (), loop: Any = None
    ) -> None:
        self.status = "created"
        self.failure = ""
        self.has_run = False
        self.lifetime: Lifetime | None = None
        self._leaves_until = 0.0
        self.on_closing: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None
        # An IOLoop of tornado is a cover of one of asyncio.
        self._given_loop: asyncio.AbstractEventLoop | None = getattr(loop, "asyncio_loop", loop)
        self._preloads = Preloads(self, list(preload), list(preload_argv))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: asyncio.Event | None = None
        self._closing: asyncio.Task[None] | None = None

    @abc.abstractmethod
    async def _start(self) -> None:
        """Act: listen, dial, spawn."""

    @abc.abstractmethod
    async def _close(self, reason: str) -> None:
        """Undo all that `_start` may have done, in whatever state it was left."""

    def start(self, where: int | str | None = None) -> Any:
        """Start, or raise and leave nothing behind.

        To be awaited; but where the service was made with a loop that runs in another thread, this
        returns when it has started there.

        If it is asked to close meanwhile, that is no error: it returns, and is closed.

        Parameters
        ----------
        where : int or str, optional
            Port or address to listen on, instead of what the service was made with.
        """
        if where is not None:
            self._listen_at(where)
        loop = self._given_loop
        if loop is None or asyncio._get_running_loop() is loop:
            return self._start_once()
        if not loop.is_running():
            raise RuntimeError(
                "the loop that was given does not run: start it in a thread of its own first"
            )
        return asyncio.run_coroutine_threadsafe(self._start_once(), loop).result()

    def _listen_at(self, where: int | str) -> None:
        """Change what `_start` will listen on."""
        raise TypeError(f"a {type(self).__name__} listens on nothing, so {where!r} means nothing")

    async def _start_once(self: Self) -> Self:
        if self.status != "created":
            return self
        self.loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.status = "starting"
        try:
            self._preloads.load()
            await self._preloads.setup()
            await self._start()
        except BaseException as exc:
            asked_to_close = self._closing is not None and isinstance(exc, Exception)
            with contextlib.suppress(Exception):
                await self.close("it could not start")
            if asked_to_close and not self.failure:
                return self
            self.status = "failed"
            if self.failure:  # which is why something else then went wrong
                raise LaunchError(self.failure) from exc
            raise
        if self.status == "starting":
            self.status = "running"
            self.has_run = True
            if self.lifetime is not None:
                self._spawn(self._live_for(self.lifetime.drawn()))
        return self

    async def _live_for(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.leave("its lifetime is over")

    async def leave(
        self, reason: str = "asked to leave", limit: float | None = None, waits: bool = False
    ) -> None:
        """End, but hand over first what others still need; here there is nothing.

        Parameters
        ----------
        limit : float, optional
            Seconds that this may take, if not as long as usual.
        waits : bool
            Whether to wait for somebody to come who can take it, if nobody is there.
        """
        await self.close(reason)

    def _longest(self, limit: float) -> float:
        """Seconds to leave within. Who is asked again, with less time, has that of before."""
        now = time.monotonic()
        self._leaves_until = max(self._leaves_until, now + limit)
        return self._leaves_until - now

    async def close(self, reason: str = "closed") -> None:
        """End it; may be called again, and from anywhere on its loop."""
        if self.status == "created":
            self.status = "closed"
            return
        if self._closing is None:
            self.status = "closing"
            self.on_closing()
            self._closing = asyncio.get_running_loop().create_task(self._close_once(reason))
        await asyncio.shield(self._closing)

    async def _fail(self, reason: str) -> None:
        """End it because it cannot go on."""
        if self._closing is None:
            self.failure = reason
        await self.close(reason)

    def _close_soon(self, reason: str) -> None:
        """As `close`, for a caller whom the end may cancel."""
        asyncio.get_running_loop().create_task(self.close(reason))

    def _fail_soon(self, reason: str) -> None:
        """As `_fail`, for a caller whom the end may cancel."""
        asyncio.get_running_loop().create_task(self._fail(reason))

    async def _close_once(self, reason: str) -> None:
        try:
            await self._preloads.teardown()
            await self._close(reason)
        finally:
            # One of these may be who asked us to close and waits for it: it must not be waited for.
            for task in self._tasks - {self._closing}:
                task.cancel()
            self.status = "failed" if self.failure else "closed"
            if self._ended is not None:
                self._ended.set()

    async def finished(self) -> None:
        """Wait until it has been closed, by `close`, by a signal or from elsewhere."""
        if self._ended is not None:
            await self._ended.wait()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that ends with the service at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_has_ended)
        return task

    def _spawned_has_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s: an internal task failed", self, exc_info=task.exception())

    def __await__(self: Self) -> Generator[Any, Any, Self]:
        return self._start_once().__await__()

    async def __aenter__(self: Self) -> Self:
        return await self._start_once()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Preloads:
    """Modules, files or URLs that are imported before a service connects to anything.

    Those that have ``dask_setup(service)`` or ``dask_teardown(service)``, plain or async, get them
    called; a ``dask_setup`` that is a click command gets `argv`.
    """

    def __init__(self, service: object, names: list[str], argv: list[str]) -> None:
        self._service, self._names, self._argv = service, names, argv
        self._modules: dict[str, ModuleType] = {}  # by the name given, in that order
        self._to_tear_down: list[tuple[str, ModuleType]] = []

    def load(self) -> None:
        """Import them.

        Raises
        ------
        LaunchError
            If one cannot be found, or raises.
        """
        for name in self._names:
            try:
                self._modules[name] = _import(name)
            except Exception as exc:
                raise LaunchError(f"cannot preload {name!r}: {_what_and_where(exc)}") from exc

    async def setup(self) -> None:
        """Call their ``dask_setup``.

        Raises
        ------
        LaunchError
            If one raises.
        """
        for name, module in self._modules.items():
            self._to_tear_down.append((name, module))
            try:
                await self._set_up(getattr(module, "dask_setup", None))
            except Exception as exc:
                raise LaunchError(
                    f"dask_setup of preload {name!r} failed: {_what_and_where(exc)}"
                ) from exc

    async def _set_up(self, function: Any) -> None:
        if hasattr(function, "callback"):  # a click command
            context = function.make_context("dask_setup", list(self._argv))
            await _maybe_await(function.callback(self._service, **context.params))
        elif function is not None:
            await _maybe_await(function(self._service))

    async def teardown(self) -> None:
        """Call ``dask_teardown`` of those that were set up, the last one first.

        One that raises is only logged.
        """
        while self._to_tear_down:
            name, module = self._to_tear_down.pop()
            function = getattr(module, "dask_teardown", None)
            try:
                if function is not None:
                    await _maybe_await(function(self._service))
            except Exception as exc:
                what = _what_and_where(exc)
                log.warning("dask_teardown of preload %r failed: %s", name, what)


async def _maybe_await(value: Any) -> None:
    if inspect.isawaitable(value):
        await value


def _import(name: str) -> ModuleType:
    if name.startswith(("http://", "https://")):
        return _download(name)
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LaunchError("there is no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _download(url: str) -> ModuleType:
    """The module whose source is at an URL."""
    import urllib.request  # here, since hardly anybody needs it

    if url.startswith("http:"):
        log.warning("preloading %s unencrypted: who is on the way can change what runs as you", url)
    with urllib.request.urlopen(url, timeout=_DOWNLOAD) as answer:
        source = answer.read()
    module = ModuleType(Path(url).stem)
    module.__file__ = url
    exec(compile(source, url, "exec"), module.__dict__)
    return module


def _what_and_where(exc: Exception) -> str:
    """One line on an error in a user's module: what it says, and which line raised it."""
    if isinstance(exc, LaunchError):  # our own says it all
        return str(exc)
    text = str(exc) or repr(exc)
    if hasattr(exc, "format_message"):  # of click, about its arguments
        return str(exc.format_message())
    frames = traceback.extract_tb(exc.__traceback__)
    # Innermost first; the import system's own frames tell a user nothing.
    for frame in reversed(frames):
        if not frame.filename.startswith("<frozen ") and frame.filename != __file__:
            return f"{type(exc).__name__}: {text} ({frame.filename}, line {frame.lineno})"
    return f"{type(exc).__name__}: {text}"
