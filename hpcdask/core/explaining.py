"""Why a task is where it is, in a paragraph that a person can read: `explain`.

A pure function of the scheduler's state, called when somebody asks. Nothing is noted for it
beforehand; so what only a worker knows, such as since when a run goes on, is for the worker to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from hpcdask.core.lanes import Lane
from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.transitions import Transitions

#: Names that are given of many, and tasks that are looked at to find what the others wait for.
_NAMED, _LOOKED_AT = 3, 10_000


def explain(state: Transitions, key: str) -> str:
    """Say why a task is in the state that it is in.

    Parameters
    ----------
    state : SchedulerState
    key : str

    Returns
    -------
    str
        Some sentences, the first with the key and its state.
    """
    task = state.tasks.get(key)
    if task is None:
        return (
            f"The scheduler does not know {key!r}: it was never submitted here, or nobody holds "
            "a future of it any more, or it was cancelled."
        )
    if task in state.resting and not task.missing:
        sentences = [*_resting(state, task), *_restricted(task.lane)]
    else:
        sentences = [f"{key!r} is {_STATES[task.state]}.", *_EXPLANATIONS[task.state](state, task)]
    if task.state in ("waiting", "queued", "no-worker", "processing"):
        sentences += _history(task)
    return " ".join(sentences)


def _released(state: Transitions, task: Task) -> Iterable[str]:
    if task in state.held:
        yield (
            "A scheduler was replaced a moment ago: its value may be on a worker that has yet to "
            "come back, which is awaited for some seconds."
        )
        return
    yield (
        "Nobody needs its value now; it is remembered as an input of "
        f"{_some((d.key for d in task.dependents), len(task.dependents))}, should that have to be "
        "computed again."
    )


def _resting(state: Transitions, task: Task) -> Iterable[str]:
    yield f"{task.key!r} rests: it has asked to be run again, by raising Reschedule."
    yield (
        f"{_called(state.resting[task]).capitalize()} has run it last; it is given to another one "
        "that has room, or to the same, within a second."
    )


def _waiting(state: Transitions, task: Task) -> Iterable[str]:
    missing = [d for d in task.dependencies if d.state != "memory"]
    some = ", ".join(f"{d.key!r} ({_SHORT[d.state]})" for d in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    yield f"It waits for {len(missing)} of its {len(task.dependencies)} inputs: {some}{more}."
    roots = _further_back(task)
    if roots and set(roots) != set(missing):
        states = Counter(_SHORT[root.state] for root in roots)
        yield f"In the end it waits for {_counted(states)}."
    first = next((r for r in roots if r.state == "no-worker"), None)
    if first is None and len(roots) == 1:
        first = roots[0]
    if first is not None:
        yield explain(state, first.key)


def _further_back(task: Task) -> list[Task]:
    """What a task that waits is waiting for in the end: tasks that could run, or do."""
    found: dict[Task, None] = {}
    seen = {task}
    stack = [task]
    while stack and len(seen) < _LOOKED_AT:
        task = stack.pop()
        if task.state != "waiting":
            found[task] = None
            continue
        for dependency in task.dependencies:
            if dependency.state != "memory" and dependency not in seen:
                seen.add(dependency)
                stack.append(dependency)
    return list(found)


def _queued(state: Transitions, task: Task) -> Iterable[str]:
    lane = task.lane
    workers = list(lane.workers)
    full = [w for w in workers if not lane.placement.has_room(w)]
    yield (
        f"Its inputs are there, but of {_plural(len(workers), 'worker')} that may run it "
        f"{len(full)} {'has' if len(full) == 1 else 'have'} no room: "
        f"{_some_workers(full, lane)}."
    )
    if lane.n_queued > _LOOKED_AT:
        yield f"{lane.n_queued} tasks are queued for these workers."
    else:
        before = sum(other.priority < task.priority for other in lane.queued)
        yield (
            f"{_plural(before, 'queued task')} {'comes' if before == 1 else 'come'} before it, "
            f"{lane.n_queued - before - 1} after it."
        )
    yield from _restricted(lane)


def _no_worker(state: Transitions, task: Task) -> Iterable[str]:
    yield f"No worker may run it: {state.lanes.why_stranded(task.lane)}."
    workers = [w for w in state.workers.values() if not w.is_leaving]
    lacking = [w for w in workers if not task.lane.has_enough(w)]
    if lacking:
        have = [f"{_called(w)} has {_amounts(task.lane, w)}" for w in lacking[:_NAMED]]
        more = f", and {len(lacking) - _NAMED} more lack it" if len(lacking) > _NAMED else ""
        yield f"Of these {', '.join(have)}{more}."
    yield "It is kept until a worker joins that may run it."


def _processing(state: Transitions, task: Task) -> Iterable[str]:
    worker = task.worker
    assert worker is not None
    yield f"It was sent to {_called(worker)}."
    if task.missing:
        inputs = [d.key for d in task.dependencies if d.state != "memory"]
        yield (
            f"It was sent ahead of {_some(inputs, len(inputs))}, which "
            f"{_is_are(len(inputs))} being computed there."
        )
    else:
        before = sum(o.priority < task.priority and not o.missing for o in worker.processing)
        if before < worker.nthreads:
            yield f"The worker has {_plural(worker.nthreads, 'thread')}: it runs, or is about to."
        else:
            yield (
                f"{before} tasks that were sent there come before it, for "
                f"{_plural(worker.nthreads, 'thread')}: about "
                f"{worker.occupancy / max(worker.nthreads, 1):.2g} s of known work."
            )
    thief = worker.recalled.get(task)
    if thief is not None:
        yield f"It has been asked back for {_called(thief)}, should it not have started."
    if worker.is_leaving:
        yield "That worker is to end; what it has not started is taken back."
    yield from _restricted(task.lane)


def _memory(state: Transitions, task: Task) -> Iterable[str]:
    holders = [_called(w) for w in islice(task.who_has, _NAMED)]
    more = len(task.who_has) - len(holders)
    where = ", ".join(holders) + (f" and {more} more" if more else "")
    if task.lane.is_actor:
        home = next(w for w in task.who_has if task in w.actors)
        yield f"It is an actor, which lives on {_called(home)} and ends with it."
    else:
        yield f"Its value of {task.nbytes} bytes is on {where}."
    n_clients = len(task.wanted_by)
    yield (
        f"It is kept for {_plural(n_clients, 'client')} and "
        f"{_plural(task.waiters, 'task')} still to run."
    )
    if task.function is None and not task.lane.is_actor:
        yield (
            "It was scattered, or has outlived its scheduler: if its workers are lost it cannot be "
            "computed again."
        )


def _erred(state: Transitions, task: Task) -> Iterable[str]:
    error = task.error
    assert error is not None
    where = f" on {error.worker}" if error.worker else ""
    line = ""
    if error.frames:
        filename, number, name = error.frames[-1]
        line = f", in {name} ({filename}, line {number})"
    if error.key != task.key:
        yield f"It was not run, since {error.key!r}, which it depends on, failed{where}{line}."
    else:
        yield f"It failed{where}{line}."
    if task.failures:
        yield f"{_plural(task.failures, 'worker')} died while running it."
    yield "Client.retry runs it again."


_EXPLANATIONS = {
    "released": _released,
    "waiting": _waiting,
    "queued": _queued,
    "no-worker": _no_worker,
    "processing": _processing,
    "memory": _memory,
    "erred": _erred,
}
_STATES = {
    "released": "released",
    "waiting": "waiting for inputs",
    "queued": "queued",
    "no-worker": "without a worker",
    "processing": "with a worker",
    "memory": "done",
    "erred": "in error",
}
#: The same of other tasks.
_SHORT = {**_STATES, "waiting": "waiting itself", "released": "not demanded"}


def _restricted(lane: Lane) -> Iterable[str]:
    """What else decides where a task may run."""
    if lane.restriction is None:
        return
    names = lane.restriction.workers
    if names:
        others = ", others only while none of these is there"
        yield (f"It may run on {_some(names, len(names))} only{others if lane.prefers else ''}.")
    if lane.resources:
        needs = ", ".join(f"{name}={amount:g}" for name, amount in lane.resources)
        yield f"It takes {needs} of its worker while it runs."


def _history(task: Task) -> Iterable[str]:
    if task.failures:
        yield f"{_plural(task.failures, 'worker')} died that may have been running it."
    if task.retries:
        yield f"If it raises it is tried again, {_plural(task.retries, 'time')} more."


def _some_workers(workers: list[WorkerRecord], lane: Lane) -> str:
    """What workers are busy with."""
    texts = []
    for worker in workers[:_NAMED]:
        taken = f"{_plural(worker.n_runnable, 'task')} for {_plural(worker.nthreads, 'thread')}"
        if lane.resources:
            free = ", ".join(
                f"{name}={worker.resources.get(name, 0.0):g}" for name, _ in lane.resources
            )
            taken += f", {free} free"
        texts.append(f"{_called(worker)} has {taken}")
    more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
    return "; ".join(texts) + more


def _amounts(lane: Lane, worker: WorkerRecord) -> str:
    have = dict(worker.info.resources)
    return ", ".join(f"{name}={have.get(name, 0.0):g}" for name, _ in lane.resources)


def _called(worker: WorkerRecord) -> str:
    name, address = worker.info.name, worker.address
    return f"worker {address}" if name in ("", address) else f"worker {name!r} ({address})"


def _some(keys: Iterable[str], count: int) -> str:
    """The first of so many keys."""
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    return ", ".join(map(repr, islice(keys, _NAMED))) + more


def _counted(states: Counter[str]) -> str:
    return ", ".join(f"{_plural(n, 'task')} {state}" for state, n in states.items())


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _is_are(count: int) -> str:
    return "is" if count == 1 else "are"
