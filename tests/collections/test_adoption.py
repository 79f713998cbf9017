"""Every place where dask looks for distributed finds a client, while there is one."""

from __future__ import annotations

import subprocess
import sys

import dask
import pytest
from dask.base import get_scheduler
from dask.utils import get_default_shuffle_method

import hpcdask
from hpcdask import Client, LocalCluster
from hpcdask.collections import adoption

_METHODS = ("dataframe.shuffle.method", "array.rechunk.method")


def configured() -> list[object]:
    return [dask.config.get(name, None) for name in ("scheduler", *_METHODS)]


def test_a_client_is_the_scheduler_until_it_is_closed() -> None:
    with LocalCluster(n_workers=0) as cluster:
        assert configured() == [None, None, None]
        names = set(dask.base.named_schedulers)
        with Client(cluster) as client:
            assert configured()[1:] == ["tasks", "tasks"]
            assert get_default_shuffle_method() == "tasks"
            for scheduler in (None, "hpcdask", "distributed", "dask.distributed"):
                assert isinstance(get_scheduler(scheduler=scheduler), adoption.CurrentClient)
            assert get_scheduler(scheduler=client) == client.get
            with Client(cluster):
                pass
            assert configured()[1:] == ["tasks", "tasks"]
        assert configured() == [None, None, None]
        assert set(dask.base.named_schedulers) == names
        assert get_default_shuffle_method() == "disk"


def test_what_the_program_has_set_stays() -> None:
    with LocalCluster(n_workers=0) as cluster:
        with (
            dask.config.set({"dataframe.shuffle.method": "p2p", "scheduler": "sync"}),
            Client(cluster),
        ):
            assert configured() == [adoption._scheduler, "p2p", "tasks"]
        with Client(cluster):
            dask.config.set({"array.rechunk.method": "p2p"})
        assert configured() == [None, None, "p2p"]
        dask.config.set({"array.rechunk.method": None})
        with dask.config.set(scheduler="sync"):
            with Client(cluster):
                assert get_scheduler() is adoption._scheduler
            assert dask.config.get("scheduler") == "sync"


def test_a_client_of_distributed_is_meant_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")

    class Client:
        asynchronous = False

        def get(self, dsk: object, keys: list[object], **unused: object) -> list[object]:
            return ["theirs" for _ in keys]

    delayed = dask.delayed(abs)(-1)
    with LocalCluster(n_workers=1, processes=False) as cluster, hpcdask.Client(cluster):
        assert delayed.compute(scheduler="distributed") == 1
        monkeypatch.setattr(distributed, "default_client", Client)
        assert delayed.compute(scheduler="distributed") == "theirs"
        assert delayed.compute() == delayed.compute(scheduler="hpcdask") == 1


def test_a_client_that_is_not_the_default_leaves_others_alone() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster, set_as_default=False) as client:
        # It may be named, and what is computed with it must not be shuffled on a disk.
        assert get_default_shuffle_method() == "tasks"
        assert get_scheduler() is not adoption._scheduler
        assert get_scheduler(scheduler=client) == client.get
        with client.as_current():
            assert get_scheduler() is adoption._scheduler


def test_a_client_whose_scheduler_has_gone_is_none() -> None:
    with LocalCluster(n_workers=0) as cluster:
        client = Client(cluster)
        client.shutdown()
        assert configured() == [None, None, None]


def test_one_waits_for_collections_that_hold_no_futures_as_before() -> None:
    delayed = dask.delayed(abs)(-1)
    with LocalCluster(n_workers=0) as cluster, Client(cluster):
        assert dask.base.wait is adoption._wait
        dask.base.wait(delayed)
    assert dask.base.wait is adoption._original_wait
    assert dask.base.DaskMethodsMixin.__await__ is adoption._original_await


def test_a_lock_for_a_file_is_one_of_the_cluster() -> None:
    array_core = pytest.importorskip("dask.array.core")
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        assert isinstance(dask.utils.get_scheduler_lock(), hpcdask.Lock)
        assert isinstance(dask.utils.get_scheduler_lock(scheduler=client), hpcdask.Lock)
        assert not isinstance(dask.utils.get_scheduler_lock(scheduler="threads"), hpcdask.Lock)
        assert isinstance(array_core.get_scheduler_lock(), hpcdask.Lock)


PROGRAM = """
import sys
def looking():
    return sum(type(finder).__module__ == "hpcdask.with_dask" for finder in sys.meta_path)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "distributed":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import hpcdask
with hpcdask.Client(n_workers=0, processes=False):
    assert looking() == 1
assert looking() == 0
with hpcdask.Client(n_workers=1, processes=False) as client:
    assert client.submit(abs, -1).result() == 1
    assert "dask" not in sys.modules
    import dask
    assert dask.__spec__.loader is dask.__loader__ and "hpcdask" not in repr(dask.base.__loader__)
    two = dask.delayed(lambda: hpcdask.get_worker().address)()
    assert two.compute() == two.compute(scheduler="distributed") in client.nthreads()
    import asyncio
    async def wait():
        await client.persist(two)
    kept = dask.persist(two)[0]
    asyncio.run(wait())
    assert kept.compute() in client.nthreads()
    try:
        dask.delayed(abs)(-1).compute(scheduler="nonesuch")
    except ValueError as exc:
        assert "hpcdask" in str(exc)
assert dask.delayed(abs)(-1).compute() == 1
print("done", looking())
"""


def test_dask_may_be_imported_after_the_client_was_made_and_distributed_not_at_all() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.returncode) == ("done 0\n", 0), run.stderr
