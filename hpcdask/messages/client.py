"""Messages between a client and the scheduler.

A worker imports them only when one of its tasks is a client.
"""

from typing import Any, NamedTuple

from hpcdask.messages import (
    Blob,
    Dependency,
    Function,
    PlacedValue,
    Restriction,
    StoredValue,
    TaskError,
    TaskSpec,
    Version,
)


class SubmitTasks(NamedTuple):
    """client -> scheduler: a chunk of a graph, dependencies before their dependants."""

    submission: int  # number of the submission; chunks of one graph share it
    functions: tuple[Function, ...]
    tasks: tuple[TaskSpec, ...]
    wanted: tuple[str, ...] | None  # keys that the client holds futures of; None: all of them
    first: int  # position of tasks[0] within the submission, for the order of running
    priority: float  # the user's; higher runs earlier
    retries: int
    final: bool  # no further chunk of this submission follows
    want: int = 0  # number of this message among those by which the client wants keys
    restriction: Restriction | None = None  # of all its tasks


class WantKeys(NamedTuple):
    """client -> scheduler: I hold futures of these keys."""

    keys: tuple[str, ...]
    want: int = 0  # as in `SubmitTasks`


class ReleaseKeys(NamedTuple):
    """client -> scheduler: I hold no future of these keys any more."""

    keys: tuple[str, ...]


class AllTold(NamedTuple):
    """client -> scheduler: after a return, that was all that I submitted and hold."""


class ClientClosing(NamedTuple):
    """client -> scheduler: I leave on purpose, and shall not come back."""


class CancelKeys(NamedTuple):
    """client -> scheduler: stop computing these, and all that depends on them."""

    keys: tuple[str, ...]
    force: bool  # although other clients want them
    reason: str


class KeepUntilDone(NamedTuple):
    """client -> scheduler: compute these even if all clients leave (fire_and_forget)."""

    keys: tuple[str, ...]


class WantsRead(NamedTuple):
    """scheduler -> client: what follows was sent in knowledge of all wants up to this one.

    What came before may be about an earlier life of a key that the client had released.
    """

    want: int


class TaskDone(NamedTuple):
    """scheduler -> client: a wanted key has its value, which comes along if it is small."""

    key: str
    nbytes: int
    value: Blob | None


class TaskFailed(NamedTuple):
    """scheduler -> client: a wanted key will not have a value."""

    key: str
    error: TaskError


class KeyLost(NamedTuple):
    """scheduler -> client: the value is gone with its worker and is computed again."""

    key: str


class KeyCancelled(NamedTuple):
    """scheduler -> client: nobody will compute this key."""

    key: str
    reason: str
    is_unknown: bool = False  # it cannot, having lost or never known it: nobody gave it up


class LocateKeys(NamedTuple):
    """client -> scheduler: who has these? Answered by `Locations`."""

    request: int
    keys: tuple[str, ...]


class Locations(NamedTuple):
    """scheduler -> client: holders of keys in memory; a key that is not has no addresses."""

    request: int
    found: tuple[Dependency, ...]


class GatherKeys(NamedTuple):
    """client -> scheduler: fetch these for me. Answered by `KeyValues`."""

    request: int
    keys: tuple[str, ...]


class PlanScatter(NamedTuple):
    """client -> scheduler: where may I put these values? Answered by `ScatterPlan`."""

    request: int
    items: tuple[tuple[str, int], ...]  # key, nbytes
    workers: tuple[str, ...]  # addresses or names to choose from; empty: all
    broadcast: bool  # every value to every one of them


class ScatterPlan(NamedTuple):
    """scheduler -> client."""

    request: int
    placements: tuple[PlacedValue, ...]


class DataScattered(NamedTuple):
    """client -> scheduler: the values are where the plan put them; without addresses: nowhere."""

    placements: tuple[PlacedValue, ...]


class StoreForClient(NamedTuple):
    """client -> scheduler: I cannot reach the workers, pass these on. Answered by `Reply`."""

    request: int
    address: str
    values: tuple[StoredValue, ...]


class Inspect(NamedTuple):
    """client -> scheduler: a question about the cluster. Answered by `Reply`."""

    request: int
    what: str  # who_has, has_what, nthreads, identity
    names: tuple[str, ...]  # keys or workers asked about; empty: all


class RunOnWorkers(NamedTuple):
    """client -> scheduler: call a function on workers. Answered by `CallOutcomes`."""

    request: int
    function: Blob  # pickle of (function, args, kwargs)
    workers: tuple[str, ...]  # addresses or names; empty: all
    wait: bool  # for the outcome
    nanny: bool  # on the workers' nannies instead


class RunOnScheduler(NamedTuple):
    """client -> scheduler: call a function there. Answered by `CallOutcomes`."""

    request: int
    function: Blob
    wait: bool


class CallOutcomes(NamedTuple):
    """scheduler -> client: what each called process returned or raised."""

    request: int
    returned: tuple[tuple[str, Blob], ...]  # address, pickled result
    raised: tuple[tuple[str, TaskError], ...]


