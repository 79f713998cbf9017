"""Values between workers: served to whoever dials us, fetched from those who hold them.

Nothing here may hold up the event loop, or heartbeats would stop: what takes long to pickle or to
rebuild does so in a thread (see `hpcdask.wire.effort`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.comm import Comm
from hpcdask.comm.options import CommOptions
from hpcdask.core.worker_state import Fetch, HeldTask, WorkerState
from hpcdask.errors import SerializationError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    CallActor,
    Failure,
    FetchKeys,
    KeyValues,
    Message,
    RegisterPeer,
    Reply,
    StoredValue,
    StoreKeys,
    TakeReturned,
    TaskError,
    Terminate,
    Version,
)
from hpcdask.peers import Peers
from hpcdask.places import on_behalf_of
from hpcdask.sizes import sizeof
from hpcdask.threads import in_thread
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.effort import is_quickly_pickled, loads_if_quick
from hpcdask.wire.serialize import dumps, loads

if TYPE_CHECKING:
    from hpcdask.hosting import Hosting

log = logging.getLogger("hpcdask.worker")

#: Copies of values on their way out, in bytes: pickles and what compression makes. Arrays that go
#: by reference are none.
MAX_COPIES = 256 * 2**20

#: A value that came, or why it cannot be rebuilt.
Loaded = tuple[Version, Any, int] | TaskError


class Exchange:
    """A worker's part in moving data.

    Parameters
    ----------
    worker : object
        On whose behalf values are rebuilt: futures in them belong to its client.
    address : str
        Of the worker, named in errors.
    state : WorkerState
        What is held, and what is told of what comes.
    peers : Peers
        By which others are asked.
    act : callable
        Called when the state has something to do or to say.
    spawn : callable
        Runs a coroutine until the worker closes.
    futures_are_known : async callable
        Waits until the scheduler knows of futures that lay in values which came here: it hears of
        the values on another connection, and may then release what they came from.
    end : callable
        Ends the worker, for this reason.
    patience : float
        Seconds that copies count as such although their receiver takes none of them.
    """

    def __init__(
        self,
        worker: object,
        address: str,
        state: WorkerState,
        peers: Peers,
        act: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        futures_are_known: Callable[[], Awaitable[None]],
        end: Callable[[str], None],
        patience: float = 15.0,
    ) -> None:
        self._worker, self._address = worker, address
        self._state, self._peers = state, peers
        self._act, self._spawn = act, spawn
        self._futures_are_known, self._end = futures_are_known, end
        self._patience = patience
        self._copies = Budget(MAX_COPIES)
        self._comms: set[Comm] = set()
        self._hosting: Hosting | None = None

    def close(self) -> None:
        """Hang up on everybody."""
        self._peers.close()
        for comm in list(self._comms):
            comm.close()

    def use(self, options: CommOptions) -> None:
        """Dial others by these options from now on."""
        self._peers.options = options

    def hang_up(self, addresses: Iterable[str]) -> None:
        """Expect nothing of these workers any more; what is being fetched from them fails now."""
        for address in addresses:
            self._peers.forget(address)

    # -- Fetching ---------------------------------------------------------------------------------

    async def fetch(self, fetch: Fetch) -> None:
        """Get inputs from another worker; however that ends, the state is told."""
        try:
            answer = await self._peers.fetch(fetch.address, fetch.versions)
            loaded = await self._loaded(answer.values)
            await self._futures_are_known()
        except Exception as exc:
            log.info("cannot fetch from %s: %s", fetch.address, exc)
            self._state.fetch_failed(time.monotonic(), fetch.address, str(exc) or repr(exc))
            self._act()
            return
        self._arrived(fetch, answer, loaded)

    def _arrived(self, fetch: Fetch, answer: KeyValues, loaded: list[Loaded]) -> None:
        now = time.monotonic()
        wanted = {version.key: version for version in fetch.versions}
        unusable = list(answer.failed)
        unusable += [(item.key, item) for item in loaded if isinstance(item, TaskError)]
        for key, error in unusable:
            if key in wanted:
                self._state.input_unusable(now, wanted[key], error)
        values = [item for item in loaded if not isinstance(item, TaskError)]
        self._state.data_arrived(now, fetch.address, values)
        self._act()

    # -- Serving ----------------------------------------------------------------------------------

    def serve(self, comm: Comm) -> None:
        """Answer somebody who dials us for data."""
        self._comms.add(comm)

        def on_batch(batch: list[Message]) -> None:
            for message in batch:
                if type(message) is FetchKeys:
                    self._asked(comm, message)
                elif type(message) is StoreKeys:
                    self._spawn(self._store(comm, message))
                elif type(message) is CallActor:
                    self.hosting.asked(comm, message)
                elif type(message) is TakeReturned:
                    self.hosting.taken(comm, message)
                elif type(message) is Terminate:
                    self._end(message.reason)
                elif type(message) is not RegisterPeer or message.protocol != PROTOCOL_VERSION:
                    comm.abort(f"it sent {message!r:.80}")
                    return
                elif message.address not in ("", self._address):
                    # As 127.0.0.1 or the bridge of a container would be on every host.
                    comm.abort(f"it looks for {message.address}")
                    return

        comm.start(on_batch, lambda reason: self._hung_up(comm))

    def _hung_up(self, comm: Comm) -> None:
        self._comms.discard(comm)
        if self._hosting is not None:
            self._hosting.hung_up(comm)

    @property
    def hosting(self) -> Hosting:
        """The part of this that knows actors; most workers never have one."""
        if self._hosting is None:
            from hpcdask.hosting import Hosting

            def find(version: Version) -> Any:
                task = self._state.value_of(version)
                return None if task is None else task.value

            self._hosting = Hosting(self._address, find, self._spawn, self._futures_are_known)
        return self._hosting

    def _asked(self, comm: Comm, message: FetchKeys) -> None:
        if message.versions:
            self._spawn(self._answer(comm, message))
        else:  # somebody who waits for another answer wants to know whether we live
            comm.send(KeyValues(message.request, (), (), ()))

    async def _answer(self, comm: Comm, message: FetchKeys) -> None:
        try:
            await self._send_values(comm, message)
        except Exception as exc:  # whatever goes wrong: who asked must not wait for ever
            log.exception("cannot send values to %s", comm.peer)
            comm.send(Failure(message.request, to_task_error(exc, worker=self._address)))

    async def _send_values(self, comm: Comm, message: FetchKeys) -> None:
        held: list[HeldTask] = []
        missing: list[str] = []
        for version in message.versions:
            task = self._state.value_of(version)
            if task is None:
                missing.append(version.key)
            else:
                held.append(task)
        items = [(task.key, task.attempt, task.value, task.made_by) for task in held]
        slow = {task.key for task in held if not is_quickly_pickled(task.value)}
        copied = sum(task.nbytes for task in held if comm.compresses or task.key in slow)
        del held
        async with self._copies.taken(copied):
            values, failed = await self._pickled(items, slow)
            comm.send(KeyValues(message.request, values, tuple(missing), failed))
            del items, values
            # Others shall not wait for one that takes nothing.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(comm.drained(), self._patience)

    async def _pickled(
        self, items: list[tuple[str, int, Any, str]], slow: set[str]
    ) -> tuple[tuple[StoredValue, ...], tuple[tuple[str, TaskError], ...]]:
        """Pickle values, the slow ones together in a thread."""
        outcomes = [self._pickle(*item) for item in items if item[0] not in slow]
        if slow:
            rest = [item for item in items if item[0] in slow]
            outcomes += await in_thread(lambda: [self._pickle(*item, True) for item in rest])
        values = tuple(item for item in outcomes if isinstance(item, StoredValue))
        failed = tuple((item.key, item) for item in outcomes if isinstance(item, TaskError))
        return values, failed

    def _pickle(
        self, key: str, attempt: int, value: Any, made_by: str, polite: bool = False
    ) -> StoredValue | TaskError:
        try:
            return StoredValue(key, attempt, dumps(value, polite))
        except SerializationError as exc:
            return to_task_error(_of_result(exc, key, made_by), key, self._address)
        except BaseException as exc:  # a SystemExit, too, only means that it cannot be pickled
            return to_task_error(exc, key, self._address)

    async def _store(self, comm: Comm, message: StoreKeys) -> None:
        try:
            loaded = await self._loaded(message.values)
            errors = [item for item in loaded if isinstance(item, TaskError)]
            if errors:
                comm.send(Failure(message.request, errors[0]._replace(key="")))
                return
            for item in loaded:
                assert not isinstance(item, TaskError)
                self._state.value_stored(time.monotonic(), *item)
            self._act()
            await self._futures_are_known()
        except Exception as exc:
            log.exception("cannot store values of %s", comm.peer)
            comm.send(Failure(message.request, to_task_error(exc, worker=self._address)))
            return
        comm.send(Reply(message.request, None))

    # -- Rebuilding -------------------------------------------------------------------------------

    async def _loaded(self, values: Iterable[StoredValue]) -> list[Loaded]:
        """Rebuild values, the slow ones together in a thread."""
        outcomes: list[Loaded] = []
        slow: list[StoredValue] = []
        for stored in values:
            loaded = self._load(stored, if_quick=True)
            if loaded is None:
                slow.append(stored)
            else:
                outcomes.append(loaded)
        if slow:
            outcomes += await in_thread(self._load_all, slow)
        return outcomes

    def _load_all(self, values: list[StoredValue]) -> list[Loaded]:
        with on_behalf_of(self._worker):
            return [loaded for stored in values if (loaded := self._load(stored))]

    def _load(self, stored: StoredValue, if_quick: bool = False) -> Loaded | None:
        try:
            if if_quick:
                done, value = loads_if_quick(stored.value)
                if not done:
                    return None
            else:
                value = loads(stored.value, polite=True)
            return Version(stored.key, stored.attempt), value, sizeof(value)
        except Exception as exc:  # a module that this host lacks, say
            from hpcdask.unreadable import unreadable  # not before something goes wrong

            what = f"the data of {stored.key!r}"
            told = unreadable(exc, what, stored.value, self._address)
            return to_task_error(told, stored.key, self._address)
        except BaseException as exc:
            return to_task_error(exc, stored.key, self._address)


def _of_result(exc: SerializationError, key: str, made_by: str) -> SerializationError:
    """The error of a value that cannot leave its worker, told of the task that returned it."""
    from hpcdask.wire import unpicklable  # not before something goes wrong

    what = f"the result of {made_by} (task {key!r})" if made_by else f"the data of {key!r}"
    cure = "Return what can be, or use it in tasks on the same worker only (workers=)"
    return unpicklable.about(exc, what, cure=cure)


class Budget:
    """So many bytes at a time, first come, first served; who wants more than all gets all."""

    def __init__(self, nbytes: int) -> None:
        self._total = self._left = nbytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, nbytes: int) -> AsyncIterator[None]:
        """Hold `nbytes` within the block, which begins when there are as many."""
        nbytes = min(nbytes, self._total)
        if nbytes and (self._waiting or nbytes > self._left):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((nbytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give(nbytes)
                raise
        else:
            self._left -= nbytes
        try:
            yield
        finally:
            self._give(nbytes)

    def _give(self, nbytes: int) -> None:
        self._left += nbytes
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if wanted > self._left:
                    return
                self._left -= wanted
                turn.set_result(None)
            self._waiting.popleft()
