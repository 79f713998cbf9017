"""Every message between two processes of a cluster: its direction, its fields and their units.

A message travels as the msgpack array of its fields, behind the number that `OPCODES` gives its
type. Field types are checked on arrival, so a handler may trust them. Times are seconds, sizes
bytes. A `Blob` is a pickle that only its final reader opens: the scheduler passes blobs on as they
came. The numbers are part of the protocol: append to `OPCODES`, never reorder.

What a worker can start without is declared in modules beside this one, each a family with
`OPCODES` of its own, which is imported by who uses it, or when the first of its messages arrives:
to make a class takes some 70 us, of which a worker's start would feel each.

Every run of a task and every stored value carries an *attempt*: a number that the scheduler hands
out once and never again. Key and attempt together say which bytes are meant, so an answer that
comes late, twice, or for a key that was used again is recognised and dropped.
"""

from typing import Any, NamedTuple, TypeAlias

PROTOCOL_VERSION = 5


class Frames:
    """A pickle with out-of-band buffers (PEP 574), none of which is copied on its way out.

    Parameters
    ----------
    parts : list of buffers
        The pickle first, then its buffers in order; each 1-d, contiguous, of itemsize 1.
    """

    __slots__ = ("nbytes", "parts")

    def __init__(self, parts: list[bytes | bytearray | memoryview]) -> None:
        self.parts = parts
        self.nbytes = sum(len(part) for part in parts)

    def __repr__(self) -> str:
        return f"<Frames of {len(self.parts)} parts, {self.nbytes} bytes>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frames) and list(map(bytes, self.parts)) == list(
            map(bytes, other.parts)
        )

    __hash__ = None  # type: ignore[assignment]


#: Small values are plain bytes inside the message; larger ones follow it as frames.
Blob: TypeAlias = bytes | Frames

#: What msgpack packs by itself: None, bool, int, float, str, bytes, and tuples and dicts of these.
Plain: TypeAlias = Any


# -- Records inside messages ----------------------------------------------------------------------


class Function(NamedTuple):
    """A pickled callable, sent once per chunk of tasks and once per worker."""

    function_id: bytes  # 128-bit hash of the pickle
    name: str  # what durations are averaged by
    code: Blob


class TaskSpec(NamedTuple):
    """One task as a client describes it."""

    key: str
    function: int  # index into the message's functions
    arguments: Blob  # pickle of (args, kwargs), dependencies as placeholders
    dependencies: tuple[str, ...]  # keys known to the scheduler or earlier in this submission


class Restriction(NamedTuple):
    """Where tasks may run, what of a worker's resources each takes, and whether it lasts there."""

    workers: tuple[str, ...]  # addresses, names or hosts; empty: anywhere
    allow_others: bool  # where none of these is there
    resources: tuple[tuple[str, float], ...]  # name, amount; sorted by name
    actor: bool = False  # their values stay on the worker that made them, and end with it


class HeldValue(NamedTuple):
    """A value that a worker holds when it comes back to a scheduler."""

    key: str
    attempt: int
    nbytes: int
    definition: int  # checksum of function and arguments; 0 of scattered data
    is_actor: bool = False  # which lives there, and is no copy that only knows where it does


class HeldRun(NamedTuple):
    """A run that is under way on a worker when it comes back to a scheduler."""

    key: str
    attempt: int
    definition: int  # as in `HeldValue`


class Dependency(NamedTuple):
    """An input of a task and where its value can be fetched."""

    key: str
    attempt: int
    nbytes: int
    addresses: tuple[str, ...]


class Version(NamedTuple):
    """One exact value of a key."""

    key: str
    attempt: int


class StoredValue(NamedTuple):
    """One exact value of a key, with its bytes."""

    key: str
    attempt: int
    value: Blob


class PlacedValue(NamedTuple):
    """Where a client may put one scattered value."""

    key: str
    attempt: int
    nbytes: int
    addresses: tuple[str, ...]


