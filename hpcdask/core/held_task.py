"""What a worker keeps of each task, what it tells its shell to do, and what comes of that."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from hpcdask.messages import Blob, DefineFunction, TaskError, Version


class Execute(NamedTuple):
    """Run a task in a thread, then call `task_ran`."""

    key: str
    attempt: int
    function: DefineFunction
    arguments: Blob
    inputs: dict[str, Any]  # values of its dependencies
    wanted: bool  # send a small value along


class Abandon(NamedTuple):
    """Do not start this run if it has not started; `task_ran` is due all the same."""

    key: str
    attempt: int


class Fetch(NamedTuple):
    """Ask a worker for values, then call `data_arrived` or `fetch_failed`."""

    address: str
    versions: tuple[Version, ...]


class Ran(NamedTuple):
    """A run returned."""

    value: Any
    nbytes: int
    duration: float  # seconds
    pickled: Blob | None  # if wanted and small


class Raised(NamedTuple):
    """A run raised."""

    error: TaskError
    duration: float  # seconds


class NotStarted(NamedTuple):
    """A run was abandoned before it began."""


class Postponed(NamedTuple):
    """A run wants to be made again, elsewhere or later."""


Instruction = Execute | Abandon | Fetch
Outcome = Ran | Raised | NotStarted | Postponed


class HeldTask:
    """One task as a worker sees it: to run, to fetch, or held."""

    __slots__ = (
        "arguments",
        "asked",
        "attempt",
        "cost",
        "definition",
        "dependencies",
        "dependents",
        "function",
        "holders",
        "is_kept",
        "key",
        "made_by",
        "missing",
        "nbytes",
        "priority",
        "resources",
        "state",
        "tried",
        "value",
        "wanted",
    )

    def __init__(self, key: str, attempt: int) -> None:
        self.key = key
        self.attempt = attempt
        self.state = "new"
        self.dependencies: tuple[str, ...] = ()
        self.dependents: dict[str, None] = {}  # tasks here that need it, as an ordered set
        self.missing = 0  # dependencies not in memory, while waiting
        self.function: DefineFunction | None = None
        self.definition = 0  # checksum of what computes it; 0 if that was elsewhere
        self.resources: tuple[tuple[str, float], ...] = ()  # that its run takes
        self.arguments: Blob = b""
        self.priority: tuple[float, int, int] = (0.0, 0, 0)
        self.wanted = False
        self.cost = 0.0  # seconds that its run is expected to take, while executing
        self.holders: deque[str] = deque()  # workers still to be asked, while fetch or flight
        self.tried: list[tuple[str, str]] = []  # who did not give it, and why if out of reach
        self.asked = ""  # the worker that is asked for it, while flight
        self.is_kept = False  # fetched to be held, whether or not a task here needs it
        self.nbytes = 0
        self.value: Any = None
        self.made_by = ""  # name of the function whose run here gave the value

    def __repr__(self) -> str:
        return f"<HeldTask {self.key} #{self.attempt} {self.state}>"
