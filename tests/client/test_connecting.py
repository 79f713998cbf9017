"""How a client finds its scheduler, and what it says when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask import AuthenticationError, Client, CommClosedError, LocalCluster, rendezvous
from hpcdask.errors import (
    ConfigError,
    HandshakeError,
    HpcdaskError,
    RendezvousTimeoutError,
    WorkerStartError,
)

TOKEN = "5a" * 32


def increment(x: int) -> int:
    return x + 1


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rendezvous") / "scheduler.json"


@pytest.fixture(scope="module")
def cluster(scheduler_file: Path) -> Iterator[LocalCluster]:
    kwargs = {"scheduler_file": scheduler_file}
    with LocalCluster(n_workers=1, threads_per_worker=1, scheduler_kwargs=kwargs) as cluster:
        yield cluster


@contextlib.contextmanager
def listening(answer: bytes | None = None) -> Iterator[int]:
    """A port where something else than a scheduler listens: silently, or with an answer."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    accepted.append(connection)
                    if answer is not None:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in accepted:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def contact(port: int, id: str = "Scheduler-gone") -> str:
    return json.dumps(
        {
            "type": "Scheduler",
            "id": id,
            "address": f"tcp://127.0.0.1:{port}",
            "dashboard": "",
            "token": TOKEN,
            "started": 1.0,
            "version": "0",
            "host": "here",
            "pid": 1,
            "job": "",
        }
    )


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def works(client: Client) -> bool:
    return client.submit(increment, 1).result(timeout=10) == 2


# -- Ways that lead to it --------------------------------------------------------------------------


def test_by_a_cluster(cluster: LocalCluster) -> None:
    with Client(cluster) as client, cluster.get_client() as another:
        assert works(client)
        assert works(another)
        assert client.scheduler_address == cluster.scheduler_address


def test_by_an_address_and_token(cluster: LocalCluster) -> None:
    token = cluster.scheduler.token
    with Client(cluster.scheduler_address, token=token, timeout=5) as client:
        assert works(client)
    bare = cluster.scheduler_address.removeprefix("tcp://")
    with Client(bare, token=token.hex(), timeout=5) as client:
        assert works(client)


def test_by_a_scheduler_file(cluster: LocalCluster, scheduler_file: Path) -> None:
    with Client(scheduler_file=scheduler_file, timeout=5) as client:
        assert works(client)
    with Client(scheduler_file=str(scheduler_file), timeout=5) as client:
        assert works(client)


def test_keywords_of_distributed_that_mean_nothing_here_change_nothing() -> None:
    with LocalCluster(n_workers=0) as cluster:
        theirs = {"heartbeat_interval": "5s", "connection_limit": 9, "serializers": ["pickle"]}
        with Client(cluster, **theirs, security=None, extensions={}) as client:
            assert client.status == "running"
        with pytest.raises(ConfigError, match="leave security out"):
            Client(cluster, security=object())


