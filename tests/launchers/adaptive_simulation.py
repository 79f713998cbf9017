"""What `adapt` costs on a batch system: node-hours, submissions, time; a table of it as a program.

    python tests/launchers/adaptive_simulation.py

prints what docs/adaptive.md shows. `test_simulated_adaptivity.py` holds it to bounds.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from random import Random
from typing import Any

from adaptive_world import N_WORKERS, NTHREADS, Wave, Workload, World, run_virtually

from hpcdask.launchers.adaptive import Adaptive

#: Most jobs of a cluster, and threads of one.
MOST, JOB = 8, N_WORKERS * NTHREADS
#: Seconds after which a workload counts as never done.
LIMIT = 6 * 3600.0
WAITS = {"0": 0.0, "1 min": 60.0, "30 min": 1800.0}


# -- Workloads ------------------------------------------------------------------------------------


def burst(random: Random) -> Workload:
    """A lot of work at once."""
    return Workload([Wave("burst", [random.uniform(10, 30) for _ in range(3000)], 0.0)])


def waves(random: Random) -> Workload:
    """A user who looks at each result for four minutes before the next computation."""
    each = [[random.uniform(5, 15) for _ in range(640)] for _ in range(6)]
    return Workload(
        [Wave("wave", seconds, 240.0 * bool(i), True) for i, seconds in enumerate(each)]
    )


def tail(random: Random) -> Workload:
    """Tasks of which a few take very long."""
    return Workload([Wave("tail", [random.paretovariate(1.3) * 6 for _ in range(2000)], 0.0)])


def trickle(random: Random) -> Workload:
    """A task every ten seconds, for an hour."""
    return Workload([Wave("drop", [random.uniform(10, 30)], 10.0) for _ in range(360)])


def growing(random: Random) -> Workload:
    """Twice as much every three minutes."""
    sizes = [5 * 2**i for i in range(8)]
    return Workload([Wave("more", [random.uniform(20, 40)] * n, 180.0) for n in sizes])


def unknown(random: Random) -> Workload:
    """Tasks of 10 to 20 minutes, which nobody knows before the first has ended."""
    return Workload([Wave("long", [random.uniform(600, 1200) for _ in range(128)], 0.0)])


WORKLOADS = {
    "burst": burst,
    "waves": waves,
    "long tail": tail,
    "trickle": trickle,
    "growing": growing,
    "unknown": unknown,
}


# -- Ways to size a cluster -----------------------------------------------------------------------


async def ours(world: World, most: int, **options: Any) -> None:
    """`Adaptive`, as it is by default for jobs."""
    world.adaptive = Adaptive(world, world, maximum=most * N_WORKERS, **options)
    world.adaptive.start()


async def all_at_once(world: World, most: int) -> None:
    """Every job from the start, until all is done."""
    await world.grow(most)

    async def end() -> None:
        await world.until(lambda: world.done_at < math.inf, 1e6)
        await world.withdraw(most)
        await world.shrink([job.name for job in world.jobs])

    world.ending = asyncio.ensure_future(end())


async def peer(world: World, most: int) -> None:
    """The rule that dask.distributed documents for its `Adaptive`, on jobs of several workers.

    A target from the work over 5 s; as long as it is above what is planned, more; if it is below
    for 3 looks, the workers that have not come yet are given up, then idle ones. A job ends with
    the first of its workers that is to.
    """
    looks: dict[str, int] = {}

    async def look() -> None:
        stock = await world._take_stock()
        live = world.live
        planned = {worker.name: job for job in live for worker in job.workers}
        n_there = len(stock.workers)
        threads = min(math.ceil(stock.seconds / 5.0), stock.n_runnable)
        target = max(math.ceil(threads / NTHREADS), 1 if stock.n_runnable and not n_there else 0)
        idle = [worker.name for worker in stock.workers if not worker.is_busy]
        if target < n_there:
            target = n_there - len(idle)
        target = min(target, most * N_WORKERS)
        if target >= len(planned):
            looks.clear()
            if target > len(planned):
                await world.grow(math.ceil((target - len(planned)) / N_WORKERS))
            return
        absent = [
            name for name, job in planned.items() if name not in {w.name for w in stock.workers}
        ]
        closing = absent[: len(planned) - target]
        if target < len(planned) - len(closing):
            closing += idle[: n_there - target]
        for name in [name for name in looks if name not in closing]:
            del looks[name]
        for name in closing:
            looks[name] = looks.get(name, 0) + 1
        closing = [name for name in closing if looks[name] >= 3]
        leaving = [w for job in live for w in job.registered if w.name in closing]
        for worker in leaving:
            world.event("worker_leaving", worker.address, "it is to end")
        await world.until(lambda: not any(worker.is_there for worker in leaving), 3600.0)
        for job in {planned[name].name: planned[name] for name in closing}.values():
            if job.started == math.inf:
                world.take_back(job)
            else:
                world.kill(job)
                world.given_up.append(world.loop.time())

    async def run() -> None:
        while True:
            await look()
            await asyncio.sleep(1.0)

    world.looking = asyncio.ensure_future(run())


# -- What comes of it -----------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a run has cost."""

    world: World
    node_hours: float
    n_asked: int  # jobs
    n_submissions: int
    n_withdrawn: int
    n_ended: int
    done: float  # seconds
    n_again: int  # tasks that ran more than once
    needed: float  # node-hours of what tasks filled at each moment


