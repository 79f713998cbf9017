"""Large values: between workers, from the client and to it."""

from collections.abc import Callable
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any

from benchmarks.clusters import client_of
from benchmarks.figures import Figure, Row, Series, Target
from benchmarks.loopback import loopback_rate
from benchmarks.measuring import expect, round_trips, seconds, warmed
from benchmarks.tasks import ends_of, make_array, noop


def measure_transfer(module: ModuleType, nbytes: int = 256_000_000) -> Series:
    """Gigabytes per second between two workers, beside a bare socket.

    Each worker makes an array and then one of them needs both. What a task without a transfer
    takes is subtracted: that is what the round trip measures.
    """
    with client_of(module) as client:
        trip = median(round_trips(partial(run_noop, client), 50)["us"]) / 1e6
        times = warmed(lambda: transfer_once(client, nbytes) - trip)
    raw = loopback_rate(nbytes)
    rates = [nbytes / 1e9 / s for s in times]
    return {"gb_per_s": rates, "raw": [raw], "share": [median(rates) / raw]}


def run_noop(client: Any, _i: int) -> None:
    client.submit(noop, 0, pure=False).result()


def transfer_once(client: Any, nbytes: int) -> float:
    left, right = arrays_apart(client, nbytes)

    def both() -> None:
        expect(client.submit(ends_of, left, right, pure=False).result(), [1, 2])

    return seconds(both)


def arrays_apart(client: Any, nbytes: int) -> list[Any]:
    """Two arrays, each on a worker of its own only."""
    workers = sorted(client.scheduler_info()["workers"])
    arrays = [
        client.submit(make_array, nbytes, number, workers=[worker], pure=False)
        for number, worker in enumerate(workers, 1)
    ]
    for number, (array, worker) in enumerate(zip(arrays, workers, strict=True), 1):
        expect(client.submit(ends_of, array, workers=[worker], pure=False).result(), [number])
    found = client.who_has(arrays)
    expect([list(found[array.key]) for array in arrays], [[worker] for worker in workers])
    return arrays


def measure_scatter(module: ModuleType, nbytes: int = 512_000_000) -> Series:
    import numpy  # not above, or the rows that measure memory would have it too

    array = numpy.ones(nbytes, dtype="uint8")
    with client_of(module) as client:

        def scatter() -> object:
            return client.scatter(array, direct=True, hash=False)

        return {"gb_per_s": rate(scatter, nbytes)}


def measure_gather(module: ModuleType, nbytes: int = 512_000_000) -> Series:
    with client_of(module) as client:
        future = client.submit(make_array, nbytes, 1, pure=False)
        expect(client.submit(ends_of, future, pure=False).result(), [1])

        def gather() -> None:
            [array] = client.gather([future], direct=True)
            expect(int(array[-1]), 1)

        return {"gb_per_s": rate(gather, nbytes)}


def rate(work: Callable[[], object], nbytes: int) -> list[float]:
    return [nbytes / 1e9 / s for s in warmed(partial(seconds, work))]


def gigabytes(label: str) -> Figure:
    return Figure(label, "gb_per_s", "GB/s", is_more_better=True)


ROWS = {
    "transfer": Row(
        (
            Figure(
                "worker to worker, 256 MB", "gb_per_s", "GB/s", is_more_better=True,
                must=(Target(1, ("distributed",)),),
            ),
            Figure(
                "worker to worker, share of a bare socket's", "share", "", is_more_better=True,
                must=(Target(0.85),), aim=(Target(0.95),),
            ),
            Figure("bare loopback socket, 256 MB", "raw", "GB/s", is_more_better=True),
        ),
        measure_transfer,
    ),
    "scatter512": Row((gigabytes("scatter 512 MB, direct"),), measure_scatter),
    "gather512": Row((gigabytes("gather 512 MB, direct"),), measure_gather),
}  # fmt: skip
