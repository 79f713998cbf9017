"""Actors on the worker where they live: whose turn it is, and what is answered to whom.

An actor's methods run one at a time in a thread of its own, in the order in which they were called.
Its coroutine methods begin in their order on the worker's loop, and wait for none of the others.

Actors may call each other in a circle. So a call that comes of a method of the very actor that it
is for does not wait for that method to end, but only until it waits for something itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import itertools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.errors import LostActorError
from hpcdask.messages import (
    ActorReturned,
    Blob,
    CallActor,
    Failure,
    Reply,
    TakeReturned,
    TaskError,
    Version,
)
from hpcdask.places import coroutine_is_of, current, on_behalf_of
from hpcdask.threads import in_thread
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.arguments import Stored
from hpcdask.wire.effort import is_quickly_pickled, loads_if_quick
from hpcdask.wire.serialize import loads

if TYPE_CHECKING:
    from hpcdask.comm import Comm


#: Keys of the actors in a method of which the calling code runs, or was called from, the first
#: first; one may be there several times.
callers: ContextVar[tuple[str, ...]] = ContextVar("callers", default=())


class Here(NamedTuple):
    """Arguments (args, kwargs), or what a method has returned, within this process."""

    value: Any


class Packed(NamedTuple):
    """What a method has returned, for another process."""

    value: Blob
    futures: list[Any]  # those within, which nobody else may hold yet


Outcome = Here | Packed | TaskError


class Call(NamedTuple):
    """One call of a method that is to come."""

    home: ActorHome
    name: str
    arguments: Here | Blob
    callers: tuple[str, ...]
    outcome: concurrent.futures.Future[Outcome]


class Turn:
    """Held by that one of an actor's methods which runs, but not while it waits."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        current.turn = self

    def __exit__(self, *exc: object) -> None:
        current.turn = None
        self._lock.release()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let others have it while the method waits."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class ActorHome(Stored):
    """An actor, as the worker that has made it holds it.

    Parameters
    ----------
    worker : Worker
        What `get_worker` gives in the actor's methods.
    version : Version
        Its key and attempt.
    instance : object
        The actor itself.
    """

    __slots__ = (
        "__weakref__",
        "_beginning",
        "_lines",
        "_lock",
        "_turn",
        "instance",
        "version",
        "worker",
    )

    def __init__(self, worker: Any, version: Version, instance: Any) -> None:
        self.worker, self.version, self.instance = worker, version, instance
        #: Calls to come, by how many methods of this very actor they came of; a thread serves each.
        self._lines: dict[int, SimpleQueue[Call | None]] = {}
        self._lock = threading.Lock()
        self._turn = Turn()
        self._beginning = asyncio.Lock()  # of coroutine methods, one after the other

    def __del__(self) -> None:
        for line in self._lines.values():
            line.put(None)

    def pack(self, value: Any) -> Packed:
        """Pickle what a method has returned."""
        raise NotImplementedError

    def call(
        self, name: str, arguments: Here | Blob, callers: tuple[str, ...]
    ) -> concurrent.futures.Future[Outcome]:
        """Have a method called in its turn.

        Its outcome is in the form in which the arguments are: pickled or not.
        """
        outcome: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        outcome.set_running_or_notify_cancel()  # who waits no more must not cancel it
        call = Call(self, name, arguments, (*callers, self.version.key), outcome)
        if inspect.iscoroutinefunction(getattr(type(self.instance), name, None)):
            asyncio.run_coroutine_threadsafe(self._run_coroutine(call), self.worker.loop)
            return outcome
        self._line(callers.count(self.version.key)).put(call)
        return outcome

    def _line(self, depth: int) -> SimpleQueue[Call | None]:
        with self._lock:
            line = self._lines.get(depth)
            if line is None:
                line = self._lines[depth] = SimpleQueue()
                work = partial(_work, line, self.worker)
                threading.Thread(target=work, name="hpcdask-actor", daemon=True).start()
            return line

    async def read(self, name: str) -> Packed:
        """The value of an attribute, now: whatever runs is not waited for."""
        if isinstance(getattr(type(self.instance), name, None), property):  # it may take long
            return await self._packed(await in_thread(self._read, name))
        return await self._packed(self._read(name))

    def _read(self, name: str) -> Any:
        with on_behalf_of(self.worker):
            return getattr(self.instance, name)

    # -- In the actor's thread ------------------------------------------------------------------

    def run(self, call: Call) -> None:
        """Run a method that is no coroutine function; whatever comes of it is its outcome."""
        callers.set(call.callers)
        try:
            args, kwargs = _arguments(call.arguments)
            with self._turn:
                value = getattr(self.instance, call.name)(*args, **kwargs)
            if inspect.iscoroutine(value):
                work = self._await(call, value)
                asyncio.run_coroutine_threadsafe(work, self.worker.loop)
            else:
                call.outcome.set_result(Here(value) if _is_here(call) else self.pack(value))
        except BaseException as exc:  # sys.exit() ends only the call
            self._raised(call, exc)

    def _raised(self, call: Call, exc: BaseException) -> None:
        call.outcome.set_result(to_task_error(exc, self.version.key, self.worker.address))
        exc.__traceback__ = None  # it holds the frames, and they the actor

    # -- On the worker's loop ----------------------------------------------------------------------

    async def _run_coroutine(self, call: Call) -> None:
        coroutine_is_of(self.worker)
        callers.set(call.callers)
        try:
            async with self._beginning:
                args, kwargs = await self._loaded(call.arguments)
                coroutine = getattr(self.instance, call.name)(*args, **kwargs)
        except BaseException as exc:
            self._raised(call, exc)
            return
        await self._await(call, coroutine)

    async def _await(self, call: Call, coroutine: Any) -> None:
        coroutine_is_of(self.worker)
        try:
            value = await coroutine
            call.outcome.set_result(Here(value) if _is_here(call) else await self._packed(value))
        except BaseException as exc:  # a SystemExit would end the loop
            self._raised(call, exc)

    async def _loaded(self, arguments: Here | Blob) -> Any:
        if isinstance(arguments, Here):
            return arguments.value
        with on_behalf_of(self.worker):
            is_done, value = loads_if_quick(arguments)
        return value if is_done else await in_thread(self._load, arguments)

    def _load(self, arguments: Blob) -> Any:
        with on_behalf_of(self.worker):
            return loads(arguments, polite=True)

    async def _packed(self, value: Any) -> Packed:
        if is_quickly_pickled(value):
            return self.pack(value)
        return await in_thread(self.pack, value)