class RegisterPlugin(NamedTuple):
    """client -> scheduler: run this, on all that are there and all that will come.

    Answered by `CallOutcomes`: what came of it on those that are there.
    """

    request: int
    kind: str  # what runs it: worker, nanny or scheduler
    name: str  # it takes the place of the one that has this name
    registration: str  # unique
    plugin: Blob
    idempotent: bool  # if there is one of that name, leave it alone
    again: bool  # after a return: tasks that this client submits wait for it


class UnregisterPlugin(NamedTuple):
    """client -> scheduler. Answered by `CallOutcomes`."""

    request: int
    kind: str
    name: str


class RestartWorkers(NamedTuple):
    """client -> scheduler: forget all tasks, start fresh workers. Answered by `Reply`."""

    request: int
    timeout: float  # seconds


class AwaitWorkers(NamedTuple):
    """client -> scheduler: tell me when there are so many. Answered by `Reply`: how many are."""

    request: int
    n_workers: int
    timeout: float  # seconds


class RetireWorkers(NamedTuple):
    """client -> scheduler: let workers end without losing what only they hold.

    Answered by `Reply`: the addresses of those that have ended.
    """

    request: int
    workers: tuple[str, ...]  # addresses or names
    timeout: float  # seconds; what has not moved by then is lost


class CallActorThrough(NamedTuple):
    """client -> scheduler: I cannot reach the actor's worker, ask it for me.

    Answered as `CallActor`, of which it has the fields.
    """

    request: int
    address: str
    actor: Version
    name: str
    arguments: Blob | None
    callers: tuple[str, ...]


class TakeReturnedThrough(NamedTuple):
    """client -> scheduler: pass this `TakeReturned` on. Answered by `Reply`."""

    request: int
    address: str
    receipt: int


class RestartChosen(NamedTuple):
    """client -> scheduler: give these workers new processes; tasks go on. Answered by `Reply`.

    Its value has for each worker, by its address, whether it was back in time.
    """

    request: int
    workers: tuple[str, ...]  # addresses or names
    timeout: float  # seconds


class RetryKeys(NamedTuple):
    """client -> scheduler: run again what has failed of these. Answered by `Reply`: how many."""

    request: int
    keys: tuple[str, ...]


class CopyKeys(NamedTuple):
    """client -> scheduler: let more workers hold these values. Answered by `Reply`.

    Its value is by key how many copies are missing, where some are.
    """

    request: int
    keys: tuple[str, ...]
    n: int  # workers that shall hold each; 0: all of `workers`
    workers: tuple[str, ...]  # addresses or names to choose from; empty: all
    branching_factor: int  # copies that are made of one at a time
    timeout: float  # seconds


class BalanceKeys(NamedTuple):
    """client -> scheduler: move values from full workers to empty ones. Answered by `Reply`.

    Its value is how many were moved, and how many were on their way when the time was over.
    """

    request: int
    keys: tuple[str, ...]  # that may be moved; empty: all
    workers: tuple[str, ...]  # addresses or names; empty: all
    timeout: float  # seconds


class CountLeft(NamedTuple):
    """client -> scheduler: how many tasks are still to run for these? Answered by `Reply`.

    Its value is by the name of a function how many.
    """

    request: int
    keys: tuple[str, ...]


class AskTaskStream(NamedTuple):
    """client -> scheduler: which runs have ended? They are noted from now on. Answered by `Reply`.

    Its value is a row for each: key, function, worker, start, stop, nbytes, whether it failed.
    """

    request: int
    start: float  # seconds since the epoch
    stop: float  # likewise
    most: int  # rows at most, the last ones; 0: none, but note what follows


class Shutdown(NamedTuple):
    """client -> scheduler: end workers, nannies and yourself."""

    reason: str


class SchedulerClosing(NamedTuple):
    """scheduler -> client: I end on purpose; do not look for me."""

    reason: str


#: As of `hpcdask.messages`.
OPCODES: tuple[type[Any], ...] = (
    SubmitTasks,
    WantKeys,
    ReleaseKeys,
    CancelKeys,
    KeepUntilDone,
    TaskDone,
    TaskFailed,
    KeyLost,
    KeyCancelled,
    LocateKeys,
    Locations,
    GatherKeys,
    PlanScatter,
    ScatterPlan,
    DataScattered,
    StoreForClient,
    Inspect,
    RunOnWorkers,
    RunOnScheduler,
    CallOutcomes,
    RestartWorkers,
    Shutdown,
    AwaitWorkers,
    WantsRead,
    AllTold,
    ClientClosing,
    RetireWorkers,
    SchedulerClosing,
    CallActorThrough,
    TakeReturnedThrough,
    RestartChosen,
    RetryKeys,
    CopyKeys,
    BalanceKeys,
    CountLeft,
    AskTaskStream,
    RegisterPlugin,
    UnregisterPlugin,
)
