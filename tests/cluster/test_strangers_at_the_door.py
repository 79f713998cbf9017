"""Strangers who connect and say nothing do not keep a cluster from working, nor stay."""

from __future__ import annotations

import socket

from waiting import wait_until

from hpcdask import Client, LocalCluster
from hpcdask.comm.addresses import parse_address

STRANGERS = 500


def hung_up(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_cluster_works_on_while_five_hundred_strangers_stand_at_its_door() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        target = parse_address(cluster.scheduler_address)
        strangers = [
            socket.create_connection((target.host, target.port), timeout=10)
            for _ in range(STRANGERS)
        ]
        try:
            # A client that comes after them is let in, and its tasks run, before they are gone.
            with Client(cluster.scheduler_address, token=cluster._token, timeout=4) as client:
                futures = client.map(pow, range(2000), [2] * 2000, pure=False)
                assert sum(client.gather(futures, timeout=20)) == sum(n * n for n in range(2000))
            wait_until(lambda: all(map(hung_up, strangers)), 15, "all strangers are refused")
            assert len(cluster.scheduler.workers) == 2
        finally:
            for stranger in strangers:
                stranger.close()
