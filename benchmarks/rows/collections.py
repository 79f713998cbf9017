"""Collections of dask: an array, a table in groups, a table that is shuffled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from benchmarks.clusters import client_of
from benchmarks.figures import Figure, Row, Series, Target
from benchmarks.measuring import expect, seconds, warmed
from benchmarks.tasks import make_table

#: Rows of each of the parts of a table.
PART, N_PARTS = 100_000, 24
#: As many groups as there are numbers in its columns `id`.
N_IDS = 1000


def measure_array(module: ModuleType) -> Series:
    with client_of(module):
        import dask.array

        def mean(size: int, chunk: int) -> None:
            x = dask.array.random.default_rng(1).random((size, size), chunks=(chunk, chunk))
            value = (x + x.T).mean().compute()
            expect(0.9 < value < 1.1, True)

        mean(200, 100)
        return {"s": warmed(lambda: seconds(lambda: mean(10_000, 1000)), repeats=5)}


@contextmanager
def table_of(module: ModuleType) -> Iterator[tuple[Any, Any]]:
    """A client, and a table on its cluster."""
    with client_of(module) as client:
        import dask.dataframe

        table = dask.dataframe.from_map(make_table, range(N_PARTS), rows=PART, n_ids=N_IDS)
        table = table.persist()
        module.wait(table)
        yield client, table


def measure_groups(module: ModuleType) -> Series:
    with table_of(module) as (_, table):

        def groups() -> None:
            found = table.groupby("name").agg({"x": "mean", "y": "max", "id": "std"}).compute()
            expect(len(found), 26)

        return {"s": warmed(lambda: seconds(groups), repeats=5)}


def measure_shuffle(module: ModuleType) -> Series:
    with table_of(module) as (client, table):

        def shuffle() -> None:
            shuffled = table.shuffle("id").persist()
            module.wait(shuffled)
            lengths = client.gather(client.map(len, module.futures_of(shuffled), pure=False))
            expect(sum(lengths), PART * N_PARTS)

        return {"s": warmed(lambda: seconds(shuffle), repeats=5)}


def row(label: str, measure: Callable[[ModuleType], Series]) -> Row:
    must, aim = Target(1, ("distributed", "tuned")), Target(1 / 1.5, ("distributed", "tuned"))
    return Row((Figure(label, "s", "s", must=(must,), aim=(aim,)),), measure)


ROWS = {
    "array": row("dask.array, mean(x + x.T) of 10,000 x 10,000", measure_array),
    "groupby": row("dask.dataframe, groupby of 2,400,000 rows", measure_groups),
    "shuffle": row("dask.dataframe, shuffle of 2,400,000 rows", measure_shuffle),
}
