"""Connections that end, and programs that are killed."""

from __future__ import annotations

import os
import subprocess
import sys

from waiting import wait_until

from hpcdask import Client, LocalCluster


def cut(client: Client, cluster: LocalCluster) -> None:
    """End the connection of a client, and wait until it is connected again."""
    comm = client._link.comm
    cluster.loop.call_soon_threadsafe(comm.abort, "cut by a test")
    wait_until(lambda: client._link.comm is not comm and client.status == "running", 10)


class Program:
    """A program with a client, that says "ready" when it is."""

    def __init__(self, cluster: LocalCluster, code: str) -> None:
        text = (
            "import sys, time\nfrom hpcdask import *\n"
            f"client = Client({cluster.scheduler_address!r}, token={cluster._token.hex()!r})\n"
            f"{code}\nprint('ready', flush=True)\ntime.sleep(60)\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Program:
        return self

    def kill(self) -> None:
        self._process.kill()

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