class Cause(NamedTuple):
    """An exception that led to another one; fields as of `TaskError`."""

    exception: Blob
    frames: tuple[tuple[str, int, str], ...]
    text: str
    is_direct: bool  # by ``raise ... from``; else it was being handled


class TaskError(NamedTuple):
    """Why a task, or a call, failed."""

    exception: Blob  # pickled exception, or its text as a `RemoteError`
    frames: tuple[tuple[str, int, str], ...]  # remote traceback: file, line, function
    key: str  # the task that raised; dependants carry the error of what they depend on
    worker: str  # its address; empty if no worker was involved
    text: str = ""  # of the exception, for who cannot rebuild it
    causes: tuple[Cause, ...] = ()  # what led to it, what led to that, and so on


# -- First message of a connection -----------------------------------------------------------------


class RegisterClient(NamedTuple):
    """client -> scheduler."""

    client: str  # unique id
    protocol: int
    version: str
    returns: bool = False  # it had lost the scheduler; all that it holds follows, then `AllTold`
    nanny: str = ""  # of a worker's client: the nanny that watches its process, and
    pid: int = 0  # the process, so that it is known when that has died
    software: tuple[tuple[str, str], ...] = ()  # name, version


class RegisterWorker(NamedTuple):
    """worker -> scheduler: I am here, and reachable at `address`."""

    address: str
    name: str
    nthreads: int
    memory_limit: int  # bytes; 0 if unlimited
    host: str
    pid: int
    local_directory: str
    nanny: str  # name of its nanny, or empty
    protocol: int
    version: str
    resources: tuple[tuple[str, float], ...] = ()  # name, amount
    returns: bool = False  # it had lost the scheduler, and has kept:
    values: tuple[HeldValue, ...] = ()
    runs: tuple[HeldRun, ...] = ()
    software: tuple[tuple[str, str], ...] = ()  # name, version
    plugins: tuple[str, ...] = ()  # registrations of those that it has set up


class RegisterNanny(NamedTuple):
    """nanny -> scheduler: I start and watch the worker `name`."""

    name: str
    host: str
    pid: int
    protocol: int
    version: str
    plugins: tuple[str, ...] = ()  # registrations of those that it has set up


class RegisterPeer(NamedTuple):
    """worker, client or scheduler -> worker: requests for data will follow."""

    protocol: int
    address: str = ""  # whom it means to talk to: where addresses lie, another may answer


class Terminate(NamedTuple):
    """anybody who holds the token -> scheduler or worker: end yourself."""

    protocol: int
    version: str
    reason: str


class Registered(NamedTuple):
    """scheduler -> worker, nanny, client."""

    scheduler_id: str
    heartbeat: float  # seconds between heartbeats
    mismatch: str = ""  # which versions are not the same here and there, in words
    n_plugins: int = 0  # to a nanny: so many `SetUpPlugin` follow, before all else


class Refused(NamedTuple):
    """scheduler -> worker, nanny, client: you cannot take part, and trying again will not help."""

    reason: str


class OutOfReach(NamedTuple):
    """scheduler -> worker: I cannot reach you at your address; register again when that is over."""

    reason: str


# -- Answers --------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """scheduler or worker -> whoever asked."""

    request: int
    value: Plain


class Failure(NamedTuple):
    """scheduler or worker -> whoever asked: the request could not be served."""

    request: int
    error: TaskError


# -- Worker and scheduler -----------------------------------------------------------------------


class DefineFunction(NamedTuple):
    """scheduler -> worker: code that tasks will name by its id."""

    function_id: bytes
    name: str
    code: Blob


class ForgetFunctions(NamedTuple):
    """scheduler -> worker."""

    function_ids: tuple[bytes, ...]


class ComputeTask(NamedTuple):
    """scheduler -> worker: run this once its dependencies are here."""

    key: str
    attempt: int
    function_id: bytes
    arguments: Blob
    dependencies: tuple[Dependency, ...]
    priority: tuple[float, int, int]  # smaller runs earlier
    wanted: bool  # a client holds its future: send a small value along
    resources: tuple[tuple[str, float], ...] = ()  # what it takes of the worker's while it runs


