"""joblib's Parallel, and scikit-learn if it is installed, on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask import Client, LocalCluster
from hpcdask.errors import SerializationError, WaitTimeoutError

joblib = pytest.importorskip("joblib")
import hpcdask.joblib  # noqa: E402

delayed = joblib.delayed


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def clean(client: Client) -> Iterator[None]:
    yield
    wait_until(lambda: not client.run_on_scheduler(n_tasks), 20, "all tasks are forgotten")


def n_tasks(dask_scheduler: object) -> int:
    return len(dask_scheduler.state.tasks)


def pid(_: object) -> int:
    time.sleep(0.02)
    return os.getpid()


def fail(number: int) -> int:
    if number == 3:
        raise KeyError("three")
    return number


def test_calls_run_on_the_workers_in_order(client: Client) -> None:
    with joblib.parallel_config(backend="hpcdask"):
        assert joblib.effective_n_jobs() == 2
        assert joblib.Parallel()(delayed(abs)(-i) for i in range(500)) == list(range(500))
        pids = set(joblib.Parallel(batch_size=1)(delayed(pid)(i) for i in range(8)))
    assert pids <= set(client.run(os.getpid).values())
    with joblib.parallel_backend("hpcdask"):
        assert joblib.effective_n_jobs(3) == 3
    generator = joblib.Parallel(backend="hpcdask", n_jobs=-1, return_as="generator")(
        delayed(abs)(i) for i in range(5)
    )
    assert list(generator) == list(range(5))


def test_an_error_is_raised_as_itself_and_ends_the_rest(client: Client, tmp_path: Path) -> None:
    def leave_trace(i: int) -> None:
        (tmp_path / str(i)).touch()
        time.sleep(0.05)

    calls = [delayed(fail)(3), *(delayed(leave_trace)(i) for i in range(200))]
    with joblib.parallel_config(backend="hpcdask"), pytest.raises(KeyError, match="three"):
        joblib.Parallel(batch_size=1)(calls)
    assert len(list(tmp_path.iterdir())) < 100


def nested(number: int) -> list[int]:
    return joblib.Parallel()(delayed(pow)(number, i) for i in range(3))


def test_calls_within_calls_use_the_same_cluster(client: Client) -> None:
    with joblib.parallel_config(backend="hpcdask"):
        found = joblib.Parallel(batch_size=1)(delayed(nested)(i) for i in range(6))
    assert found == [[1, i, i * i] for i in range(6)]


def where(data: bytes, number: int) -> tuple[int, int]:
    return len(data), number


def test_a_large_argument_is_put_on_the_cluster_once(client: Client) -> None:
    data = os.urandom(1_000_000)
    scattered = []
    scatter = client.scatter

    def counted(*args: object, **kwargs: object) -> object:
        scattered.append(args)
        return scatter(*args, **kwargs)

    client.scatter = counted  # type: ignore[method-assign]
    try:
        with joblib.parallel_config(backend="hpcdask"):
            found = joblib.Parallel(batch_size=1)(delayed(where)(data, number=i) for i in range(9))
        assert len(scattered) == 1
        with joblib.parallel_config(backend="hpcdask", scatter=[data]):
            joblib.Parallel(batch_size=1)(delayed(where)(data, number=i) for i in range(9))
        assert len(scattered) == 2
    finally:
        del client.scatter
    assert found == [(1_000_000, i) for i in range(9)]
    with pytest.raises(TypeError, match="list or tuple"):
        hpcdask.joblib.HpcdaskBackend(scatter=data)


def test_options_of_tasks_are_passed_on(client: Client) -> None:
    name, address = next(
        (worker["name"], address) for address, worker in client.scheduler_info()["workers"].items()
    )
    (only,) = client.run(os.getpid, workers=[address]).values()
    with joblib.parallel_config(backend="hpcdask", workers=name, priority=3):
        assert set(joblib.Parallel()(delayed(pid)(i) for i in range(6))) == {only}


def test_a_keyword_that_it_does_not_know_is_an_error(client: Client) -> None:
    with pytest.raises(TypeError, match=r"no keyword 'worker'; .* workers"):
        joblib.parallel_config(backend="hpcdask", worker="a")


def test_what_cannot_be_pickled_is_told_of_the_users_function(client: Client) -> None:
    def use(model: object) -> object:
        return threading.Lock()

    with joblib.parallel_config(backend="hpcdask"):
        with pytest.raises(SerializationError, match="argument 'model' of use"):
            joblib.Parallel()(delayed(use)(threading.Lock()) for _ in range(3))
        with pytest.raises(SerializationError, match="the result of use"):
            joblib.Parallel()(delayed(use)(i) for i in range(3))


PROGRAM = """
import sys
{}
from hpcdask import Client
with Client(n_workers=1, processes=False) as client:
    {}
    assert "hpcdask.joblib" not in sys.modules
    with joblib.parallel_backend("hpcdask"):
        print(joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(3)))
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "hpcdask.with_dask"]
"""


@pytest.mark.parametrize("places", [("import joblib", ""), ("", "import joblib")])
def test_it_is_known_while_there_is_a_client(places: tuple[str, str]) -> None:
    program = PROGRAM.format(*places)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.returncode) == ("[0, 1, 2]\n", 0), run.stderr


def test_without_a_worker_it_says_so(client: Client) -> None:
    with LocalCluster(n_workers=0) as empty, Client(empty, set_as_default=False) as lonely:
        backend = hpcdask.joblib.HpcdaskBackend(client=lonely, wait_for_workers_timeout=0.2)
        with pytest.raises(WaitTimeoutError, match="wait_for_workers_timeout"):
            joblib.Parallel(n_jobs=-1, backend=backend)([delayed(abs)(1)])


def test_scikit_learn_searches_on_the_cluster(client: Client) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = make_classification(n_samples=200, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0]}, cv=3, n_jobs=-1)
    with joblib.parallel_config(backend="hpcdask"):
        search.fit(x, y)
    here = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0]}, cv=3, n_jobs=1).fit(x, y)
    assert search.best_params_ == here.best_params_
    assert (search.cv_results_["mean_test_score"] == here.cv_results_["mean_test_score"]).all()
