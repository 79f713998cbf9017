"""What must hold after chaos, and what can be told of a cluster for which it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_clusters import Cluster
from chaos_programs import ProgramError
from chaos_times import CLIENT_GRACE
from janitor import marked
from waiting import wait_until

#: Seconds in which all must be as it was, once nothing is amiss any more.
_SETTLED = 30.0
#: Processes whose stacks are shown, at most.
_STACKS = 12


def workers_are_back(cluster: Cluster) -> None:
    """As many workers as before have registered."""
    told, expected = _Told(cluster, "workers"), cluster.expected_workers
    try:
        wait_until(lambda: told.that(lambda found: len(found) == expected), _SETTLED)
    except AssertionError:
        raise AssertionError(
            f"not all {expected} workers are there {_SETTLED:g} s after the last deed: {told.last}"
        ) from None


def memory_is_released(cluster: Cluster) -> None:
    """Neither scheduler nor workers have anything left of computations whose clients are done.

    Keys of a client that was killed are kept for a while, in case that it comes back; so are values
    that outlived a scheduler, and that nobody has asked the new one for.
    """
    _is_released(cluster, _SETTLED, ignored="victim")


def nothing_of_the_dead(cluster: Cluster) -> None:
    """What killed clients wanted is forgotten, too."""
    _is_released(cluster, _SETTLED + CLIENT_GRACE)


def _is_released(cluster: Cluster, limit: float, ignored: str = "") -> None:
    told = _Told(cluster, "view")
    try:
        wait_until(lambda: told.that(lambda view: not left_over(view, ignored)), limit)
    except AssertionError:
        if isinstance(told.last, dict):
            keys = left_over(told.last, ignored)
            raise AssertionError(f"{len(keys)} keys not released: {keys[:20]}") from None
        raise AssertionError(f"nothing heard of released keys: {told.last}") from None


class _Told:
    """What the test's own client was told last; an error of it, say a lost link, is no end."""

    def __init__(self, cluster: Cluster, what: str) -> None:
        assert cluster.control is not None
        self.control, self.what = cluster.control, what
        self.last: Any = None

    def that(self, condition: Callable[[Any], bool]) -> bool:
        try:
            self.last = self.control.ask(self.what)
        except ProgramError as exc:
            self.last = exc
            return False
        return condition(self.last)


def left_over(view: dict[str, Any], ignored: str = "") -> list[str]:
    """Keys that are still known, or held, by whoever.

    Without those of clients `ignored`, and then without those that only clients of an earlier
    scheduler may have wanted.
    """
    keys = {key for held in view["held"].values() for key in held} | set(view["keys"])
    if ignored:
        keys -= {key for key in keys if key.startswith(ignored)} | set(view["unclaimed"])
    return sorted(keys)


def descriptors(cluster: Cluster) -> dict[str, int]:
    """Open files of the processes that live as long as the test."""
    pids = {"scheduler": cluster.scheduler_pid}
    pids |= {client.name: client.process.pid for client in cluster.clients}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}


def no_descriptor_leaks(cluster: Cluster, before: dict[str, int]) -> None:
    """As many as at the beginning, but for a connection to each worker, which may come and go."""
    slack = cluster.expected_workers

    def leaks() -> dict[str, tuple[int, int]]:
        now = descriptors(cluster)
        return {name: (before[name], n) for name, n in now.items() if n > before[name] + slack}

    wait_until(lambda: not leaks(), _SETTLED, f"descriptors before and after: {leaks()}")


def nothing_is_left(cluster: Cluster) -> None:
    """After the end: no process and no temporary file."""
    commands: dict[int, str] = {}

    def no_process() -> bool:
        commands.clear()
        for pid in marked(cluster.mark):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            commands[pid] = command.replace(b"\0", b" ").decode(errors="replace")
        return not commands

    try:
        wait_until(no_process, 10)
    except AssertionError:
        raise AssertionError(f"processes are left: {commands}") from None
    assert cluster.home.left_in_scratch() == []


def dump(cluster: Cluster) -> str:
    """All that helps to see what a cluster hangs on."""
    told = []
    if cluster.control is not None:
        try:
            view = cluster.control.ask("view")
            view["keys"] = len(view["keys"])
            told.append(f"the scheduler says: {json.dumps(view, indent=1)}")
        except AssertionError as exc:
            told.append(f"the scheduler does not say what it does: {exc}")
    pids = [client.process.pid for client in cluster.clients]
    pids += [cluster.scheduler_pid] + [worker.pid for worker in cluster.workers()]
    told += [_stacks(pid) for pid in pids[:_STACKS]]
    told += [f"{nanny}"[-6000:] for nanny in cluster.nannies]
    return "\n\n".join(told)


def _stacks(pid: int) -> str:
    spy = shutil.which("py-spy")
    if spy is None:
        return f"process {pid}: its stacks can be shown where py-spy is installed"
    if pid == os.getpid():  # it would wait for itself; what it does is in the view
        return f"process {pid} is the test itself"
    try:
        dumped = subprocess.run(
            [spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return f"process {pid}: py-spy gets no answer"
    return dumped.stdout or dumped.stderr