class TakeBack(NamedTuple):
    """scheduler -> worker: give these runs back unless they have started."""

    versions: tuple[Version, ...]


class GivenBack(NamedTuple):
    """worker -> scheduler: these will not run here; the others of a `TakeBack` will, or have."""

    versions: tuple[Version, ...]


class AcquireKeys(NamedTuple):
    """scheduler -> worker: fetch copies of these and keep them."""

    dependencies: tuple[Dependency, ...]


class NotAcquired(NamedTuple):
    """worker -> scheduler: copies that were asked for by `AcquireKeys` and cannot be had."""

    versions: tuple[Version, ...]


class WorkersGone(NamedTuple):
    """scheduler -> worker: these have fallen silent; expect nothing of them any more."""

    addresses: tuple[str, ...]


class FreeKeys(NamedTuple):
    """scheduler -> worker: drop these values, and do not start or report these runs."""

    versions: tuple[Version, ...]


class TaskFinished(NamedTuple):
    """worker -> scheduler: the task ran, and this worker now holds its value."""

    key: str
    attempt: int
    nbytes: int  # measured size of the value
    duration: float  # seconds in the thread, inputs already here
    value: Blob | None  # its pickle, if a client wants it and it is small


class TaskErred(NamedTuple):
    """worker -> scheduler: the task raised."""

    key: str
    attempt: int
    error: TaskError


class TaskRescheduled(NamedTuple):
    """worker -> scheduler: the task wants to be run again, elsewhere or later."""

    key: str
    attempt: int


class KeysAdded(NamedTuple):
    """worker -> scheduler: copies that I fetched and keep."""

    versions: tuple[Version, ...]


class KeysDropped(NamedTuple):
    """worker -> scheduler: values that I no longer hold, for want of memory or a broken disk."""

    versions: tuple[Version, ...]


class DataMissing(NamedTuple):
    """worker -> scheduler: `address` was said to have this value and does not give it.

    The worker has put `attempt` of `key`, the task that needed it, aside: assign it anew.
    """

    key: str
    attempt: int
    missing: Version
    address: str
    unreachable: str = ""  # why we cannot talk to it, though it may well hold the value


class Heartbeat(NamedTuple):
    """worker -> scheduler."""

    cpu: float  # percent of one core since the last one
    rss: int  # bytes resident
    nbytes: int  # measured size of the values held
    executing: int
    ready: int


class ThreadsLent(NamedTuple):
    """worker -> scheduler: it can run more or fewer tasks at a time than it has threads.

    More while tasks wait for other tasks, fewer while runs go on that were given up.
    """

    waiting: int  # so many more; negative if fewer


class CloseWorker(NamedTuple):
    """scheduler -> worker: end yourself."""

    reason: str


class WorkerClosing(NamedTuple):
    """worker -> scheduler: I leave on purpose."""

    reason: str


class WorkerLeaving(NamedTuple):
    """worker, nanny -> scheduler: the worker is to end: take back what it has not started.

    What only it holds is to move. Answered by `CloseWorker` when nothing is lost by its end. Of a
    worker that is killed meanwhile the scheduler knows that it was no task's fault; the nanny says
    so too, since a task may keep the worker from saying anything.
    """

    reason: str
    waits: bool = False  # as long as it may, for workers to come that can take what it holds


class CallFunction(NamedTuple):
    """scheduler -> worker, nanny. Answered by `CallReturned` or `Failure`."""

    request: int
    function: Blob


class CallReturned(NamedTuple):
    """worker, nanny -> scheduler."""

    request: int
    value: Blob


class SetUpPlugin(NamedTuple):
    """scheduler -> worker, nanny. Answered by `CallReturned` or `Failure`."""

    request: int
    name: str
    registration: str
    plugin: Blob
    holds: bool  # what follows waits for it: tasks, and of a nanny the start of its worker


