"""Actors as users hold them: the handle of one, and what its methods will return."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from hpcdask.client.future import Future, FutureState, _unpickled
from hpcdask.client.loop import CarriedError, is_in_loop, wait_for_result
from hpcdask.client.submission import pack_function, pack_with_futures
from hpcdask.errors import CommClosedError, LostActorError
from hpcdask.hosting import ActorHome, Here, Packed, callers
from hpcdask.messages import Blob, CallActor, Function, TakeReturned, TaskError, Version
from hpcdask.messages.client import CallActorThrough, TakeReturnedThrough
from hpcdask.peers import RequestFailedError, UnreachableError
from hpcdask.places import current_place, current_worker, lent_thread
from hpcdask.tracebacks import to_exception, to_task_error
from hpcdask.wire.arguments import Stored
from hpcdask.wire.serialize import function_name, loads

#: Seconds that the scheduler may take to tell how a worker ended of which the connection is gone,
#: and between two looks at what it has told.
_VERDICT, _LOOK = 2.0, 0.02
#: Begin of names that IPython looks for in whatever it shows.
_LOOKED_FOR = ("_ipython_", "_repr_")


class Actor:
    """An object that lives on one worker, with its state.

    Comes of the future of ``client.submit(Class, *args, actor=True)``, and may be an argument of
    tasks and of other actors' methods. Calling a method returns an `ActorFuture`; any other
    attribute gives its value, and with an asynchronous client an awaitable of it. While anyone
    holds an actor, or the future it came of, it lives.

    Methods run one at a time, in the order in which one caller has called them. Coroutine methods
    run beside them on the worker's event loop.

    Attributes
    ----------
    key : str
        That of the task which has made it.

    Raises
    ------
    LostActorError
        By any use, when the worker is gone or the actor was cancelled.

    Examples
    --------
    >>> class Counter:
    ...     def __init__(self):
    ...         self.n = 0
    ...
    ...     def increment(self):
    ...         self.n += 1
    ...         return self.n
    >>> counter = client.submit(Counter, actor=True).result()
    >>> counter.increment().result()
    1
    >>> counter.n
    1
    """

    __slots__ = ("__weakref__", "_address", "_cls", "_future", "_version", "key")

    key: str
    _cls: type[Any]
    _version: Version
    _address: str
    _future: Future

    def __init__(self) -> None:
        raise TypeError("client.submit(Class, actor=True).result() makes an Actor")

    def __getattr__(self, name: str) -> Any:
        try:
            on_class = getattr(self._cls, name)
        except AttributeError:
            if (name.startswith("__") and name.endswith("__")) or name.startswith(_LOOKED_FOR):
                raise AttributeError(f"{self!r} has no attribute {name!r}") from None
        else:
            if callable(on_class):
                return _method(self, name, on_class)
        value = self._begin(name, None)
        return value if self._future.client.asynchronous else value.result()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"cannot set {name!r} of {self!r} from here: give the class a method that does"
        )

    def __dir__(self) -> list[str]:
        names = [name for name in dir(self._cls) if not name.startswith("_")]
        return sorted({*object.__dir__(self), *names})

    def __repr__(self) -> str:
        return f"<Actor: {self._cls.__name__}, key: {self.key}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Actor) and self._version == other._version

    def __hash__(self) -> int:
        return hash(self._version)

    def __reduce__(self) -> Any:
        return _handle, (self._cls, self._version, self._address, self._future)

    # -- Asking it --------------------------------------------------------------------------------

    def _begin(self, name: str, arguments: Here | None) -> ActorFuture:
        """Call a method; without arguments, which are (args, kwargs), read an attribute."""
        self._check()
        worker = current_worker()
        if worker is not None and worker.address == self._address:
            return self._ask_here(worker, name, arguments)
        blob, futures = (None, []) if arguments is None else pack_with_futures(arguments.value)
        client = self._future.client
        outcome = ActorFuture(self, name)
        call = CallActor, self._version, name, blob, callers.get()
        work = self._ask(call, outcome, futures)
        asyncio.run_coroutine_threadsafe(work, client.loop)
        return outcome

    def _check(self) -> None:
        self._future.client._check_open()
        if self._future._state.status in ("error", "cancelled"):
            raise self._gone()

    def _gone(self) -> LostActorError:
        state = self._future._state
        why = state.exception() if state.status == "error" else state.reason
        if isinstance(why, LostActorError):
            return why
        return LostActorError(f"the actor {self.key!r} is gone: {why}")

    def _ask_here(self, worker: Any, name: str, arguments: Here | None) -> ActorFuture:
        """Ask it within its own process: nothing is pickled."""
        held = worker.state.value_of(self._version)
        if held is None or not isinstance(home := held.value, ActorHome):
            raise LostActorError(f"the actor {self.key!r} is not on this worker any more")
        if arguments is not None:
            return ActorFuture(self, name, home.call(name, arguments, callers.get()))
        outcome = ActorFuture(self, name)
        outcome.set(Here(getattr(home.instance, name)))
        return outcome

    async def _ask(self, call: tuple[Any, ...], outcome: ActorFuture, futures: list[Any]) -> None:
        """Have a request answered; whatever happens to it is the outcome.

        `futures` are those among its arguments: who holds an argument no more has it held here
        until the actor's worker holds it.
        """
        try:
            answer = await self._answer(call)
            if answer.futures:
                held = [Future(key, self._future.client) for key in answer.futures]
                await self._take(answer.receipt)
                outcome.set(Packed(answer.value, held))
            else:
                outcome.set(answer.value)
        except RequestFailedError as exc:
            outcome.set(exc.error)
        except CarriedError as carried:
            outcome.set(self._error(carried.unpack()))
        except CommClosedError as exc:
            outcome.set(self._error(await self._why_lost(call, exc)))
        except BaseException as exc:  # nobody waits for this coroutine, but for its outcome
            outcome.set(self._error(exc))

    def _error(self, exc: BaseException) -> TaskError:
        return to_task_error(exc, self.key, self._address)

    async def _answer(self, call: tuple[Any, ...]) -> Any:
        """Ask the worker, and wait for its answer, unless the scheduler says that it is gone.

        However long that takes: a method that keeps the interpreter for minutes keeps its worker
        from saying anything.
        """
        state, asked = self._future._state, await self._request(*call)

        look = partial(_cancel_if_lost, asked)
        state.when_changed(look)
        try:
            self._check()
            return await asked
        except asyncio.CancelledError:
            self._check()
            raise
        finally:
            state.wait_no_more(look)
            asked.cancel()
            # It holds an error that was raised here, and so this frame, and the actor.
            del asked, look

    async def _request(self, make: Any, *fields: Any) -> asyncio.Future[Any]:
        """Ask the worker in its turn, or the scheduler if only that one can reach it."""
        client, address = self._future.client, self._address
        await client._connected()
        peers = client._actor_peers
        async with peers.turn(address):
            if client.direct_to_workers is not False and address not in client._unreachable:
                try:
                    return await peers.begin(address, make, *fields)
                except UnreachableError:
                    client._unreachable.add(address)
            return asyncio.ensure_future(client._ask(_THROUGH[make], address, *fields))

    async def _take(self, receipt: int) -> None:
        """Say that we hold the futures which were returned, when the scheduler knows it."""
        await self._future.client._wants_are_known()
        await self._answer((TakeReturned, receipt))

    async def _why_lost(self, call: tuple[Any, ...], exc: CommClosedError) -> BaseException:
        """The connection is gone: what the scheduler says of that, if it does."""
        deadline = time.monotonic() + _VERDICT
        while time.monotonic() < deadline:
            try:
                self._check()
            except Exception as verdict:
                return verdict
            await asyncio.sleep(_LOOK)
        return LostActorError(
            f"the worker {self._address} of the actor {self.key!r} was lost while it was asked "
            f"for {call[2]!r}, and nobody knows whether it has done that: {exc}"
        )


_THROUGH: dict[type[Any], type[Any]] = {
    CallActor: CallActorThrough,
    TakeReturned: TakeReturnedThrough,
}


def _cancel_if_lost(asked: asyncio.Future[Any], state: FutureState) -> None:
    if state.status != "finished":
        asked.cancel()


def _handle(cls: type[Any], version: Version, address: str, future: Future) -> Actor:
    actor = Actor.__new__(Actor)
    settings = (cls, Version(*version), address, future, version[0])
    for slot, value in zip(
        ("_cls", "_version", "_address", "_future", "key"), settings, strict=True
    ):
        object.__setattr__(actor, slot, value)
    return actor


def _method(actor: Actor, name: str, on_class: Any) -> Callable[..., ActorFuture]:
    def method(*args: Any, **kwargs: Any) -> ActorFuture:
        return actor._begin(name, Here((args, kwargs)))

    method.__name__, method.__doc__ = name, getattr(on_class, "__doc__", None)
    method.__qualname__ = f"{actor._cls.__qualname__}.{name}"
    return method


# -- What comes of a call --------------------------------------------------------------------------


class ActorFuture:
    """What an actor's method will return.

    Awaiting one gives it, on any event loop. One that nobody waits for is called all the same.

    Examples
    --------
    >>> future = counter.increment()
    >>> future.result(timeout=10)
    1
    """

    __slots__ = ("_actor", "_name", "_outcome")

    def __init__(
        self, actor: Actor, name: str, outcome: concurrent.futures.Future[Any] | None = None
    ) -> None:
        self._actor, self._name = actor, name
        if outcome is None:
            outcome = concurrent.futures.Future()
            outcome.set_running_or_notify_cancel()  # who waits no more must not cancel it
        self._outcome = outcome

    def set(self, outcome: Here | Packed | Blob | TaskError) -> None:
        """It has ended."""
        self._outcome.set_result(outcome)

    def done(self) -> bool:
        """Whether the method has returned, or raised."""
        return self._outcome.done()

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait until the method has returned.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds. The method goes on after that.

        Returns
        -------
        object
            What it returned.

        Raises
        ------
        WaitTimeoutError
            If it takes longer.
        LostActorError
            If the actor's worker is lost.
        RuntimeError
            On the event loop of the actor's client, if it is not done: await it there.
        Exception
            What the method raised, of its own type, with the remote traceback.
        """
        client = self._actor._future.client
        if not self._outcome.done() and is_in_loop(client.loop):
            raise RuntimeError(
                f"waiting for {self!r} on the event loop on which it comes would not end; await it"
            )
        return self._value(wait_for_result(self._outcome, client._seconds(timeout)))

    def _value(self, outcome: Any) -> Any:
        if isinstance(outcome, TaskError):
            raise to_exception(outcome)
        if isinstance(outcome, Here):
            return outcome.value
        return loads(outcome.value if isinstance(outcome, Packed) else outcome)

    def __await__(self) -> Generator[Any, Any, Any]:
        async def result() -> Any:
            # A coroutine task's place serves others meanwhile. The method runs on if who waits is
            # cancelled.
            with lent_thread():
                outcome = await asyncio.shield(asyncio.wrap_future(self._outcome))
            return self._value(outcome)

        return result().__await__()

    def __repr__(self) -> str:
        status = "done" if self.done() else "pending"
        return f"<ActorFuture: {status}, {self._name} of {self._actor.key}>"


