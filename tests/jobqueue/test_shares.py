"""Which pool is for which work: of several pools that could do it, one."""

from __future__ import annotations

from typing import Any

import pytest

from hpcdask.jobqueue.shares import Division, share
from hpcdask.launchers.stock import Stock, Waiting, WorkerStock
from hpcdask.launchers.units import Unit
from hpcdask.launchers.worth import idle_units
from hpcdask.messages import Restriction

RESOURCES = {"workers": (), "gpu": (("GPU", 1.0),), "big": (("GPU", 4.0), ("MEM", 100.0))}


def division(open: str = "workers gpu big", **homes: str) -> Division:
    return Division(open.split(), RESOURCES, homes)


def line(workers: tuple[str, ...] = (), n_able: int = 0, **resources: float) -> Waiting:
    return Waiting(Restriction(workers, False, tuple(resources.items())), 3, 6.0, n_able)


def worker(name: str, **is_so: Any) -> WorkerStock:
    return WorkerStock(name, 1, **is_so)


BUSY: dict[str, Any] = {"seconds": 5.0, "n_runnable": 2, "is_busy": True}


@pytest.mark.parametrize(
    ("waiting", "pool"),
    [
        (Waiting(None, 3, 6.0, 0), "workers"),
        (line(GPU=1), "gpu"),
        (line(GPU=2), "big"),
        (line(MEM=50), "big"),
        (line(GPU=1, MEM=50), "big"),
        (line(GPU=8), None),
        (line(TPU=1), None),
        (line(TPU=1, n_able=1), "workers"),  # somebody has one, whatever we know
        (line(("5_1",)), "gpu"),
        (line(("elsewhere", "6_1"), GPU=1), "big"),
        (line(("elsewhere",)), "workers"),
    ],
)
def test_waiting_tasks_count_for_the_first_pool_that_can_run_them(waiting, pool):
    pools = division(**{"5_1": "gpu", "6_1": "big"})
    stock = Stock(waiting=(waiting,))
    counted = [name for name in pools.open if share(stock, name, pools).waiting]
    assert counted == ([pool] if pool else [])


def test_a_pool_that_nobody_has_opened_takes_no_work():
    stock = Stock(waiting=(Waiting(None, 3, 6.0, 0), line(GPU=1)))
    pools = division("gpu big")
    assert share(stock, "gpu", pools).waiting == stock.waiting
    assert share(stock, "big", pools).waiting == ()
    assert share(stock, "workers", division("workers")) is stock


def test_all_work_that_was_given_out_counts_once():
    homes = {"1_1": "workers", "5_1": "gpu", "5_2": "gpu"}
    stock = Stock(
        workers=(
            worker("1_1", **BUSY),
            worker("5_1", **BUSY, is_bound=True, nbytes=100),
            worker("5_2", **BUSY, nbytes=10),
            worker("stranger", **BUSY),
        )
    )
    pools = division("workers gpu", **homes)
    first, gpu = share(stock, "workers", pools), share(stock, "gpu", pools)
    assert [w.name for w in gpu.workers] == ["5_1", "5_2"]
    assert [w.n_runnable for w in gpu.workers] == [2, 0]
    assert [w.n_runnable for w in first.workers] == [2, 0, 2, 2]
    assert [w.nbytes for w in first.workers] == [0, 100, 10, 0]
    assert sum(w.nbytes for w in gpu.workers) == 0
    assert first.seconds + gpu.seconds == stock.seconds


def test_a_gpu_with_tasks_that_others_can_run_is_idle_once_there_is_another():
    units = (Unit("5_1", ("5_1",)),)
    homes = {"1_1": "workers", "5_1": "gpu"}
    for others, idle in [
        ((), []),
        ((worker("1_1", is_leaving=True),), []),
        ((worker("1_1", **BUSY),), ["5_1"]),
    ]:
        stock = Stock(workers=(*others, worker("5_1", **BUSY)))
        seen = share(stock, "gpu", division("workers gpu", **homes))
        assert idle_units(seen, units) == idle
        bound = Stock(workers=(*others, worker("5_1", **BUSY, is_bound=True)))
        assert idle_units(share(bound, "gpu", division("workers gpu", **homes)), units) == []
