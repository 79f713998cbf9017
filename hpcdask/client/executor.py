"""`Client.get_executor`: the cluster as an executor of the standard library."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hpcdask.client.collecting import SKIPPED
from hpcdask.client.future import Callbacks, Future, FutureState, Latch
from hpcdask.client.loop import is_in_loop, slices
from hpcdask.client.streaming import CHUNK, conditions
from hpcdask.client.submission import pack_arguments
from hpcdask.errors import CommClosedError, SerializationError, WaitTimeoutError
from hpcdask.places import lent_thread
from hpcdask.wire.arguments import loads_value
from hpcdask.wire.serialize import function_name

if TYPE_CHECKING:
    from hpcdask.client.client import Client

#: Keywords of `Client.submit` that hold for all calls of an executor, or of joblib.
CONDITIONS = frozenset(
    {
        "allow_other_workers",
        "fifo_timeout",
        "priority",
        "pure",
        "resources",
        "retries",
        "workers",
    }
)
#: Keywords that `Client.submit` takes for itself, and that a function may have as well.
_TAKEN = CONDITIONS | {"actor", "actors", "key"}
#: Values of `map` that leave the cluster together.
_RELEASED_TOGETHER = 256


class ClientExecutor(concurrent.futures.Executor):
    """Runs calls on a cluster; made by `Client.get_executor`.

    A call that was submitted runs even if nobody keeps its future; its value leaves the cluster as
    soon as it is here. What cannot be pickled is the exception of its own future.

    Parameters
    ----------
    client : Client
    **conditions
        As of `Client.get_executor`.

    Examples
    --------
    >>> executor = client.get_executor()
    >>> executor.submit(pow, 2, 5).result()
    32
    >>> executor.shutdown()
    """

    def __init__(self, client: Any, **conditions_: Any) -> None:
        unknown = sorted(conditions_.keys() - CONDITIONS)
        if unknown:
            raise TypeError(
                f"get_executor() has no keyword {unknown[0]!r}; it takes "
                f"{', '.join(sorted(CONDITIONS))}"
            )
        names = ("priority", "retries", "workers", "allow_other_workers", "resources")
        priority, retries, workers, others, resources = map(conditions_.get, names)
        conditions(
            priority, retries, workers, others, resources
        )  # say here what is wrong with them
        self._client: Client = client
        self._conditions = {"pure": False, **conditions_}
        self._changed = threading.Condition()
        self._outstanding: set[ExecutorFuture | _Part] = set()
        self._feeders: set[_Results] = set()  # of `map`, that have more to submit
        self._is_shut_down = False
        self._arrived: deque[tuple[ExecutorFuture, FutureState]] = deque()
        self._delivery_is_due = False
        self._deliveries = Callbacks()

    # -- For users --------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ExecutorFuture:
        """Run ``fn(*args, **kwargs)`` on the cluster.

        Returns
        -------
        concurrent.futures.Future
            It may be cancelled until it is done; the call may run on by then, for nobody.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        CommClosedError
            If the client is closed.
        """
        call = ExecutorFuture(self._cancelled)
        self._add(call)
        taken = _TAKEN & kwargs.keys()
        if taken:
            fn = functools.partial(fn, **{name: kwargs.pop(name) for name in taken})
        try:
            future = self._client.submit(fn, *args, **kwargs, **self._conditions)
        except CommClosedError:
            self._remove(call)
            raise
        except Exception as exc:
            self._end(call, None, exc)
            return call
        call.task = future
        if call.cancelled():  # by a shutdown in another thread
            future.release()
        else:
            future._state.when_done(functools.partial(self._note_arrival, call))
        return call

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Any,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Call a function on each element of iterables, and iterate over the results in order.

        The first results come while later calls are still being sent. If one fails, or comes too
        late, or a loop over them is broken off, the others are dropped.

        Parameters
        ----------
        timeout : float, optional
            Seconds from this call on for all results.
        chunksize : int
            Calls per task. More than one is of use for calls of less than about 50 us.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        concurrent.futures.TimeoutError
            By the iterator, if a result comes too late.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = list(zip(*iterables))  # noqa: B905 - the shortest decides
        if chunksize > 1:
            fn = _Each(fn)
            calls = [(calls[i : i + chunksize],) for i in range(0, len(calls), chunksize)]
        results = _Results(self, fn, calls, deadline)
        results.begin()
        if chunksize > 1:
            return (value for chunk in results for value in chunk)
        return results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The client stays as it is.

        Parameters
        ----------
        wait : bool
            Until all that was submitted has ended.
        cancel_futures : bool
            Give up all that has not ended.

        Raises
        ------
        RuntimeError
            If it is to wait on the event loop of an asynchronous client, which would wait for
            itself.
        """
        with self._changed:
            self._is_shut_down = True
            outstanding, feeders = list(self._outstanding), list(self._feeders)
        if cancel_futures:
            for feeder in feeders:
                feeder.drop()
            for each in outstanding:
                each.cancel()
        if not wait:
            return
        self._refuse_on_loop("shutdown(wait=True)", "use shutdown(wait=False)")
        with lent_thread(), self._changed:
            for piece in slices(None):
                if not self._outstanding and not self._feeders:
                    return
                self._changed.wait(piece)  # in pieces, or Ctrl-C would not be seen

    # -- Calls that are under way -----------------------------------------------------------------

    def _add(self, each: ExecutorFuture | _Part) -> None:
        with self._changed:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._outstanding.add(each)

    def _remove(self, each: ExecutorFuture | _Part) -> None:
        with self._changed:
            self._outstanding.discard(each)
            self._changed.notify_all()

    def _feeds(self, results: _Results, goes_on: bool) -> None:
        with self._changed:
            (self._feeders.add if goes_on else self._feeders.discard)(results)
            self._changed.notify_all()

    def _cancelled(self, call: ExecutorFuture) -> None:
        if call.task is not None:
            call.task.release()
        self._remove(call)

    def _note_arrival(self, call: ExecutorFuture, state: FutureState) -> None:
        """A task has ended; called on the client's loop, where nothing may take long."""
        self._arrived.append((call, state))
        if not self._delivery_is_due:
            self._delivery_is_due = True
            self._deliveries.put(self._deliver)

    def _deliver(self) -> None:
        """Give the calls that have ended their values."""
        self._delivery_is_due = False  # before the look: what arrives from now on asks again
        to_fetch = []
        while self._arrived:
            call, state = self._arrived.popleft()
            if state.status == "finished" and state.value is None:
                to_fetch.append((call, state))
            else:
                self._end_by(call, state, state.value)
        if not to_fetch:
            return
        states = [state for _, state in to_fetch]
        blobs: list[Any] = [SKIPPED] * len(states)
        try:
            blobs = self._client._sync(self._client._blobs(states, "skip", None, None))
        except Exception:  # of one of them, or the client is closed: each shall say it for itself
            pass
        for (call, state), blob in zip(to_fetch, blobs, strict=True):
            self._end_by(call, state, blob)

    def _end_by(self, call: ExecutorFuture, state: FutureState, blob: Any) -> None:
        try:
            exc = state.exception()
            if exc is None:
                if blob is SKIPPED or blob is None:  # what is wrong with it comes out here
                    [blob] = self._client._sync(self._client._blobs([state], "raise", None, None))
                self._end(call, loads_value(blob), None)
                return
        except BaseException as problem:  # whatever rebuilding a value raises
            exc = problem
        self._end(call, None, exc)

    def _end(self, call: ExecutorFuture, value: Any, exc: BaseException | None) -> None:
        try:
            if exc is None:
                call.set_result(value)
            else:
                call.set_exception(exc)
        except concurrent.futures.InvalidStateError:  # it was cancelled just now
            pass
        if call.task is not None:
            call.task.release()
        self._remove(call)

    def _refuse_on_loop(self, what: str, instead: str) -> None:
        if is_in_loop(self._client.loop):
            raise RuntimeError(
                f"{what} on the client's event loop would wait for itself: "
                f"{instead}, or call it by asyncio.to_thread"
            )