class TearDownPlugin(NamedTuple):
    """scheduler -> worker, nanny. Answered by `CallReturned` or `Failure`."""

    request: int
    name: str


class PluginFailed(NamedTuple):
    """worker, nanny -> scheduler -> client that registered it: it raised, and nobody waited."""

    name: str
    registration: str
    hook: str  # what of the plugin was called
    error: TaskError


# -- Nanny and scheduler -----------------------------------------------------------------------


class RestartWorker(NamedTuple):
    """scheduler -> nanny: end your worker, by force if need be, and start a new one."""


class CloseNanny(NamedTuple):
    """scheduler -> nanny: end your worker and yourself."""

    reason: str


class WorkerLives(NamedTuple):
    """nanny -> scheduler: the worker's process is there and not stopped, though it may be mute.

    Code that keeps the interpreter's lock for minutes keeps a worker from its heartbeats.
    """


class WorkerDied(NamedTuple):
    """nanny -> scheduler: the worker process ended by itself."""

    name: str
    pid: int
    exit_code: int  # negative: the signal that killed it
    stderr: str  # its last lines


# -- Peers: anyone who dials a worker for data -----------------------------------------------------


class FetchKeys(NamedTuple):
    """anyone -> worker: send me these. Answered by `KeyValues`."""

    request: int
    versions: tuple[Version, ...]


class KeyValues(NamedTuple):
    """worker -> whoever asked."""

    request: int
    values: tuple[StoredValue, ...]
    missing: tuple[str, ...]  # keys not held (in that version)
    failed: tuple[tuple[str, TaskError], ...]  # keys whose value cannot be pickled


class StoreKeys(NamedTuple):
    """client or scheduler -> worker: hold these. Answered by `Reply`."""

    request: int
    values: tuple[StoredValue, ...]


class CallActor(NamedTuple):
    """anyone -> worker: call a method of an actor. Answered by `ActorReturned`."""

    request: int
    actor: Version
    name: str
    arguments: Blob | None  # pickle of (args, kwargs); None: give the attribute's value
    callers: tuple[str, ...]  # keys of actors in a method of which it was called, the first first


class ActorReturned(NamedTuple):
    """worker -> whoever called."""

    request: int
    value: Blob
    futures: tuple[str, ...]  # keys of those within it, of which the worker keeps futures as well
    receipt: int  # to be told, by `TakeReturned`, that it need not any more; 0 if there are none


class TakeReturned(NamedTuple):
    """whoever called -> worker: I hold the futures that you returned. Answered by `Reply`."""

    request: int
    receipt: int


#: Message types in the order of their numbers on the wire.
OPCODES: tuple[type[Any], ...] = (
    RegisterClient,
    RegisterWorker,
    RegisterNanny,
    RegisterPeer,
    Registered,
    Refused,
    Reply,
    Failure,
    DefineFunction,
    ForgetFunctions,
    ComputeTask,
    FreeKeys,
    TaskFinished,
    TaskErred,
    KeysAdded,
    DataMissing,
    Heartbeat,
    CloseWorker,
    WorkerClosing,
    CallFunction,
    CallReturned,
    RestartWorker,
    CloseNanny,
    WorkerDied,
    FetchKeys,
    KeyValues,
    StoreKeys,
    ThreadsLent,
    TakeBack,
    GivenBack,
    AcquireKeys,
    NotAcquired,
    WorkersGone,
    KeysDropped,
    WorkerLeaving,
    WorkerLives,
    Terminate,
    OutOfReach,
    TaskRescheduled,
    CallActor,
    ActorReturned,
    TakeReturned,
    PluginFailed,
    SetUpPlugin,
    TearDownPlugin,
)

#: The modules of all families, by the number of their first message.
FAMILIES = {
    0: __name__,
    64: f"{__name__}.client",  # a number below 128 is a single byte
    256: f"{__name__}.shared",
    512: f"{__name__}.doctor",
}

Message: TypeAlias = Any  # one of them; a union of them all would help no reader
