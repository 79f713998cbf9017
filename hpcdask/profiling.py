"""A statistical profile of what tasks do: their stacks are looked at now and then.

Recorded while tasks run, and only then; an idle worker looks a few times a second whether any do.
The next look comes the later the longer the last one took, so that looking never takes more than
about a hundredth of the time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from time import perf_counter
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.inspection import run_of
from hpcdask.threads import in_thread

if TYPE_CHECKING:
    from hpcdask.execution import TaskThreads

#: A look may take one part in so many of the time.
_SHARE = 100
#: Seconds between two looks whether a task runs, while none does, and seconds of a new entry of the
#: record. Of so many entries at most the oldest are merged by twos.
_IDLE, CYCLE, _MAX_CYCLES = 0.2, 2.0, 90
#: Places in the code that one entry may have, all workers together, and calls within calls.
_MAX_NODES, _MAX_ALL, _MAX_DEPTH = 2000, 100_000, 200

#: A tree of calls, as dask.distributed has it: count, identifier, description and children.
Tree = dict[str, Any]


class Node:
    """A function in a tree of calls."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count = 0
        self.children: dict[CodeType, Node] = {}


class Recorder:
    """What one thread after the other was seen to do, as a tree per function of tasks."""

    def __init__(self) -> None:
        self._roots: dict[str, Node] = {}
        self._n_nodes = 0

    def add(self, name: str, frames: Iterable[FrameType]) -> None:
        """Note a stack, the outermost frame first."""
        node = self._roots.get(name)
        if node is None:
            node = self._roots[name] = Node()
        node.count += 1
        for frame in islice(frames, _MAX_DEPTH):
            child = node.children.get(frame.f_code)
            if child is None:
                if self._n_nodes >= _MAX_NODES:
                    return
                self._n_nodes += 1
                child = node.children[frame.f_code] = Node()
            child.count += 1
            node = child

    def trees(self) -> dict[str, Tree]:
        """Plain trees by name, which refer to no code."""
        return {name: _plain(node, None) for name, node in self._roots.items()}


def _plain(node: Node, code: CodeType | None) -> Tree:
    children = [_plain(child, code) for code, child in node.children.items()]
    tree = new_tree()
    tree["count"] = node.count
    tree["children"] = {child["identifier"]: child for child in children}
    if code is not None:
        name, file, line = code.co_name, code.co_filename, code.co_firstlineno
        tree["identifier"] = f"{name};{file};{line}"
        tree["description"] = {"name": name, "filename": file, "line_number": line}
    return tree


def new_tree() -> Tree:
    """A tree without calls."""
    return {"count": 0, "identifier": "root", "description": {}, "children": {}}


def merge(trees: Iterable[Tree], most: int = _MAX_ALL) -> Tree:
    """Add up trees; calls for which there is no room are counted with their callers only."""
    result = new_tree()
    room = most
    for tree in trees:
        room = _add(result, tree, room)
    return result


def _add(result: Tree, tree: Tree, room: int) -> int:
    """Add a tree to another; return how many nodes more there may be."""
    result["count"] += tree["count"]
    children = result["children"]
    for identifier, child in tree["children"].items():
        if identifier not in children:
            if room <= 0:
                continue
            room -= 1
            about = {"identifier": identifier, "description": child["description"]}
            children[identifier] = {**new_tree(), **about}
        room = _add(children[identifier], child, room)
    return room


class Cycle(NamedTuple):
    """What was seen within some time."""

    start: float  # seconds since the epoch
    stop: float
    trees: dict[str, Tree]  # by the name of the task's function


def _thinned(cycles: list[Cycle]) -> list[Cycle]:
    """Merge the older two thirds by twos."""
    n_old = 2 * (len(cycles) // 3)
    old = cycles[:n_old]
    merged = [_joined(*pair) for pair in zip(old[::2], old[1::2], strict=True)]
    return merged + cycles[n_old:]


def _joined(one: Cycle, other: Cycle) -> Cycle:
    names = one.trees.keys() | other.trees.keys()
    both = (one.trees, other.trees)
    trees = {n: merge((t[n] for t in both if n in t), _MAX_NODES // len(names)) for n in names}
    return Cycle(one.start, other.stop, trees)


class Profiler:
    """Looks at a worker's task threads, in a thread of its own, until it is told to stop.

    Parameters
    ----------
    threads : TaskThreads
    is_busy : callable
        Whether tasks run.
    interval : float
        Seconds between two looks.
    ended : threading.Event
        Set when the worker ends.
    """

    def __init__(
        self,
        threads: TaskThreads,
        is_busy: Callable[[], bool],
        interval: float,
        ended: threading.Event,
    ) -> None:
        self._threads, self._is_busy, self._interval = threads, is_busy, interval
        self._ended = ended
        self._current = Recorder()
        self._since = time.time()
        #: Start, end, and trees by the name of a function.
        self._cycles: list[Cycle] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Look again and again."""
        pause = 0.0
        while not self._ended.wait(pause):
            if not self._is_busy():
                pause = _IDLE
                continue
            start = perf_counter()
            self._look()
            pause = max(self._interval, _SHARE * (perf_counter() - start))

    def _look(self) -> None:
        with self._lock:
            now = time.time()
            if now - self._since > CYCLE:
                self._end_cycle(now)
            for frame in sys._current_frames().values():
                run = run_of(frame, self._threads)
                if run is not None:
                    self._current.add(run.function, reversed(run.frames))

    def _end_cycle(self, now: float) -> None:
        trees = self._current.trees()
        if trees:
            self._cycles.append(Cycle(self._since, now, trees))
            if len(self._cycles) > _MAX_CYCLES:
                self._cycles = _thinned(self._cycles)
        self._current, self._since = Recorder(), now

    def tree(self, name: str | None, start: float | None, stop: float | None) -> Tree:
        """What was seen between two times, in seconds since the epoch; of one function, or all."""
        with self._lock:
            self._end_cycle(time.time())
            cycles = list(self._cycles)
        found = []
        for began, ended, trees in cycles:
            if (stop is None or began <= stop) and (start is None or ended >= start):
                found += [tree for n, tree in trees.items() if name is None or n == name]
        return merge(found)


def profile_of(name: str | None, start: float | None, stop: float | None, dask_worker: Any) -> Tree:
    """Called on a worker: what its profiler has seen."""
    profiler = dask_worker._threads.profiler
    return new_tree() if profiler is None else profiler.tree(name, start, stop)


async def profile_loop(seconds: float, dask_worker: Any = None, dask_scheduler: Any = None) -> Tree:
    """Called on a worker or the scheduler: look at its event loop for so long."""
    return await in_thread(_watch, threading.get_ident(), seconds)


def _watch(thread: int, seconds: float, interval: float = 0.002) -> Tree:
    recorder = Recorder()
    end = perf_counter() + seconds
    while perf_counter() < end:
        frame = sys._current_frames().get(thread)
        frames = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        recorder.add("loop", reversed(frames))
        time.sleep(interval)
    return merge(recorder.trees().values())
