"""What nobody else may read, and what a cluster costs that has nothing to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from hpcdask import Client, LocalCluster


def test_the_token_is_in_nobodys_arguments_or_environment() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        token = cluster.scheduler.token
        forms = [token, token.hex().encode(), token.hex().upper().encode()]
        pids = [os.getpid(), *client.run(os.getpid, timeout=5).values()]
        children = [child.pid for child in psutil.Process().children(recursive=True)]
        assert set(children) >= set(pids[1:])
        for pid in {*pids, *children}:
            for file in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{file}").read_bytes()
                assert not any(form in content for form in forms), (pid, file)
        logs = "\n".join(cluster.get_logs(timeout=10).values())
        assert token.hex() not in logs
        assert token.hex() not in repr([cluster, client, cluster.place, *cluster.workers.values()])


def test_scratch_folders_are_private() -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        [worker] = client.scheduler_info(timeout=5)["workers"].values()
        folder = Path(worker["local_directory"])
        assert folder.stat().st_mode & 0o077 == 0
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_an_idle_cluster_uses_next_to_no_cpu() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=2) as cluster, Client(cluster) as client:
        client.gather(client.map(abs, range(1000)), timeout=20)
        processes = [psutil.Process(nanny.pid) for nanny in cluster.workers.values()]
        processes.append(psutil.Process())

        def used() -> float:
            times = [process.cpu_times() for process in processes]
            return sum(t.user + t.system for t in times)

        before = used()
        time.sleep(2.5)  # nothing can be waited for when nothing happens
        share = (used() - before) / 2.5
        assert share < 0.03, f"{100 * share:.1f} % of a core"
