"""What a client and its scheduler say to each other, and the futures that it is about."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

from hpcdask import host as hosts
from hpcdask.client.future import Callbacks, Future, FutureState
from hpcdask.client.loop import CarriedError, Wake, is_in_loop, limited, run_sync
from hpcdask.client.registered import plugin_failed
from hpcdask.client.retained import Retained
from hpcdask.client.subscriptions import Subscriptions
from hpcdask.dialling import Link
from hpcdask.errors import CommClosedError
from hpcdask.messages import Message, PluginFailed
from hpcdask.messages.client import (
    AskTaskStream,
    AwaitWorkers,
    CountLeft,
    GatherKeys,
    Inspect,
    KeepUntilDone,
    KeyCancelled,
    KeyLost,
    LocateKeys,
    PlanScatter,
    ReleaseKeys,
    SchedulerClosing,
    SubmitTasks,
    TaskDone,
    TaskFailed,
    WantKeys,
    WantsRead,
)
from hpcdask.messages.shared import EventLogged, GetEvents, GetMetadata
from hpcdask.peers import RequestFailedError, Requests
from hpcdask.tracebacks import to_exception

log = logging.getLogger("hpcdask.client")

#: Keys that one message releases at most: a million at a time would keep both ends from all else.
_RELEASES = 2500
#: Seconds after news of tasks in which keys that are let go are collected. A program that waits for
#: one task after the other lets one go with each, and would wait for the loop to tell of it.
_RELEASES_WAIT = 0.005

#: Requests that may be made twice.
_MERE_QUESTIONS = {
    AskTaskStream,
    AwaitWorkers,
    CountLeft,
    GatherKeys,
    GetEvents,
    GetMetadata,
    Inspect,
    LocateKeys,
    PlanScatter,
}


class Conversation(ABC):
    """Messages of a client, sent from any thread and read on its loop; see `Connection`."""

    name: str
    loop: asyncio.AbstractEventLoop
    status: str  # connecting, running, reconnecting, closed
    _asynchronous: bool
    _ending: str  # why it is closed
    _is_of_parent: bool  # whether it was made before this process was forked
    _link: Link | None
    _retains: bool  # what it has submitted, for another scheduler
    _subscriptions: Subscriptions

    def _prepare_conversation(self) -> None:
        self._futures: dict[str, FutureState] = {}
        self._retained = Retained(self._futures)
        self._kept: dict[str, FutureState] = {}  # what fire_and_forget holds until it is done
        self._lock = threading.RLock()
        self._outbox: list[Message] = []
        self._released: deque[str] = deque()  # keys whose handles were dropped, one entry each
        self._flushing, self._releasing = Wake(), Wake()
        self._wants = 0  # number of the last want that was queued
        self._wants_read = 0  # of the last that the scheduler had read when it sent what comes now
        self._wants_known = 0  # of the last that it is known to have read
        self._told_again = 0  # number of the last want that was told after a loss
        self._requests = Requests()
        self._callbacks = Callbacks()

    @abstractmethod
    def _is_over(self, why: str) -> None:
        """There is no scheduler any more."""

    @property
    @abstractmethod
    def _is_open(self) -> bool:
        """Whether it has been connected, and is or will be again."""

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: if it was made so, or when called on its loop."""
        return self._asynchronous or is_in_loop(self.loop)

    # -- Talking to the scheduler -----------------------------------------------------------------

    def _seconds(self, timeout: float | str | None) -> float | None:
        return timeout if timeout is None else hosts.parse_timedelta(timeout)

    def _sync(self, work: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        if self._is_of_parent:  # in this process its loop does not run
            work.close()
            self._check_open()
        return run_sync(self.loop, work, timeout)

    def _maybe_sync(
        self,
        work: Coroutine[Any, Any, Any],
        timeout: float | None = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """An awaitable for asynchronous clients, or if one is asked for; else what it gives."""
        if self.asynchronous or asynchronous:
            return limited(work, timeout)
        return self._sync(work, timeout)

    def _submit(self, message: SubmitTasks) -> None:
        """Queue tasks; called under the lock, with the states of their futures at hand."""
        self._check_open()
        if self._retains:
            message = self._retained.keep(message)
        self._send(message)

    def _send(self, message: Message) -> None:
        """Queue a message from any thread; all that is queued leaves together, at once."""
        self._check_open()
        with self._lock:
            self._outbox.append(message)
        self._requests_flush()

    def _requests_flush(self) -> None:
        self._flushing.ask(self.loop, self._flush)

    def _flush(self) -> None:
        if self.status != "running" or self._link is None or self._link.comm.closed:
            return  # it is done again once there is a connection
        self._flushing.is_due = False
        with self._lock:
            messages, self._outbox = self._outbox, []
        self._link.comm.send_now(messages)

    def _flush_releases(self) -> None:
        """Tell what was let go: not too much at once, so that others get their turn on the loop."""
        self._releasing.is_due = False  # before the look: what is let go from now on asks again
        if self._released and self.status == "running":
            with self._lock:
                self._release_some_keys()
            self._flush()
            if self._released:
                self._releasing.ask(self.loop, self._flush_releases)

    def _release_keys(self) -> None:
        """Queue the news of all keys that were let go; the lock is held."""
        while self._released:
            self._release_some_keys()

    def _release_some_keys(self) -> None:
        gone = []
        for _ in range(min(len(self._released), _RELEASES)):
            key = self._released.popleft()
            state = self._futures.get(key)
            if state is not None:
                state.refs -= 1
                if not state.refs:
                    del self._futures[key]
                    gone.append(key)
                    if state.let_go():  # by another thread than the one that waits
                        self.loop.call_soon_threadsafe(state.tell_waiters)
        if gone:
            self._outbox.append(ReleaseKeys(tuple(gone)))

    async def _ask(self, make: Any, *fields: Any) -> Any:
        """Send the request ``make(number, *fields)`` and wait for its answer.

        While there is no connection it waits; one that only asks is sent again after a loss.
        """
        while True:
            number, future = self._requests.new()
            try:
                self._send(make(number, *fields))
                return await future
            except RequestFailedError as exc:
                raise CarriedError(to_exception(exc.error)) from None
            except CommClosedError:
                if make not in _MERE_QUESTIONS or self.status == "closed":
                    raise
            finally:
                future.cancel()
                del future  # it holds an error that was raised here, and so this frame

    async def _has_been_read(self) -> None:
        """Wait until the scheduler has read all that was queued so far, and told what follows."""
        await self._ask(AwaitWorkers, 0, 0.0)

    @property
    def _has_unknown_wants(self) -> bool:
        return self._wants > self._wants_known

    async def _wants_are_known(self) -> None:
        """Wait until the scheduler has read all wants that were queued so far."""
        number = self._wants
        if number > self._wants_known:
            await self._has_been_read()
            self._wants_known = max(self._wants_known, number)

    def _on_batch(self, batch: list[Message]) -> None:
        if not self._releasing.is_due:
            self._releasing.is_due = True
            self.loop.call_later(_RELEASES_WAIT, self._flush_releases)
        for message in batch:
            kind = type(message)
            if kind is WantsRead:
                self._wants_read = message.want
            elif kind is TaskDone:
                state = self._meant_by(message)
                if state is not None and state.status != "finished":
                    state.value = message.value
                    state.end("finished")
                elif state is not None and state.value is None:  # found again by another scheduler
                    state.value = message.value
            elif kind is TaskFailed:
                state = self._meant_by(message)
                if state is not None:
                    state.error = message.error
                    state.end("error")
            elif kind is KeyLost:
                state = self._meant_by(message)
                if state is not None:
                    state.lost()
            elif kind is KeyCancelled:
                state = self._meant_by(message)
                if state is not None and not (message.is_unknown and self._outlives(state)):
                    state.reason = message.reason
                    state.end("cancelled")
            elif kind is EventLogged:
                self._subscriptions.happened(message)
            elif kind is PluginFailed:
                plugin_failed(message)
            elif kind is SchedulerClosing:
                assert self._link is not None
                if self.status != "closed":  # who has asked for it waits for the very end
                    self._link.comm.close()
                    self._is_over(f"the scheduler is gone ({message.reason})")
                    return
            else:
                self._requests.answered(message)

    def _meant_by(self, message: Any) -> FutureState | None:
        """The state of a message's key, unless the message is about an earlier life of the key."""
        state = self._futures.get(message.key)
        return state if state is not None and state.since <= self._wants_read else None

    def _outlives(self, state: FutureState) -> bool:
        """Whether a future that was done before a loss stays so: another scheduler knows nothing
        of it, but what it became is here."""
        return state.since <= self._told_again and (
            state.status == "error" or state.value is not None
        )

    # -- Futures ----------------------------------------------------------------------------------

    def _hold(self, key: str) -> FutureState:
        """Count one more future of a key, which the scheduler should know."""
        with self._lock:
            state = self._futures.get(key)
            if state is None:
                self._check_open()
                self._wants += 1
                state = self._wanted(key, None)
                self._send(WantKeys((key,), self._wants))
            state.refs += 1
            return state

    def _wanted(self, key: str, state: FutureState | None) -> FutureState:
        """Begin a life of a key with the want of number `_wants`; a cancelled one begins anew."""
        if state is None:
            state = self._futures[key] = FutureState(key)
        state.since = self._wants
        state.reason = ""
        state.status = "pending"
        return state

    def _check_open(self) -> None:
        """Raise CommClosedError if nothing can be sent; before anything is noted that would be."""
        if self.status == "closed":
            why = f", since {self._ending}" if self._ending else ""  # else by the program itself
            raise CommClosedError(f"client {self.name} is closed{why}; make a new Client")

    def _let_go(self, key: str) -> None:
        self._released.append(key)
        if self._is_open:
            self._releasing.ask(self.loop, self._flush_releases)

    def _keep_until_done(self, keys: Iterable[str]) -> None:
        """Let tasks run to their end, whatever becomes of their futures and of the scheduler."""
        keys = tuple(dict.fromkeys(keys))
        with self._lock:
            self._send(KeepUntilDone(keys))
            found = [self._futures.get(key) for key in keys if key not in self._kept]
            states = [state for state in found if state is not None]
            for state in states:
                state.refs += 1
                self._kept[state.key] = state
        for state in states:
            state.when_done(self._keep_no_more)

    def _keep_no_more(self, state: FutureState) -> None:
        if self._kept.pop(state.key, None) is not None:
            if state.status == "error":  # nobody else may ever ask for it
                self._callbacks.put(partial(_tell_of_failure, state))
            self._let_go(state.key)

    def _future(self: Any, state: FutureState) -> Future:
        """A handle for a state that was counted already."""
        future = Future.__new__(Future)
        future.client, future.key, future._state = self, state.key, state
        return future


def _tell_of_failure(state: FutureState) -> None:
    log.warning("%s, which was fired and forgotten, failed: %r", state.key, state.exception())