def test_by_the_environment(
    cluster: LocalCluster, scheduler_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCDASK_SCHEDULER_FILE", str(scheduler_file))
    with Client(timeout=5) as client:
        assert client.scheduler_address == cluster.scheduler_address
        assert works(client)
    with pytest.raises(TypeError, match="options of a new LocalCluster"):
        Client(n_workers=2)


def test_by_any_object_with_a_scheduler_address(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        scheduler_address = cluster.scheduler_address

    monkeypatch.setenv("HPCDASK_TOKEN", cluster.scheduler.token.hex())
    with Client(Elsewhere(), timeout=5) as client:
        assert works(client)
    with pytest.raises(ConfigError, match="takes an address or a cluster"):
        Client(object())


def test_a_file_that_comes_late_is_waited_for(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "late.json"
    text = contact(int(cluster.scheduler_address.rpartition(":")[2]), cluster.scheduler.id)
    text = text.replace(TOKEN, cluster.scheduler.token.hex())
    private(path, text[: len(text) // 2])  # half-written
    finish = threading.Timer(0.3, lambda: path.write_text(text))
    finish.start()
    with Client(scheduler_file=path, timeout=10) as client:
        assert works(client)
    finish.join()


def test_a_stale_file_is_followed_once_it_is_replaced(
    cluster: LocalCluster, scheduler_file: Path, tmp_path: Path
) -> None:
    path = private(tmp_path / "stale.json", contact(free_port()))
    finish = threading.Timer(0.3, lambda: path.write_text(scheduler_file.read_text()))
    finish.start()
    with Client(scheduler_file=path, timeout=15) as client:
        assert works(client)
    finish.join()


# -- Dead ends -------------------------------------------------------------------------------------


def test_who_waits_for_a_file_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_REPORT", 0.05)
    monkeypatch.setattr(logging.getLogger("hpcdask"), "propagate", True)
    with pytest.raises(RendezvousTimeoutError):
        Client(scheduler_file=tmp_path / "missing.json", timeout=0.5)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "missing.json does not exist" in told[0].getMessage()


def assert_ends_in_time(kind: type[BaseException], match: str, timeout: float, **options) -> None:
    start = time.monotonic()
    with pytest.raises(kind, match=match):
        Client(timeout=timeout, **options)
    assert time.monotonic() - start < timeout + 1


def test_a_file_that_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "never.json"
    assert_ends_in_time(RendezvousTimeoutError, "does not exist", 0.3, scheduler_file=path)


def test_a_file_that_stays_half_written(tmp_path: Path) -> None:
    path = private(tmp_path / "half.json", contact(1)[:40])
    assert_ends_in_time(RendezvousTimeoutError, "holds no contact", 0.3, scheduler_file=path)


def test_a_stale_file_with_a_dead_address(tmp_path: Path) -> None:
    path = private(tmp_path / "stale.json", contact(free_port()))
    assert_ends_in_time(
        RendezvousTimeoutError, "is there, but cannot reach", 0.5, scheduler_file=path
    )


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200), b""])
def test_a_stale_file_with_another_program_at_its_address(
    tmp_path: Path, answer: bytes | None
) -> None:
    with listening(answer) as port:
        path = private(tmp_path / "stale.json", contact(port))
        assert_ends_in_time(RendezvousTimeoutError, "is there, but", 1.0, scheduler_file=path)


def test_a_stale_file_with_another_scheduler_at_its_address(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    port = int(cluster.scheduler_address.rpartition(":")[2])
    foreign = private(tmp_path / "foreign.json", contact(port))
    assert_ends_in_time(RendezvousTimeoutError, "token", 0.7, scheduler_file=foreign)
    text = contact(port).replace(TOKEN, cluster.scheduler.token.hex())
    own = private(tmp_path / "own.json", text)
    assert_ends_in_time(
        RendezvousTimeoutError, "another scheduler answers", 0.7, scheduler_file=own
    )
    wait_until(lambda: not cluster.scheduler.clients)


def test_an_address_where_nobody_listens() -> None:
    assert_ends_in_time(
        CommClosedError, "refused", 0.3, address=f"127.0.0.1:{free_port()}", token=TOKEN
    )


def test_an_address_where_something_else_listens() -> None:
    with listening() as port:
        assert_ends_in_time(
            CommClosedError, "is it hpcdask", 0.5, address=f"127.0.0.1:{port}", token=TOKEN
        )
    with listening(b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(200)) as port:
        assert_ends_in_time(
            (HandshakeError, CommClosedError),
            "hpcdask",
            0.5,
            address=f"127.0.0.1:{port}",
            token=TOKEN,
        )


def test_another_token(cluster: LocalCluster) -> None:
    assert_ends_in_time(
        AuthenticationError, "token", 5, address=cluster.scheduler_address, token=TOKEN
    )


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(HpcdaskError):
        Client("no-such-host.invalid:8786", timeout=0.5, token=TOKEN)


def test_a_client_that_cannot_start_leaves_nothing() -> None:
    with pytest.raises(TypeError, match="n_wrokers"):
        Client(n_wrokers=1)
    with pytest.raises(WorkerStartError, match="no_such_module"):
        Client(n_workers=2, threads_per_worker=1, preload=["no_such_module"])
    with pytest.raises(HpcdaskError):
        Client(n_workers=1, threads_per_worker=1, local_directory="/proc/no/such/folder")
    # The check after this module's tests finds what is left.


def test_a_connection_that_fails_after_the_cluster_was_made_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*args: object) -> None:
        raise CommClosedError("cannot reach it")

    monkeypatch.setattr("hpcdask.client.connection.reach_scheduler", fail)
    with pytest.raises(CommClosedError, match="cannot reach it"):
        Client(n_workers=1, threads_per_worker=1)


def test_a_bare_client_on_each_rank_of_a_launch_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with pytest.warns(UserWarning, match=r"each of the 4 ranks of Open MPI .*hpc-dask run"):
        client = Client(**options)
    assert client.submit(increment, 1).result(timeout=10) == 2
    client.close()


def test_a_client_on_a_loop_that_ends_with_it_leaves_no_socket_open(cluster: LocalCluster) -> None:
    async def use_it() -> list[int]:
        address, token = cluster.scheduler_address, cluster._token
        async with Client(address, token=token, asynchronous=True) as client:
            futures = client.map(increment, range(4), workers=[0, 1])
            return await client.gather(futures, direct=True)

    def sockets() -> set[str]:
        files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return {os.readlink(file) for file in files if os.path.islink(file)}

    gc.disable()  # which would close them some time later
    try:
        before = sockets()
        for _ in range(10):
            assert asyncio.run(use_it()) == [1, 2, 3, 4]
        wait_until(lambda: not sockets() - before)  # those of the cluster, which is here too
    finally:
        gc.enable()


def test_a_client_is_not_sent_anywhere(cluster: LocalCluster) -> None:
    import pickle

    with Client(cluster) as client, pytest.raises(TypeError, match="get_client"):
        pickle.dumps(client)


def test_the_users_own_token_is_the_default(tmp_path: Path, cluster: LocalCluster) -> None:
    assert os.environ["XDG_CONFIG_HOME"] not in ("", os.path.expanduser("~/.config"))
    code = f"import hpcdask; hpcdask.Client({cluster.scheduler_address!r}, timeout=5)"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AuthenticationError" in elsewhere.stderr
    assert "token" in elsewhere.stderr
