"""How large a worker is: its part of what this host grants, and in words why.

A host's grant is shared by all processes that mpirun or srun has started there, and a process's
part by the workers that it starts. So however many there are, they never overcommit CPUs or memory,
unless somebody asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpcdask import grants
from hpcdask import host as hosts
from hpcdask.errors import ConfigError
from hpcdask.grants import Grant
from hpcdask.world import launched_world

#: Memory of a nanny, which its worker leaves it: 25 MB resident, and as much again for a worker's
#: last words and whatever a preload imports there.
NANNY_MEMORY = 64 * 2**20


class Sharing(NamedTuple):
    """With how many others a worker shares what its host grants."""

    ranks: int = 1  # processes of the job on this host that start workers, this one included
    workers: int = 1  # that each of them starts
    cpus: int | None = None  # of this rank alone, where its affinity mask is; None if it is shared

    launchers: int = 0  # CPUs of who has started them, which are those of all ranks at least

    @classmethod
    def here(
        cls,
        workers: int = 1,
        ranks: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Sharing:
        """As the launcher's variables have it.

        Parameters
        ----------
        workers : int
            That each rank starts which starts any.
        ranks : int, optional
            How many of the ranks here start any; by default all.
        environ : mapping, optional
            Environment to read; by default that of this process.

        Raises
        ------
        ConfigError
            If these variables contradict each other.
        """
        world = launched_world(environ)
        if not world.launcher:
            return cls(ranks or 1, workers)
        # A launcher that binds its ranks to CPUs may use more of them itself.
        mine, launchers = grants.affinity_mask(), grants.affinity_mask(os.getppid())
        is_bound = mine < launchers
        return cls(
            ranks or world.local_size,
            workers,
            len(mine) if is_bound else None,
            len(launchers) if is_bound else 0,
        )


@dataclass(frozen=True)
class WorkerSize:
    """Threads and memory of one worker.

    Parameters
    ----------
    nthreads : int
        Tasks that it runs at a time.
    memory_limit : int
        Bytes; 0 for no limit.
    why : str
        Both, and where they come from, for the log.
    """

    nthreads: int
    memory_limit: int
    why: str


def size_worker(
    nthreads: int | None = None,
    memory_limit: str | float | None = "auto",
    sharing: Sharing | None = None,
    *,
    has_nanny: bool = True,
    environ: Mapping[str, str] | None = None,
    root: Path = Path("/"),
) -> WorkerSize:
    """How many threads and how much memory a worker gets.

    Parameters
    ----------
    nthreads : int, optional
        Threads of one worker; None or 0: its part of the CPUs, at least one.
    memory_limit : str, int, float or None
        "auto": its part of the memory, by its threads among the CPUs, less what a nanny needs. A
        size ("2GiB", 2000000000): as it says. A bare number above 0 and up to 1: that part of
        what the host grants. 0, "0" and None: no limit.
    sharing : Sharing, optional
        By default as the environment has it.
    has_nanny : bool
        Whether room is to be left for one.
    environ : mapping, optional
        Environment to read; by default that of this process.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.

    Raises
    ------
    ConfigError
        If `memory_limit` has none of these forms, or a number makes no sense.
    """
    environ = os.environ if environ is None else environ
    sharing = sharing or Sharing.here(environ=environ)
    if (nthreads or 0) < 0 or sharing.ranks < 1 or sharing.workers < 1:
        raise ConfigError(
            f"cannot share a host among {sharing.workers} workers of {nthreads} threads each. "
            "Give at least one worker with at least one thread."
        )
    is_auto = isinstance(memory_limit, str) and memory_limit.strip().lower() == "auto"
    cpus, source = 0.0, ""
    if is_auto or not nthreads:  # else it was all decided, as of a worker by its nanny
        cpus, source = _cpus_of_rank(sharing, environ, root)
    threads = nthreads or max(1, _floor(cpus / sharing.workers))
    if is_auto:
        grant = grants.smallest(grants.memory_grants(environ, root))
        memory, memory_source = _part_of_memory(grant, threads, cpus, sharing, has_nanny)
    else:
        memory, memory_source = _given_memory(memory_limit, environ, root)
    size = hosts.format_bytes(memory) if memory else "no memory limit"
    why = f"{threads} {_plural('thread', threads)} ({'as asked' if nthreads else source})"
    return WorkerSize(threads, memory, f"{why}, {size} ({memory_source})")


def _cpus_of_rank(sharing: Sharing, environ: Mapping[str, str], root: Path) -> tuple[float, str]:
    """CPUs that this process may keep busy, perhaps not a whole number, and why so many."""
    together, alone = grants.cpu_grants(environ, root), []
    if sharing.cpus is None:
        together.append(grants.affinity())
    else:
        all_of_them = Grant(sharing.launchers, "affinity") if sharing.launchers else None
        together.append(all_of_them or grants.machine_cpus())
        alone.append(Grant(sharing.cpus, "affinity"))
    if launched_world(environ).launcher:  # else it is no task, and has what the job has
        alone += grants.cpus_of_a_task(environ)
    common = grants.smallest(together)
    part = common.amount / sharing.ranks
    if alone and grants.smallest(alone).amount <= part:
        own = grants.smallest(alone)
        return own.amount, _shared(own.source, own.amount, sharing.workers)
    return part, _shared(common.source, common.amount, sharing.ranks * sharing.workers)


def _shared(source: str, amount: int, workers: int) -> str:
    if workers == 1:
        return source
    return f"{amount} {_plural('CPU', amount)} by {source}, shared by {workers} workers"


def _part_of_memory(
    grant: Grant, threads: int, cpus: float, sharing: Sharing, has_nanny: bool
) -> tuple[int, str]:
    """Bytes of one worker with so many threads, of a rank with so many CPUs, and why so many."""
    n = sharing.ranks * sharing.workers
    part = min(1.0, threads * sharing.workers / cpus)
    source = grant.source + (f", shared by {n} workers" if n > 1 else "")
    if part < 1:
        source += f", for {threads * sharing.workers} of {cpus:g} CPUs"
    amount = int(grant.amount * part / n)
    # Of very little memory the nanny cannot have more than a part, either.
    return amount - (min(NANNY_MEMORY, amount // 4) if has_nanny else 0), source


def _given_memory(
    given: str | float | None, environ: Mapping[str, str], root: Path
) -> tuple[int, str]:
    if given is None:
        return 0, "as asked"
    fraction = _bare_number(given)
    if fraction is not None and 0 < fraction <= 1:  # nobody means one byte
        grant = grants.smallest(grants.memory_grants(environ, root))
        return int(grant.amount * fraction), f"{fraction:g} of {grant.source}"
    return hosts.parse_bytes(given), "as asked"


def in_words(size: WorkerSize, environ: Mapping[str, str], scratch: hosts.Scratch) -> str:
    """All that a worker gets, for one line of the log; `environ` is the worker's."""
    libraries = environ.get("OMP_NUM_THREADS")
    threads = f", OMP_NUM_THREADS={libraries}" if libraries else ""
    return f"{size.why}{threads}, {scratch}"


def cpus_here(
    sharing: Sharing | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    root: Path = Path("/"),
) -> int:
    """CPUs that this process may keep busy, at least 1; parameters as of `size_worker`."""
    environ = os.environ if environ is None else environ
    cpus, _ = _cpus_of_rank(sharing or Sharing.here(environ=environ), environ, root)
    return max(1, _floor(cpus))


def _floor(number: float) -> int:
    return int(number + 1e-9)  # a third three times is one


def _bare_number(given: str | float) -> float | None:
    try:
        return float(given)
    except ValueError:
        return None


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
