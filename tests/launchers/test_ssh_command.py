"""``hpc-dask ssh``, with a real SSH server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sshd import needs_sshd
from waiting import wait_until

from hpcdask import Client, get_worker, network

pytestmark = needs_sshd
HOST = "127.0.0.1"
#: Seconds after which nothing may be left on the hosts.
PROMPT = 8.0


def start(home, sshd, *words, **env):
    port = ("--ssh-port", str(sshd.port)) if sshd is not None else ()
    options = ("--scheduler-port", "0", "--scheduler-file", "scheduler.json", *port)
    return home.hpc_dask("ssh", *options, *words, **env)


@contextlib.contextmanager
def client_of(home, command):
    command.line("the cluster is up")
    file = home.folder / "scheduler.json"
    with Client(scheduler_file=file, set_as_default=False, timeout=20) as client:
        yield client


def workers_of(client):
    return list(client.scheduler_info(timeout=5)["workers"].values())


def seen_of(processes):
    """All that others can see of processes."""
    files = [Path(f"/proc/{p.pid}/{name}") for p in processes for name in ("cmdline", "environ")]
    return b"".join(file.read_bytes() for file in files)


def test_a_cluster_is_started_used_and_ended(ssh_home, sshd):
    command = start(ssh_home, sshd, HOST, HOST, "--nthreads", "1", "--log-level", "debug")
    with client_of(ssh_home, command) as client:
        assert sum(client.gather(client.map(pow, range(10), [2] * 10), timeout=20)) == 285
        assert client.submit(lambda: get_worker().name, workers=1).result(timeout=20) == "1"
        client.submit(print, "printed by a task").result(timeout=20)
        address = client.scheduler_address
    # The user's own token does as well.
    token = ssh_home.token
    with Client(address, token=token, set_as_default=False, timeout=20) as client:
        assert len(workers_of(client)) == 2
    assert (ssh_home.folder / "scheduler.json").stat().st_mode & 0o077 == 0
    command.line(r"\[127\.0\.0\.1\] printed by a task")
    processes = [*sshd.processes(), *command.processes()]
    assert len(processes) >= 6  # the command; a scheduler, two hosts of workers, two workers
    assert token.hex().encode() not in seen_of(processes)
    assert command.end(signal.SIGINT, PROMPT) == 0
    sshd.all_gone(PROMPT)
    assert token.hex() not in command.err + command.out + sshd.log
    assert f"the cluster is up: 2 workers on 1 hosts, scheduler at {address};" in command.err
    lines = command.err.splitlines()
    others = [line for line in lines if " - hpcdask." not in line.partition("[")[0]]
    assert all(line.startswith(f"[{HOST}] ") for line in others), command.err
    assert any(" - hpcdask.scheduler - INFO - Scheduler at: " in line for line in others)
    assert not (ssh_home.folder / "scheduler.json").exists()
    assert "Traceback" not in command.err
    assert "WARNING" not in command.err


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGTERM, "up"),
        (signal.SIGKILL, "up"),
        (signal.SIGINT, "starting"),
        (signal.SIGKILL, "starting"),
    ],
)
def test_whatever_ends_the_command_nothing_stays_on_the_hosts(ssh_home, sshd, number, when):
    command = start(ssh_home, sshd, HOST, "--nthreads", "1")
    if when == "up":
        with client_of(ssh_home, command) as client:
            future = client.submit(subprocess.call, ["sleep", "1000"])
            wait_until(lambda: any(p.name() == "sleep" for p in sshd.processes()))
            del future
    else:
        wait_until(lambda: sshd.processes())
    assert command.end(number, PROMPT) == (-number if number == signal.SIGKILL else 0)
    wait_until(lambda: all(p.name() == "sleep" for p in sshd.processes()), 15)
    for process in sshd.processes():  # what a task has started is the task's own affair
        process.kill()
    assert "Traceback" not in command.err


def test_hosts_come_from_a_file_and_a_client_can_shut_the_cluster_down(ssh_home, sshd):
    (ssh_home.folder / ".ssh/id_ed25519").rename(ssh_home.folder / "key")
    me = f"{sshd.user}@{HOST}:{sshd.port}"
    ssh_home.file("hosts", f"# all of them\n\n{me}  # the first\n")
    words = ("--scheduler", me, "--hostfile", "hosts", me, "--ssh-private-key", "key")
    command = start(ssh_home, None, *words, "--nthreads", "1")
    with client_of(ssh_home, command) as client:
        assert sorted(worker["name"] for worker in workers_of(client)) == ["0", "1"]
        client.shutdown()
    assert command.code(PROMPT) == 0
    assert "its scheduler was shut down" in command.err
    sshd.all_gone(PROMPT)


def test_a_cluster_that_is_shut_down_while_it_starts_ends_at_once(ssh_home, sshd):
    command = start(ssh_home, sshd, HOST, "--nworkers", "8", "--nthreads", "1")
    file = ssh_home.folder / "scheduler.json"
    with Client(scheduler_file=file, set_as_default=False, timeout=20) as client:
        client.shutdown()
    assert command.code(PROMPT) == 1
    assert "its scheduler was shut down before all workers were there" in command.err
    assert "Traceback" not in command.err
    sshd.all_gone(PROMPT)


def test_a_scheduler_that_dies_ends_all_and_logs_stay_where_they_were_wanted(
    ssh_home, sshd, tmp_path
):
    command = start(ssh_home, sshd, HOST, "--log-directory", str(tmp_path / "logs"))
    with client_of(ssh_home, command) as client:
        client.submit(print, "printed by a task").result(timeout=20)
        pid = client.run_on_scheduler(os.getpid, timeout=5)
    [scheduler] = [process for process in sshd.processes() if process.pid == pid]
    scheduler.kill()
    assert command.code(PROMPT) == 1
    assert f"hpc-dask ssh: lost {HOST}: its process was killed by SIGKILL" in command.err
    sshd.all_gone(PROMPT)
    logs = {path.name.split("-")[2]: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs.keys() == {"scheduler", "worker"}
    assert "Scheduler at: " in logs["scheduler"]
    assert "printed by a task" in logs["worker"]
    assert f"[{HOST}]" not in command.err


def test_options_reach_scheduler_and_workers(ssh_home, sshd, tmp_path):
    options = (
        "--nworkers 2 --nthreads 3 --memory-limit 1GiB --resources GPU=1 --worker-port 0 "
        f"--local-directory {tmp_path}/scratch --interface lo --death-timeout 30s --worker-ttl 77s "
        "--allowed-failures 5 --no-dial-back --lifetime 1h --nanny-port 0 --ssh-username"
    ).split()
    command = start(ssh_home, sshd, *options, sshd.user, HOST)
    with client_of(ssh_home, command) as client:
        assert len(workers_of(client)) == 2
        for worker in workers_of(client):
            assert worker["nthreads"] == 3
            assert worker["memory_limit"] == 2**30
            assert worker["local_directory"].startswith(f"{tmp_path}/scratch/")
        assert client.submit(abs, -1, resources={"GPU": 1}).result(timeout=20) == 1
        limits = client.run_on_scheduler(
            lambda dask_scheduler: (
                dask_scheduler.worker_ttl,
                dask_scheduler.state.allowed_failures,
                dask_scheduler.dial_back,
            )
        )
        assert limits == (77.0, 5, False)
        assert client.scheduler_address.startswith("tcp://127.0.0.1:")
    assert command.end() == 0


def test_a_class_of_the_site_without_authentication_at_an_address_of_its_own(ssh_home, sshd):
    ssh_home.file(
        "site_nannies.py",
        "import hpcdask\n\nclass Nanny(hpcdask.Nanny):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, env={'SITE': 'ours'}, **options)\n",
    )
    python = f"env PYTHONPATH={ssh_home.folder}:$PYTHONPATH {sys.executable}"
    words = ("--remote-dask-worker", "site_nannies", "--remote-python", python)
    command = start(ssh_home, sshd, HOST, *words, "--no-auth", "--nohost")
    address = command.line(r"scheduler at (tcp://\S+);")
    assert address.startswith(f"tcp://{network.default_address()}:")
    with Client(address, auth=False, set_as_default=False, timeout=20) as client:
        site = client.submit(lambda: os.environ["SITE"]).result(timeout=20)
        assert site == "ours"
    assert command.end() == 0
    assert "authentication is off" in command.err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ("", 2, "no hosts given"),
        ("--hostfile missing", 2, "cannot read the hostfile missing: No such file"),
        ("a --nanny-port 9000", 2, "a nanny listens on no port here"),
        ("a --memory-limit lots", 2, "'lots' is not a size"),
        (f"{HOST} --ssh-port 1", 1, "cannot connect to 127.0.0.1: Connection refused"),
        (f"{HOST} --ssh-private-key missing", 1, "there is no file missing"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(ssh_home, words, code, why):
    command = ssh_home.hpc_dask("ssh", *words.split())
    assert command.code() == code
    assert len(command.err.splitlines()) == 1, command.err
    assert command.err.startswith("hpc-dask ssh: ")
    assert why in command.err


def test_what_a_host_cannot_do_is_said_in_one_line(ssh_home, sshd):
    command = start(ssh_home, sshd, HOST, "--interface", "nope0", "--log-level", "error")
    assert command.code() == 1
    [line] = command.err.splitlines()
    assert line.startswith(f"hpc-dask ssh: {HOST}: no network interface 'nope0' on ")
    sshd.all_gone(PROMPT)
