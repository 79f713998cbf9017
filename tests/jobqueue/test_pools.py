"""Several shapes of job in one cluster, on a batch system of a few lines of shell."""

from __future__ import annotations

import time

import pytest
from fake_queue import Queue, QueueCluster
from waiting import on_a_loop, wait_until

from hpcdask import Client, config
from hpcdask.errors import ConfigError, JobError, LaunchError

#: Seconds for anything; a loaded machine is slow.
PATIENCE = 60.0
GPU = {"queue": "gpu", "resources": {"GPU": 1}}
EAGER = {"interval": "50ms", "target_duration": "1s", "keep_idle": "0s"}

pytestmark = pytest.mark.timeout(180)


def states(cluster: QueueCluster, pool: str) -> list[str]:
    return [job.state for job in cluster.jobs() if job.pool == pool]


def live(cluster: QueueCluster, pool: str) -> list[str]:
    return [job.id for job in cluster.jobs() if job.pool == pool and job.is_live]


def test_pools_are_scaled_apart_and_their_jobs_are_told_apart(queue):
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, queue="cpu", cores=4, processes=2) as cluster:
        cluster.add_pool("gpu", **GPU, cores=2)
        assert list(cluster.pools) == ["workers", "gpu"]
        assert cluster.pools["gpu"].job_name == "hpcdask-gpu"
        assert "--queue=gpu" in cluster.job_script(pool="gpu")
        assert "--resources GPU=1" in cluster.job_script("gpu")
        assert "GPU" not in cluster.job_script()
        cluster.scale(4)
        cluster.scale(3, pool="gpu")  # a job of 2 cores has one process
        wait_until(lambda: states(cluster, "gpu") == ["pending"] * 3, PATIENCE)
        assert states(cluster, "workers") == ["pending"] * 2
        cluster.scale(cores=2, pool="gpu")
        wait_until(lambda: states(cluster, "gpu").count("pending") == 1, PATIENCE)
        assert states(cluster, "workers") == ["pending"] * 2
        table = repr(cluster.jobs()).splitlines()
        assert table[0].split()[:3] == ["id", "pool", "state"]
        wait_until(lambda: cluster.jobs()[0].reason == "Priority", PATIENCE)
        cluster.remove_pool("gpu")
        assert list(cluster.pools) == ["workers"]
        with pytest.raises(ConfigError, match="wait for their end"):
            cluster.add_pool("gpu")
        wait_until(lambda: not live(cluster, "gpu"), PATIENCE)
        cluster.add_pool("gpu", cores=1)  # of the same name, and another kind
        cluster.scale(1, pool="gpu")
        wait_until(lambda: "pending" in states(cluster, "gpu"), PATIENCE)


def test_a_task_that_asks_for_a_gpu_brings_a_job_of_that_pool_and_no_other(queue):
    with QueueCluster(queue) as cluster, Client(cluster) as client:
        cluster.add_pool("gpu", **GPU)
        cluster.adapt(maximum=2, **EAGER)
        adaptive = cluster.adapt(maximum=2, pool="gpu", **EAGER)
        assert repr(adaptive).startswith(f"<Adaptive pool gpu of {cluster.name}, 0 to 2 workers")
        plain = client.submit(sum, [1, 2])
        assert plain.result(timeout=PATIENCE) == 3
        assert {job.pool for job in cluster.jobs()} == {"workers"}
        held = client.submit(lambda: [0] * 10, resources={"GPU": 1}, key="held")
        assert held.result(timeout=PATIENCE) == [0] * 10
        [on_gpu] = [job.id for job in cluster.jobs() if job.pool == "gpu"]
        [holder] = client.who_has([held])[held.key]
        assert cluster.workers[on_gpu].address == holder
        # Nothing needs the GPU any more, and what it holds another can hold.
        wait_until(lambda: cluster.workers.keys().isdisjoint({on_gpu}), PATIENCE)
        assert held.result(timeout=PATIENCE) == [0] * 10
        assert "running" in states(cluster, "workers")
        del plain, held
        wait_until(lambda: not cluster.workers and not queue.groups(), PATIENCE)
        assert [len(states(cluster, pool)) for pool in cluster.pools] == [1, 1]