def simulate(
    kind: str,
    wait: float,
    way: Any = ours,
    seed: int = 1,
    walltime: float = math.inf,
    **options: Any,
) -> Outcome:
    """Run a workload until it is done and every job has ended."""

    async def run() -> Outcome:
        world = World(WORKLOADS[kind](Random(seed)), wait, seed, walltime)
        filled, since, n_filled = 0.0, 0.0, 0

        def note() -> None:
            nonlocal filled, since, n_filled
            now = world.loop.time()
            filled += (now - since) * n_filled
            running = sum(job.started <= now < job.ended for job in world.jobs)
            since, n_filled = now, min(math.ceil(world.n_active / JOB), running)

        world.on_change = note
        await way(world, MOST, **options)
        try:
            await asyncio.wait_for(world.use(), LIMIT)
            await world.rest()
        except asyncio.TimeoutError:
            pass
        return Outcome(
            world,
            world.node_seconds / 3600,
            len(world.jobs),
            world.n_submissions,
            world.n_withdrawn,
            len(world.given_up) - world.n_withdrawn,
            world.done_at,
            sum(n > 1 for n in world.n_runs.values()),
            filled / 3600,
        )

    return run_virtually(run())


# -- The table ------------------------------------------------------------------------------------

COLUMNS = ["work, queue wait", "needed", "adapt: used", "jobs", "time"]
COLUMNS += ["all at once: used", "time", "peers: used", "jobs", "time"]


def row(kind: str, wait: str) -> str:
    """A line of the table, in Markdown."""
    mine = simulate(kind, WAITS[wait])
    fixed = simulate(kind, WAITS[wait], all_at_once)
    theirs = simulate(kind, WAITS[wait], peer)
    cells = [
        f"{kind}, {wait}",
        f"{fixed.needed:.2f}",
        f"**{mine.node_hours:.2f}**",
        jobs(mine),
        minutes(mine),
        f"{fixed.node_hours:.2f}",
        minutes(fixed),
        f"{theirs.node_hours:.2f}",
        jobs(theirs),
        minutes(theirs),
    ]
    return f"| {' | '.join(cells)} |"


def jobs(outcome: Outcome) -> str:
    """Jobs that were asked for; of these, withdrawn; tasks that ran again, or too often."""
    text = str(outcome.n_asked)
    if outcome.n_withdrawn:
        text += f", {outcome.n_withdrawn} withdrawn"
    if outcome.n_again:
        text += f", {outcome.n_again} tasks again"
    return text + (f", {outcome.world.n_failed} failed" if outcome.world.n_failed else "")


def minutes(outcome: Outcome) -> str:
    return f"{outcome.done / 60:.0f} min" if outcome.done < math.inf else "never"


if __name__ == "__main__":
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for kind in WORKLOADS:
        for wait in WAITS:
            print(row(kind, wait), flush=True)
