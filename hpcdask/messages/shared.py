"""Messages about what programs and tasks share: locks, queues, variables, events, datasets.

Those who use them import this module, and a process that has never met one does so when the first
arrives.
"""

from typing import Any, NamedTuple

from hpcdask.messages import Blob, Plain


class HeldLease(NamedTuple):
    """A lease that a client holds, or held when it lost the scheduler."""

    lease: int  # number of the request by which it got it
    kind: str  # "lock", "rlock", "multilock", "semaphore"
    names: tuple[str, ...]
    needed: int  # so many of the names it holds
    limit: int  # leases of each that may be held at a time


class QueueHandle(NamedTuple):
    """How many objects a client has for a queue."""

    queue: str
    handles: int
    limit: int  # values that the queue takes; 0: any number


class DatasetValue(NamedTuple):
    """A value that is to be published."""

    name: Plain  # a string, a number, or a tuple of these
    value: Blob
    keys: tuple[str, ...]  # of the futures in it


# -- Shared things: client and scheduler ----------------------------------------------------------

# Those with a request number, unless something else is said, are carried out once, however often
# they are sent, and answered by `Reply`: after a loss of the connection a client sends them again
# under the number that they had. The scheduler keeps the answer until it is confirmed. False means:
# not in time.


class Confirm(NamedTuple):
    """client -> scheduler: I have the answer of this request, and hold the futures in it."""

    request: int


class GiveUp(NamedTuple):
    """client -> scheduler: my time is over: if there is no answer to this request, answer False."""

    request: int


class Withdraw(NamedTuple):
    """client -> scheduler: nobody waits for that request any more; undo it. Answered by `Reply`."""

    request: int
    withdrawn: int


class Resume(NamedTuple):
    """client -> scheduler: after a return: what I wait for, and hold. Before `AllTold`."""

    waiting: tuple[int, ...]  # requests, which will be sent again
    withdrawn: tuple[int, ...]  # requests; of all others I have the answers
    leases: tuple[HeldLease, ...]
    queues: tuple[QueueHandle, ...]


class AcquireLease(NamedTuple):
    """client -> scheduler: let me hold so many of these; the lease has the request's number."""

    request: int
    kind: str  # as in `HeldLease`, as what follows
    names: tuple[str, ...]
    needed: int
    limit: int
    declares: bool  # a semaphore that is not there; else it was closed


class ReleaseLease(NamedTuple):
    """client -> scheduler: I hold this no longer. The answer: whether I did."""

    request: int
    lease: int


class CountLeases(NamedTuple):
    """client -> scheduler: how many leases of this are held?"""

    request: int
    kind: str
    name: str


class CloseSemaphore(NamedTuple):
    """client -> scheduler: let nobody use it any more. The answer: how many leases were held."""

    request: int
    name: str


class OpenQueue(NamedTuple):
    """client -> scheduler: I have one more object for this queue."""

    queue: str
    limit: int  # as in `QueueHandle`; the first that is not 0 counts


class CloseQueue(NamedTuple):
    """client -> scheduler: I have closed one of these objects; with the last the queue ends."""

    queue: str


class PutValue(NamedTuple):
    """client -> scheduler: put this into a queue, when there is room."""

    request: int
    queue: str
    value: Blob
    keys: tuple[str, ...]  # of the futures in it
    limit: int


class TakeValues(NamedTuple):
    """client -> scheduler: give me the next values of a queue. Answered by `Values`."""

    request: int
    queue: str
    number: int  # -1: as many as there are


class CountValues(NamedTuple):
    """client -> scheduler: how many values are in a queue?"""

    request: int
    queue: str


class SetVariable(NamedTuple):
    """client -> scheduler."""

    request: int
    name: str
    value: Blob
    keys: tuple[str, ...]


class GetVariable(NamedTuple):
    """client -> scheduler: the value, when there is one. Answered by `Values`."""

    request: int
    name: str


class DeleteVariable(NamedTuple):
    """client -> scheduler."""

    request: int
    name: str


class ChangeFlag(NamedTuple):
    """client -> scheduler: set or clear an event."""

    request: int
    name: str
    is_set: bool


class AskFlag(NamedTuple):
    """client -> scheduler: is an event set?"""

    request: int
    name: str


class AwaitFlag(NamedTuple):
    """client -> scheduler: answer when an event is set."""

    request: int
    name: str


class Publish(NamedTuple):
    """client -> scheduler: keep these for all, all of them or none."""

    request: int
    datasets: tuple[DatasetValue, ...]
    override: bool  # those that are there


class GetDatasets(NamedTuple):
    """client -> scheduler: what was published by these names? Answered by `Values`."""

    request: int
    names: tuple[Plain, ...]


class ListDatasets(NamedTuple):
    """client -> scheduler: which datasets are there?"""

    request: int


class Unpublish(NamedTuple):
    """client -> scheduler: forget these. The answer: how many there were."""

    request: int
    names: tuple[Plain, ...]


class Values(NamedTuple):
    """scheduler -> client: the values that were asked for; None: there is none."""

    request: int
    values: tuple[Blob | None, ...]


# Of these what is asked once may be lost with the connection, as other requests.


class SetMetadata(NamedTuple):
    """client -> scheduler. Answered by `Reply`."""

    request: int
    path: tuple[Plain, ...]
    value: Plain  # a blob, or a tree of dicts with blobs as leaves


class GetMetadata(NamedTuple):
    """client -> scheduler. Answered by `Reply`: as the value of `SetMetadata`."""

    request: int
    path: tuple[Plain, ...]


class LogEvent(NamedTuple):
    """client, worker -> scheduler: this has happened. To a client answered by `Reply`."""

    request: int
    topics: tuple[str, ...]
    message: Blob


class EventLogged(NamedTuple):
    """scheduler -> client: something has happened that belongs to a topic."""

    topic: str
    time: float  # seconds since the epoch, by the scheduler's clock
    message: Blob


class GetEvents(NamedTuple):
    """client -> scheduler: what is known of a topic, or of all? Answered by `EventsLogged`."""

    request: int
    topic: str | None


class EventsLogged(NamedTuple):
    """scheduler -> client."""

    request: int
    events: tuple[EventLogged, ...]


class Subscribe(NamedTuple):
    """client -> scheduler: tell me of new events of a topic."""

    topic: str


class Unsubscribe(NamedTuple):
    """client -> scheduler."""

    topic: str


#: As of `hpcdask.messages`.
OPCODES: tuple[type[Any], ...] = (
    Confirm,
    GiveUp,
    Withdraw,
    Resume,
    AcquireLease,
    ReleaseLease,
    CountLeases,
    CloseSemaphore,
    OpenQueue,
    CloseQueue,
    PutValue,
    TakeValues,
    CountValues,
    SetVariable,
    GetVariable,
    DeleteVariable,
    ChangeFlag,
    AskFlag,
    AwaitFlag,
    Publish,
    GetDatasets,
    ListDatasets,
    Unpublish,
    Values,
    SetMetadata,
    GetMetadata,
    LogEvent,
    EventLogged,
    GetEvents,
    EventsLogged,
    Subscribe,
    Unsubscribe,
)
