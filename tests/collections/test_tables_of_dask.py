"""Dataframes from files of two formats: groups, joins and sorting, as dask's threads do them.

With ``TABLES_MB=300`` in the environment the files are as large as that, which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from hpcdask import LocalCluster

dd = pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

MEGABYTES = float(os.environ.get("TABLES_MB", "2"))
IS_LARGE = MEGABYTES > 10
pytestmark = [
    pytest.mark.usefixtures("client"),
    pytest.mark.timeout(1800 if IS_LARGE else 120),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    # Each process that imports pandas and the rest needs two seconds for it.
    n_workers, n_threads = (2, 1) if IS_LARGE else (1, 2)
    with LocalCluster(n_workers=n_workers, threads_per_worker=n_threads) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tables import write_tables

    path = tmp_path_factory.mktemp("tables")
    write_tables(path, MEGABYTES, 20 if IS_LARGE else 4)
    return path


@pytest.fixture
def sales(folder: Path, kind: str) -> Any:
    if kind == "parquet":
        return dd.read_parquet(folder / "sales.*.parquet")
    blocks = "16MB" if IS_LARGE else "400kB"
    return dd.read_csv(folder / "sales.*.csv", parse_dates=["day"], blocksize=blocks)


@pytest.fixture
def assert_same(threads: Executor) -> Callable[[Any, list[str]], None]:
    """Says that the rows of a table are those that threads give, in whichever order."""

    def check(collection: Any, by: list[str]) -> None:
        def rows(table: Any) -> Any:
            return table.reset_index(drop=True).sort_values(by, ignore_index=True)

        ours, theirs = collection.compute(), collection.compute(scheduler=threads)
        assert len(ours) > 10
        pd.testing.assert_frame_equal(rows(ours), rows(theirs))

    return check


BOTH = pytest.mark.parametrize("kind", ["parquet", "csv"])


@BOTH
def test_groups_are_aggregated(sales: Any, assert_same: Any) -> None:
    spent = sales.groupby(["city", "day"]).agg({"amount": ["sum", "max"], "id": "count"})
    spent = spent.reset_index()
    spent.columns = ["city", "day", "sum", "max", "count"]
    assert_same(spent, ["city", "day"])


@BOTH
def test_tables_are_joined_by_a_shuffle(sales: Any, folder: Path, assert_same: Any) -> None:
    people = dd.read_parquet(folder / "people.parquet").repartition(npartitions=3)
    joined = sales.merge(people, on="person", shuffle_method=None)
    assert_same(joined[["id", "person", "group", "amount"]], ["id"])


@BOTH
def test_a_table_is_sorted_by_a_new_index(sales: Any, threads: Executor, assert_same: Any) -> None:
    ordered = sales.set_index("id")
    assert ordered.known_divisions
    assert ordered.index.compute().is_monotonic_increasing
    first, last = ordered.divisions[0], ordered.divisions[-1]
    assert (first, last) == (0, len(sales) - 1)
    assert_same(ordered.loc[first + 100 : first + 900].reset_index(), ["id"])


@pytest.mark.parametrize("kind", ["parquet"])
def test_a_table_on_the_cluster_is_asked_several_times(
    sales: Any, threads: Executor, assert_same: Any
) -> None:
    kept = sales.persist()
    assert kept.amount.sum().compute() == sales.amount.sum().compute(scheduler=threads)
    assert len(kept) == len(kept.compute())
    by_city = kept.groupby("city").amount.mean().compute()
    expected = sales.groupby("city").amount.mean().compute(scheduler=threads)
    pd.testing.assert_series_equal(by_city.sort_index(), expected.sort_index())


@pytest.mark.parametrize("kind", ["csv"])
def test_a_table_is_written_and_read_again(sales: Any, tmp_path: Path, assert_same: Any) -> None:
    sales.to_parquet(tmp_path / "copy")
    copy = dd.read_parquet(tmp_path / "copy")
    assert_same(copy, ["id"])
    assert len(copy) == len(sales)