def _work(line: SimpleQueue[Call | None], worker: Any) -> None:
    """Run the calls of an actor until it is let go of; the thread itself must not hold it."""
    current.worker = worker
    while True:
        call = line.get()
        if call is None:
            return
        call.home.run(call)
        del call


def _is_here(call: Call) -> bool:
    return isinstance(call.arguments, Here)


def _arguments(arguments: Here | Blob) -> Any:
    return arguments.value if isinstance(arguments, Here) else loads(arguments)


class Hosting:
    """A worker's answers to those who ask its actors for something.

    Parameters
    ----------
    address : str
        Of the worker.
    find : callable
        Return the value of a `Version` that is held here, or None.
    spawn : callable
        Runs a coroutine until the worker closes.
    futures_are_known : async callable
        Waits until the scheduler knows of futures that came with arguments: who called may let go
        of them when it has its answer.
    """

    def __init__(
        self,
        address: str,
        find: Callable[[Version], Any],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        futures_are_known: Callable[[], Awaitable[None]],
    ) -> None:
        self._address, self._find, self._spawn = address, find, spawn
        self._futures_are_known = futures_are_known
        self._receipts = itertools.count(1)
        #: Futures that were returned, by connection and receipt, until who called holds them too.
        self._returned: dict[Comm, dict[int, list[Any]]] = {}

    def asked(self, comm: Comm, message: CallActor) -> None:
        """Somebody calls a method or wants an attribute; what is called first begins first."""
        home = self._find(message.actor)
        if not isinstance(home, ActorHome):
            exc = LostActorError(
                f"the actor {message.actor.key!r} is not on {self._address} any more: it was let "
                "go of, or cancelled, or the cluster was restarted"
            )
            comm.send(Failure(message.request, to_task_error(exc, message.actor.key)))
        elif message.arguments is None:
            self._spawn(self._read(comm, message, home))
        else:
            outcome = home.call(message.name, message.arguments, message.callers)
            self._spawn(self._answer(comm, message, outcome))

    async def _read(self, comm: Comm, message: CallActor, home: ActorHome) -> None:
        try:
            self._send(comm, message, await home.read(message.name))
        except Exception as exc:
            error = to_task_error(exc, message.actor.key, self._address)
            comm.send(Failure(message.request, error))

    async def _answer(
        self, comm: Comm, message: CallActor, outcome: concurrent.futures.Future[Outcome]
    ) -> None:
        result = await asyncio.wrap_future(outcome)
        await self._futures_are_known()
        if isinstance(result, TaskError):
            comm.send(Failure(message.request, result))
        else:
            assert isinstance(result, Packed)
            self._send(comm, message, result)

    def _send(self, comm: Comm, message: CallActor, result: Packed) -> None:
        receipt = 0
        if result.futures and not comm.closed:
            receipt = next(self._receipts)
            self._returned.setdefault(comm, {})[receipt] = result.futures
        keys = tuple(future.key for future in result.futures)
        comm.send(ActorReturned(message.request, result.value, keys, receipt))

    def taken(self, comm: Comm, message: TakeReturned) -> None:
        """Who called holds the futures that were returned."""
        self._returned.get(comm, {}).pop(message.receipt, None)
        comm.send(Reply(message.request, None))

    def hung_up(self, comm: Comm) -> None:
        """A connection has ended; who was asked by it will take nothing."""
        self._returned.pop(comm, None)
