"""Many small tasks: how many a second, and how long one takes."""

from concurrent.futures import ProcessPoolExecutor
from types import ModuleType

from benchmarks.clusters import client_of
from benchmarks.figures import PEERS, Figure, Measure, Row, Series, Target, p99, throughput
from benchmarks.measuring import expect, rates, repeated, round_trips
from benchmarks.systems import POOL
from benchmarks.tasks import noop
from benchmarks.works import WORKS, run_layers


def rate_of(name: str) -> Measure:
    """Tasks per second of one of `WORKS`."""
    work = WORKS[name]

    def measure(module: ModuleType) -> Series:
        with client_of(module) as client:
            work.run(client, work.warm_up)
            return rates(work.ntasks, lambda: work.run(client, work.size))

    return measure


def measure_noop_pool(_module: ModuleType, ntasks: int = 10_000) -> Series:
    with ProcessPoolExecutor(max_workers=2) as pool:

        def run(count: int = ntasks) -> None:
            expect(sum(1 for _ in pool.map(noop, range(count), chunksize=1)), count)

        run(100)
        return rates(ntasks, run)


def measure_roundtrip(module: ModuleType) -> Series:
    with client_of(module) as client:
        return round_trips(lambda i: client.submit(noop, i, pure=False).result())


def measure_roundtrip_pool(_module: ModuleType) -> Series:
    with ProcessPoolExecutor(max_workers=2) as pool:
        return round_trips(lambda i: pool.submit(noop, i).result())


def measure_graph(module: ModuleType) -> Series:
    work = WORKS["graph20k"]
    with client_of(module) as client:
        run_layers(client, work.warm_up)
        runs = repeated(lambda: run_layers(client, work.size))
        return {"first_s": [first for first, _ in runs], "done_s": [done for _, done in runs]}


def ratio_row(label: str, name: str, must: float, aim: float) -> Row:
    """A row that has to be so many times faster than both peers."""
    figures = throughput(label, (Target(must, PEERS),), (Target(aim, PEERS),))
    return Row(figures, rate_of(name))


ROWS = {
    "noop": Row(
        throughput(
            "10,000 no-op tasks, map + gather",
            (Target(10, ("tuned",)), Target(1, (POOL,))),
            (Target(40, ("tuned",)),),
        ),
        rate_of("noop"),
        measure_noop_pool,
    ),
    "roundtrip": Row(
        (
            Figure(
                "round trip p50", "us", "us",
                must=(Target(1 / 20, ("distributed",)),), aim=(Target(200), Target(1, (POOL,))),
            ),
            Figure(
                "round trip p99", "us", "us", p99,
                must=(Target(1 / 8, ("distributed",)),), aim=(Target(1, (POOL,)),),
            ),
        ),
        measure_roundtrip,
        measure_roundtrip_pool,
    ),
    "chain": ratio_row("chain of 1,000", "chain", 20, 60),
    "tree": ratio_row("binary tree, 4,096 leaves", "tree", 8, 15),
    "alltoall": ratio_row("all-to-all 64 x 64, 16 kB rows", "alltoall", 4, 8),
    "graph20k": Row(
        (
            Figure(
                "graph of 20,000: first task starts", "first_s", "s",
                must=(Target(0.2),), aim=(Target(0.05),),
            ),
            Figure(
                "graph of 20,000: all done", "done_s", "s",
                must=(Target(1 / 6, ("tuned",)),), aim=(Target(1 / 12, ("tuned",)),),
            ),
        ),
        measure_graph,
    ),
}  # fmt: skip