def test_a_gpu_that_others_could_do_without_goes_while_the_work_goes_on(queue):
    with QueueCluster(queue, n_workers=1) as cluster, Client(cluster) as client:
        cluster.add_pool("gpu", **GPU)
        cluster.wait_for_workers(1, timeout=PATIENCE)
        cluster.adapt(maximum=1, pool="gpu", **EAGER)
        needs_it = client.submit(time.sleep, 0.01, resources={"GPU": 1}, key="needs-it")
        plain = [client.submit(time.sleep, 0.05, pure=False) for _ in range(2000)]
        needs_it.result(timeout=PATIENCE)
        assert states(cluster, "gpu")
        wait_until(lambda: not live(cluster, "gpu"), PATIENCE)
        assert any(future.status == "pending" for future in plain)
        assert not any(future.status == "error" for future in plain)
        client.cancel(plain)


def test_workers_of_one_pool_are_waited_for(queue):
    with QueueCluster(queue, n_workers=1) as cluster:
        cluster.add_pool("gpu")
        cluster.wait_for_workers(1, timeout=PATIENCE, pool="workers")
        (queue.folder / "hold").write_text("Never")
        cluster.scale(1, pool="gpu")
        cluster.wait_for_workers(1, timeout=PATIENCE)
        with pytest.raises(JobError, match=r"job 2_1 can never run: Never"):
            cluster.wait_for_workers(1, timeout=PATIENCE, pool="gpu")


def test_a_pool_takes_over_what_it_is_not_told(queue):
    common = {"cores": 8, "processes": 4, "account": "chem", "project": None}
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, **common, job_script_prologue=["module load x"]) as cluster:
        cluster.add_pool("thin", cores=2, memory="1GB")
        thin = cluster.pools["thin"]
        assert (thin.n_workers, thin.nthreads) == (1, 2)
        assert "module load x" in thin.job_script()
        with config.set({"jobqueue.fat.cores": 1, "jobqueue.fat.memory": "9GB"}):
            cluster.add_pool("fat", config_name="fat")
        assert cluster.pools["fat"].memory == 9 * 10**9
        assert "module load x" not in cluster.job_script(pool="fat")


def test_what_cannot_be_a_pool_is_refused(queue):
    with QueueCluster(queue) as cluster:
        cluster.add_pool("gpu")
        for ask, words in [
            (lambda: cluster.add_pool("gpu"), "has a pool 'gpu' already"),
            (lambda: cluster.add_pool("workers"), "has a pool 'workers' already"),
            (lambda: cluster.add_pool("a/b"), "cannot be the name of a pool"),
            (lambda: cluster.add_pool("big", config_name="nope"), "jobqueue.nope"),
            (lambda: cluster.scale(1, pool="tpu"), "no pool 'tpu'; it has workers, gpu"),
            (lambda: cluster.adapt(pool="tpu"), "no pool 'tpu'"),
            (lambda: cluster.job_script(pool="tpu"), "no pool 'tpu'"),
            (lambda: cluster.remove_pool("tpu"), "no pool 'tpu'"),
            (lambda: cluster.remove_pool("workers"), "scale it to 0"),
        ]:
            with pytest.raises(ConfigError, match=words):
                ask()
        with pytest.raises(TypeError, match="colour"):
            cluster.add_pool("big", colour="red")
        assert list(cluster.pools) == ["workers", "gpu"]
    with pytest.raises(LaunchError, match="is closed"):
        cluster.add_pool("late")


@on_a_loop
async def test_pools_of_a_cluster_on_the_loop_of_its_maker(queue: Queue):
    (queue.folder / "hold").write_text("Priority")
    cluster = QueueCluster(queue, asynchronous=True)
    cluster.add_pool("early")
    async with cluster:
        cluster.add_pool("late")
        await cluster.scale(1, pool="early")
        await cluster.scale(1, pool="late")
        assert [job.pool for job in cluster.jobs()] == ["early", "late"]
        cluster.remove_pool("early")  # acts, awaited or not
        with pytest.raises(ConfigError, match="no pool 'early'"):
            await cluster.scale(1, pool="early")
        await cluster.remove_pool("late")
        assert list(cluster.pools) == ["workers"]