class ExecutorFuture(concurrent.futures.Future[Any]):
    """A call on the cluster.

    Attributes
    ----------
    task : Future or None
        What stands for it on the cluster.
    """

    def __init__(self, on_cancelled: Callable[[ExecutorFuture], None]) -> None:
        super().__init__()
        self.task: Future | None = None
        self._on_cancelled = on_cancelled
        self._is_told = False

    def cancel(self) -> bool:
        """Give the call up; False if it is done."""
        if not super().cancel():
            return False
        with _cancelling:
            is_first, self._is_told = not self._is_told, True
        if is_first:
            self.set_running_or_notify_cancel()
            self._on_cancelled(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the value; see `concurrent.futures.Future`."""
        with lent_thread():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; see `concurrent.futures.Future`."""
        with lent_thread():
            return super().exception(timeout)


_cancelling = threading.Lock()


class _Part:
    """Some calls of one `map`, kept until all have ended, whether or not anybody asks for them."""

    def __init__(self, executor: ClientExecutor, futures: list[Future]) -> None:
        self._executor = executor
        self._futures = list(futures)
        self._lock = threading.Lock()
        self._n_left = len(futures) + 1

    def watch(self) -> None:
        ended = self._one_has_ended  # one bound method for all
        for future in self._futures:
            future._state.when_done(ended)
        self._one_has_ended(None)

    def _one_has_ended(self, state: FutureState | None) -> None:
        with self._lock:
            self._n_left -= 1
            is_over = not self._n_left
        if is_over:
            self._is_over()

    def cancel(self) -> None:
        for future in self._futures:
            future.release()
        self._is_over()

    def _is_over(self) -> None:
        self._futures = []
        self._executor._remove(self)


class _Results(Iterator[Any]):
    """Results of one `map`, in order, while a thread may still be submitting its calls."""

    _has_begun = False  # to be asked for results

    def __init__(
        self,
        executor: ClientExecutor,
        function: Callable[..., Any],
        calls: list[tuple[Any, ...]],
        deadline: float | None,
    ) -> None:
        self._executor, self._client = executor, executor._client
        self._function, self._calls, self._deadline = function, calls, deadline
        self._changed = threading.Condition()
        #: In order of the calls: a future, or why there is none.
        self._slots: deque[Future | Exception] = deque()
        self._parts: list[_Part] = []
        self._taken: list[Future] = []  # of values that were given out
        self._is_fed = self._is_dropped = False

    def begin(self) -> None:
        """Submit the first calls here, and the others in a thread."""
        if self._executor._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._submit(self._calls[:CHUNK])
        if len(self._calls) <= CHUNK:
            self._is_fed = True
            return
        self._executor._feeds(self, True)
        threading.Thread(target=self._feed, name="hpcdask-executor", daemon=True).start()

    def _feed(self) -> None:
        try:
            for start in range(CHUNK, len(self._calls), CHUNK):
                if self._is_dropped:
                    return
                self._submit(self._calls[start : start + CHUNK])
        except Exception as exc:  # the client was closed, or the executor shut down at once
            with self._changed:
                self._slots.append(exc)
        finally:
            self._end_feeding()

    def _end_feeding(self) -> None:
        with self._changed:
            self._is_fed = True
            self._changed.notify_all()
        self._executor._feeds(self, False)

    def drop(self) -> None:
        """Submit no more, and give up what was."""
        with self._changed:
            self._is_dropped = True
            parts, self._parts = self._parts, []
        for part in parts:
            part.cancel()

    def _submit(self, calls: list[tuple[Any, ...]]) -> None:
        if not calls:
            return
        conditions = self._executor._conditions
        slots: list[Future | Exception] = []
        try:
            slots += self._client.map(self._function, *zip(*calls, strict=True), **conditions)
        except CommClosedError:
            raise
        except Exception:  # one that cannot be pickled: only that one is to fail
            slots = [self._submit_one(args) for args in calls]
        part = _Part(self._executor, [slot for slot in slots if isinstance(slot, Future)])
        with self._executor._changed:  # it was accepted before a shutdown, if there is one
            self._executor._outstanding.add(part)
        part.watch()
        with self._changed:
            self._slots.extend(slots)
            self._parts.append(part)
            self._changed.notify_all()
            is_dropped = self._is_dropped
        if is_dropped:
            self.drop()

    def _submit_one(self, args: tuple[Any, ...]) -> Future | Exception:
        try:
            return self._client.submit(self._function, *args, **self._executor._conditions)
        except Exception as exc:
            return _told(exc, self._function, args)

    # -- Iterating --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __del__(self) -> None:
        # Who breaks off a loop over the results wants none of the others.
        if self._has_begun:
            self.drop()

    def __next__(self) -> Any:
        self._has_begun = True
        slot = self._next_slot()
        try:
            if isinstance(slot, Exception):
                raise slot
            value = self._value_of(slot)
        except BaseException:
            self._end()
            raise
        self._taken.append(slot)
        if slot._state.value is None or len(self._taken) >= _RELEASED_TOGETHER:  # None: it is large
            self._release_taken()
        return value

    def _release_taken(self) -> None:
        """Let the cluster drop values that were given out; together, as each call has its price."""
        for future in self._taken:
            future.release()
        self._taken.clear()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _next_slot(self) -> Future | Exception:
        if self._slots:
            return self._slots.popleft()
        self._release_taken()
        self._executor._refuse_on_loop(
            "iterating over the results of map()", "await asyncio.wrap_future(submit(...))"
        )
        with lent_thread(), self._changed:
            for piece in slices(self._left()):
                if self._slots:
                    return self._slots.popleft()
                if self._is_fed:
                    raise StopIteration
                self._changed.wait(piece)
        self._end()
        raise concurrent.futures.TimeoutError("a call had not been submitted within the timeout")

    def _value_of(self, future: Future) -> Any:
        state = future._state
        if state.status == "pending":
            self._release_taken()
            self._executor._refuse_on_loop(
                "iterating over the results of map()", "await asyncio.wrap_future(submit(...))"
            )
            if not Latch([state]).wait(self._left()):
                text = f"{future.key} is not done within the timeout"
                raise concurrent.futures.TimeoutError(text)
        exc = state.exception()
        if exc is not None:
            raise exc
        blob = state.value
        if blob is None:
            try:
                work = self._client._blobs([state], "raise", self._left(), None)
                [blob] = self._client._sync(work)
            except WaitTimeoutError as late:
                raise concurrent.futures.TimeoutError(str(late)) from None
        return loads_value(blob)

    def _end(self) -> None:
        """One has failed: nobody asks for the others."""
        self._release_taken()
        self.drop()
        with self._changed:
            self._slots.clear()
            self._is_fed = True


class _Each:
    """Makes some calls of a function, and goes by its name, which errors tell."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = function_name(function)

    def __call__(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        return [self.function(*args) for args in calls]


def _told(exc: Exception, function: Callable[..., Any], args: tuple[Any, ...]) -> Exception:
    """Why a call cannot be sent; of a chunk of them the first that cannot."""
    if isinstance(function, _Each) and isinstance(exc, SerializationError):
        try:
            for call in args[0]:
                pack_arguments(call, {}, function.function)
        except SerializationError as its_own:
            return its_own
    return exc
