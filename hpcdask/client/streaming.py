"""Submissions that leave chunk by chunk while the rest of them is being packed."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hpcdask.client.loop import is_in_loop
from hpcdask.client.restrictions import restriction_of
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.messages import Function, Restriction, TaskSpec
from hpcdask.messages.client import SubmitTasks

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

log = logging.getLogger("hpcdask.client")

T = TypeVar("T")

#: Tasks per message: enough to share a function's code, few enough that the first run soon.
CHUNK = 1000
#: Chunks that are packed between two looks at whether the earlier ones have left.
_AHEAD = 10
#: Seconds after which a scheduler that takes no more is waited for no longer.
_PATIENCE = 30.0


class Conditions(NamedTuple):
    """What the tasks of a submission have in common."""

    priority: float
    retries: int
    restriction: Restriction | None


def conditions(
    priority: Any,
    retries: Any,
    workers: Any,
    allow_other_workers: Any,
    resources: Any,
    actor: bool = False,
) -> Conditions:
    """What a call says of its tasks, or a ``with dask.annotate(...)`` around it if it does not.

    Raises
    ------
    TypeError, ValueError
        If one of them is not what it should be.
    """
    said = _annotations()
    if said:
        priority = priority or said.get("priority")
        retries = retries or int(said.get("retries", 0))
        workers = workers or said.get("workers")
        allow_other_workers = allow_other_workers or said.get("allow_other_workers")
        resources = resources or said.get("resources")
    return checked_conditions(priority, retries, workers, allow_other_workers, resources, actor)


def checked_conditions(
    priority: Any,
    retries: Any,
    workers: Any,
    allow_other_workers: Any,
    resources: Any,
    actor: bool,
) -> Conditions:
    """Check here what would make a message that the scheduler refuses with all else."""
    restriction = restriction_of(workers, allow_other_workers, resources, actor)
    if retries is not None and (not hasattr(retries, "__index__") or operator.index(retries) < 0):
        raise _wrong(retries, "retries must be a whole number from 0 up", "__index__")
    if priority is not None and (not isinstance(priority, Real) or math.isnan(priority)):
        raise _wrong(priority, "priority must be a number; higher ones run first", "__float__")
    return Conditions(float(priority or 0), operator.index(retries or 0), restriction)


def _wrong(value: Any, claim: str, makes_it_a_number: str) -> Exception:
    kind = ValueError if hasattr(value, makes_it_a_number) else TypeError
    return kind(f"{claim}, not {value!r:.80}")


def _annotations() -> dict[str, Any] | None:
    # None while another thread imports dask.
    get_annotations = getattr(sys.modules.get("dask.base"), "get_annotations", None)
    if get_annotations is None:
        return None
    said: dict[str, Any] = get_annotations()
    # Those that are callables are for the keys of graphs.
    return said and {kind: value for kind, value in said.items() if not callable(value)}


def chunked(
    items: Iterable[T], size: int, first: int | None = None
) -> Iterator[tuple[list[T], bool]]:
    """Yield lists of `size` items, the first of `first`, and whether each is the last."""
    iterator = iter(items)
    chunk = list(islice(iterator, first or size))
    while chunk:
        following = list(islice(iterator, 1))
        yield chunk, not following
        chunk = following and following + list(islice(iterator, size - 1))


class Submission:
    """A number of chunks of tasks that the scheduler treats as one.

    It holds the tasks of earlier chunks until it has the last. So if an error ends the ``with``
    block before, it is told that there is no more.

    Parameters
    ----------
    client : Client
    conditions : Conditions
    """

    def __init__(self, client: Connection, conditions: Conditions) -> None:
        self._client, self._conditions = client, conditions
        self._first = 0  # position of the next chunk's first task
        self._n_sent = 0  # chunks
        self._is_final = False
        self._is_patient = True
        with client._lock:
            client._check_open()
            client._submissions += 1
            self._number = client._submissions

    def send(
        self,
        functions: tuple[Function, ...],
        tasks: tuple[TaskSpec, ...],
        wanted: tuple[str, ...] | None,
        is_final: bool,
        want: int,
        n_positions: int | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        """Queue a chunk; the client's lock is held.

        `n_positions` is its length with the tasks that need not be sent. `conditions` are those of
        this chunk, if it has others than the rest.
        """
        priority, retries, restriction = conditions or self._conditions
        first = self._first
        how = (first, priority, retries, is_final, want, restriction)
        self._client._submit(SubmitTasks(self._number, functions, tasks, wanted, *how))
        self._first += len(tasks) if n_positions is None else n_positions
        self._n_sent += 1
        self._is_final = is_final

    def keep_pace(self) -> None:
        """Let what is queued leave before more is packed.

        Else a million packed tasks would wait in memory for a scheduler that reads more slowly, or
        for the loop's thread, which the one that packs lets run only now and then.
        """
        client = self._client
        if self._is_final:
            return
        if is_in_loop(client.loop):  # which cannot wait for itself
            client._flush()
        elif self._n_sent % _AHEAD == 0 and self._is_patient:
            try:
                client._sync(_taken(client), _PATIENCE)
            except WaitTimeoutError:
                self._is_patient = False  # nor said again
                log.warning(
                    "the scheduler has not read what client %s submitted for %g s; the rest of the "
                    "submission is packed nevertheless",
                    client.name,
                    _PATIENCE,
                )

    def __enter__(self) -> Submission:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._n_sent and not self._is_final:
            with self._client._lock, contextlib.suppress(CommClosedError):
                self.send((), (), (), True, 0)  # unless a closed client is why it ends


async def _taken(client: Connection) -> None:
    """Wait while the connection has more to send than the scheduler has read lately."""
    client._flush()
    if client._link is not None:
        await client._link.comm.drained()