# -- In tables of workers --------------------------------------------------------------------------


class ActorCopy(Stored):
    """An actor as other workers hold it that have fetched it: where it is."""

    __slots__ = ("_about",)

    def __init__(self, *about: Any) -> None:
        self._about = about

    def given(self) -> Actor:
        cls, version, address, *scheduler = self._about
        return _handle(cls, version, address, _unpickled(version[0], *scheduler))

    def __reduce__(self) -> Any:
        return ActorCopy, self._about


class OwnActor(ActorHome):
    """An actor as its own worker holds it."""

    __slots__ = ()

    def _copy(self) -> ActorCopy:
        worker = self.worker
        about = type(self.instance), tuple(self.version), worker.address
        return ActorCopy(*about, worker.scheduler_id, worker.scheduler_address)

    def given(self) -> Actor:
        return self._copy().given()

    def __reduce__(self) -> Any:
        return self._copy().__reduce__()

    def pack(self, value: Any) -> Packed:
        return Packed(*pack_with_futures(value))

    def __repr__(self) -> str:
        return f"<OwnActor {self.instance!r:.80}>"


def _make(cls: Callable[..., Any], *args: Any, **kwargs: Any) -> OwnActor:
    """The task that makes an actor."""
    place = current_place()
    assert place is not None
    return OwnActor(current_worker(), Version(place.key, place.attempt), cls(*args, **kwargs))


def pack_actor(cls: Callable[..., Any]) -> Function:
    """Pickle a class, or what else returns an object, as the function that makes an actor of it."""
    if not callable(cls):
        raise TypeError(f"the first argument must be callable, not {cls!r:.80}")
    return pack_function(partial(_make, cls))._replace(name=function_name(cls))
