"""``hpc-dask scheduler`` and ``hpc-dask worker``: processes that start, serve and end."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import threading
import time

import psutil
import pytest
from waiting import wait_until

from hpcdask import Client, host
from hpcdask.launchers.shape import default_shape
from hpcdask.sizing import NANNY_MEMORY

#: Seconds that a command may take to end when it is told to.
PROMPT = 3.0
SIGNALS = [signal.SIGTERM, signal.SIGINT]


def start_scheduler(home, *options, **env):
    """Start a scheduler on a free port; return it and its address."""
    scheduler = home.hpc_dask("scheduler", "--port", "0", *options, **env)
    return scheduler, scheduler.line(r"Scheduler at: +(tcp://\S+)")


def workers_of(scheduler):
    """(name, nthreads) of the workers that the scheduler says have registered."""
    found = re.findall(r"Register worker (\S+), (\d+) threads", scheduler.err)
    return sorted((name, int(nthreads)) for name, nthreads in found)


def client_of(home, address):
    return Client(address, token=home.token, set_as_default=False, timeout=20)


def submit_endless_task(home, client):
    """Start a task that never returns; return when it runs."""
    mark = home.folder / "runs"
    code = f"import time; open({os.fspath(mark)!r}, 'w').close(); time.sleep(36000)"
    future = client.submit(exec, code)
    wait_until(mark.exists, 20)
    return future


# -- Starting and ending --------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_scheduler_and_worker_say_where_they_are_and_end_with_0_at_a_signal(home, number):
    scheduler, address = start_scheduler(home)
    worker = home.hpc_dask("worker", address)
    worker.line(r"Start worker at: +tcp://\S+:\d+")
    assert worker.line(r"Registered to: +(tcp://\S+)") == address
    assert worker.end(number, PROMPT) == 0
    assert scheduler.end(number, PROMPT) == 0
    for command in (worker, scheduler):
        command.all_gone(1)
        assert "Traceback" not in command.err
    assert home.left_in_scratch() == []


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_task_that_never_returns_does_not_keep_a_worker(visitor, standing, nanny, number):
    options = ("--nthreads", "1", "--drain-timeout", "500ms", nanny)
    worker = visitor.hpc_dask("worker", standing.address, *options)
    with standing.client() as client:
        future = submit_endless_task(visitor, client)
        client.run(time.sleep, 36000, wait=False)
        assert worker.end(number, PROMPT) == 0
        worker.all_gone(1)
        future.cancel()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_who_has_no_patience_with_a_worker_that_leaves_sends_a_second_signal(
    visitor, standing, nanny, number
):
    options = ("--nthreads", "1", "--drain-timeout", "1h")
    worker = visitor.hpc_dask("worker", standing.address, *options, nanny)
    if nanny == "--nanny":  # which, as long as it is starting, has nothing to hand over
        worker.line("Start Nanny at: ")
    with standing.client() as client:
        future = submit_endless_task(visitor, client)
        worker.process.send_signal(signal.SIGTERM)
        worker.line("leaving the cluster")
        assert worker.process.poll() is None
        assert worker.end(number, PROMPT) == 0
        worker.all_gone(1)
        future.cancel()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_task_that_never_returns_does_not_keep_a_scheduler(home, number):
    scheduler, address = start_scheduler(home)
    worker = home.hpc_dask("worker", address, "--nthreads", "1")
    with client_of(home, address) as client:
        future = submit_endless_task(home, client)
        assert scheduler.end(number, PROMPT) == 0
        assert worker.code(PROMPT) == 0, "an ordered shutdown is no error"
        del future
    worker.all_gone(1)


def test_a_signal_ends_a_worker_that_waits_for_its_scheduler(home):
    worker = home.hpc_dask("worker", "--scheduler-file", "missing.json")
    worker.line("waiting for a scheduler: scheduler file missing.json does not exist")
    assert worker.end(signal.SIGTERM, PROMPT) == 0


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_the_loss_of_its_scheduler_ends_a_worker_with_an_error(home, nanny):
    scheduler, address = start_scheduler(home)
    options = ("--log-level", "warning", "--reconnect-timeout", "0")
    worker = home.hpc_dask("worker", address, nanny, *options)
    scheduler.line("Register worker")
    assert scheduler.end(signal.SIGKILL) == -signal.SIGKILL
    assert worker.code(PROMPT) == 1
    assert worker.err.splitlines() == [
        f"hpc-dask worker: lost the scheduler: connection with {address}: closed by the other side"
    ]
    worker.all_gone(1)


def test_a_worker_that_does_not_find_its_scheduler_again_ends_with_an_error(home):
    scheduler, address = start_scheduler(home)
    options = ("--log-level", "warning", "--reconnect-timeout", "200ms")
    worker = home.hpc_dask("worker", address, *options)
    with client_of(home, address) as client:
        client.wait_for_workers(1, timeout=30)
    assert scheduler.end(signal.SIGKILL) == -signal.SIGKILL
    assert worker.code(PROMPT) == 1
    assert worker.err.splitlines()[-1].startswith("hpc-dask worker: lost the scheduler: ")
    worker.all_gone(1)


def test_a_worker_finds_its_scheduler_again_that_was_started_anew_elsewhere(home):
    scheduler, address = start_scheduler(home, "--scheduler-file", "s.json")
    worker = home.hpc_dask("worker", "--scheduler-file", "s.json")
    worker.line("Start Nanny at: ")
    assert scheduler.end(signal.SIGKILL) == -signal.SIGKILL
    worker.line("lost the scheduler: .*; looking for it for 60 s")
    _scheduler, other_address = start_scheduler(home, "--scheduler-file", "s.json")
    assert other_address != address
    worker.line("found the scheduler again")
    with client_of(home, other_address) as client:
        assert client.submit(pow, 2, 5).result(timeout=30) == 32
    assert worker.end() == 0


def test_an_idle_scheduler_ends_by_itself_and_its_workers_with_it(home):
    scheduler, address = start_scheduler(home, "--idle-timeout", "500ms")
    worker = home.hpc_dask("worker", address, "--death-timeout", "1s")
    assert scheduler.code(20) == 0
    assert "idle for 0.5 s" in scheduler.err
    assert worker.code() in (0, 1)  # 1 if it came too late


def test_a_killed_nanny_takes_its_worker_along(visitor, standing):
    worker = visitor.hpc_dask("worker", standing.address)
    worker.line("Registered to: ")
    assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    worker.all_gone(5)


def test_pid_files_are_there_while_the_process_is(home):
    scheduler, address = start_scheduler(home, "--pid-file", "scheduler.pid")
    worker = home.hpc_dask("worker", address, "--pid-file", "worker.pid")
    worker.line("Registered to: ")
    for command, name in ((worker, "worker.pid"), (scheduler, "scheduler.pid")):
        path = home.folder / name
        assert int(path.read_text()) == command.process.pid
        assert command.end() == 0
        assert not path.exists()


# -- Tokens ---------------------------------------------------------------------------------------


def test_two_shells_of_one_user_share_the_users_token(home):
    _scheduler, address = start_scheduler(home)
    worker = home.hpc_dask("worker", address)
    worker.line("Registered to: ")
    path = home.folder / "config/hpcdask/token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with client_of(home, address) as client:
        assert client.submit(pow, 2, 10).result(timeout=20) == 1024


def test_another_user_is_refused_on_both_sides(new_home):
    mine, others = new_home("mine"), new_home("others")
    scheduler, address = start_scheduler(mine)
    worker = others.hpc_dask("worker", address)
    assert worker.code() == 1
    assert "another cluster token" in worker.err
    scheduler.line("refused a connection from tcp://.*another cluster token")
    assert workers_of(scheduler) == []


def test_the_token_is_in_no_command_line_and_no_environment(home):
    scheduler, _address = start_scheduler(home, "--scheduler-file", "s.json")
    worker = home.hpc_dask("worker", "--scheduler-file", "s.json")
    worker.line("Registered to: ")
    processes = [*scheduler.processes(), *worker.processes()]
    assert len(processes) >= 3
    for process in processes:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{process.pid}/{name}", "rb") as file:
                assert home.token.hex() not in file.read().decode(errors="replace")
    for command in (scheduler, worker):
        assert command.end() == 0
        assert home.token.hex() not in command.err + command.out


# -- Where and how many ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "localhost:{port}", "tcp://127.0.0.1:{port}"])
def test_a_worker_reads_all_forms_of_an_address(home, form):
    _scheduler, address = start_scheduler(home, "--host", "127.0.0.1")
    worker = home.hpc_dask("worker", form.format(port=address.rpartition(":")[2]), "--no-nanny")
    worker.line("Registered to: ")
    assert worker.line(r"Start worker at: +tcp://(\S+):") == "127.0.0.1"


def test_ipv6_addresses_work(home):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        pytest.skip(f"this machine has no IPv6 loopback address: {exc}")
    _scheduler, address = start_scheduler(home, "--host", "::1")
    assert re.fullmatch(r"tcp://\[::1\]:\d+", address)
    worker = home.hpc_dask("worker", address)
    worker.line(r"Start worker at: +tcp://\[::1\]:\d+")
    worker.line("Registered to: ")
    with client_of(home, address) as client:
        assert client.submit(pow, 2, 5).result(timeout=20) == 32


def test_the_default_port_is_8786(home):
    try:
        socket.create_server(("", 8786)).close()
    except OSError as exc:
        pytest.skip(f"port 8786 is not free here: {exc}")
    scheduler = home.hpc_dask("scheduler")
    scheduler.line(r"Scheduler at: +tcp://\S+:8786\b")
    home.hpc_dask("worker", "127.0.0.1", "--no-nanny").line("Registered to: ")


def test_the_first_free_port_of_a_range_is_taken(home):
    with socket.create_server(("", 0)) as taken:
        first = taken.getsockname()[1]
        scheduler = home.hpc_dask("scheduler", "--port", f"{first}:{first + 20}")
        port = int(scheduler.line(r"Scheduler at: +tcp://\S+:(\d+)"))
        assert first < port <= first + 20
        worker = home.hpc_dask(
            "worker", f"127.0.0.1:{port}", "--worker-port", f"{first}:{first + 20}"
        )
        assert first < int(worker.line(r"Start worker at: +tcp://\S+:(\d+)")) <= first + 20


def test_workers_share_a_range_of_ports(visitor, standing):
    with socket.create_server(("", 0)) as taken:
        first = taken.getsockname()[1] + 1
    ports = range(first, first + 20)
    words = ("--nworkers", "3", "--worker-port", f"{first}:{first + 19}")
    worker = visitor.hpc_dask("worker", standing.address, *words)
    wait_until(lambda: len(standing.workers()) == 3, 30, str(worker))
    found = re.findall(r"Register worker .* at tcp://\S+:(\d+)", standing.told())
    assert len(set(found)) == 3
    assert all(int(port) in ports for port in found)


def test_an_interface_pins_scheduler_and_worker(home):
    _scheduler, address = start_scheduler(home, "--interface", "lo")
    assert address.startswith("tcp://127.0.0.1:")
    worker = home.hpc_dask("worker", address, "--interface", "127.0.0.0/8")
    assert worker.line(r"Start worker at: +tcp://(\S+):\d+") == "127.0.0.1"


def test_listening_and_advertised_address_may_differ(visitor, standing):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    worker = visitor.hpc_dask(
        "worker",
        standing.address,
        *("--listen-address", f"tcp://0.0.0.0:{port}"),
        *("--contact-address", f"tcp://localhost:{port}"),
    )
    standing.line(rf"Register worker .* at tcp://localhost:{port}\b")
    with standing.client() as client:
        assert client.submit(bytes, 10).result(timeout=20) == bytes(10)
    assert worker.end() == 0


def test_a_scheduler_advertises_the_contact_address_it_is_given(home):
    _scheduler, address = start_scheduler(home, "--contact-address", "tcp://localhost")
    assert re.fullmatch(r"tcp://localhost:\d+", address)
    home.hpc_dask("worker", address, "--no-nanny").line("Registered to: ")


CPUS = host.cpu_count()


@pytest.mark.parametrize(
    ("options", "names", "nthreads"),
    [
        ("--name a", ["a"], CPUS),
        ("--name a --nthreads 3", ["a"], 3),
        ("--name a --nworkers 2", ["a-0", "a-1"], max(CPUS // 2, 1)),
        ("--name a --nworkers 2 --nthreads 5", ["a-0", "a-1"], 5),
        ("--name a --no-nanny --nthreads 2", ["a"], 2),
    ],
)
def test_workers_have_the_names_and_threads_asked_for(visitor, standing, options, names, nthreads):
    visitor.hpc_dask("worker", standing.address, *options.split())
    expected = [(name, nthreads) for name in names]
    wait_until(lambda: standing.workers() == expected, 30, f"{expected}")


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_ends_with_0_at_the_end_of_its_lifetime(visitor, standing, nanny):
    worker = visitor.hpc_dask("worker", standing.address, "--lifetime", "500ms", nanny)
    assert worker.code() == 0
    assert len(standing.workers()) == 1
    assert "its lifetime is over" in worker.err
    worker.all_gone(1)


def test_a_nanny_may_start_another_worker_after_each_lifetime(visitor, standing):
    lifetime = ("--lifetime", "300ms", "--lifetime-stagger", "100ms", "--lifetime-restart")
    worker = visitor.hpc_dask("worker", standing.address, "--name", "a", *lifetime)
    wait_until(lambda: len(standing.workers()) >= 3, 30)
    assert worker.end() == 0
    assert "ended with code" not in standing.told()


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize("text", ["GPU=2 MEM=2e9", "MEM=2e9,GPU=2"])
def test_a_worker_has_the_resources_that_it_is_given(visitor, standing, nanny, text):
    visitor.hpc_dask("worker", standing.address, "--resources", text, nanny)
    with standing.client() as client:
        client.wait_for_workers(1, timeout=30)
        [resources] = client.run(lambda dask_worker: dask_worker.resources).values()
    assert resources == {"GPU": 2, "MEM": 2e9}


@pytest.mark.parametrize(("options", "seconds"), [((), 30), (("--worker-ttl", "5 min"), 300)])
def test_a_scheduler_knows_how_long_workers_may_be_silent(home, options, seconds):
    _scheduler, address = start_scheduler(home, *options)
    with client_of(home, address) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) == seconds


@pytest.mark.skipif(CPUS > 16, reason="would start a worker for each of so many CPUs")
@pytest.mark.parametrize(
    ("nworkers", "number", "nthreads"),
    [("auto", *default_shape(None, None)), ("-1", CPUS, 1), (f"-{CPUS}", 1, CPUS)],
)
def test_the_number_of_workers_can_follow_the_cpus(visitor, standing, nworkers, number, nthreads):
    visitor.hpc_dask("worker", standing.address, "--nworkers", nworkers)
    wait_until(lambda: len(standing.workers()) == number, 30)
    assert {threads for _, threads in standing.workers()} == {nthreads}


def info_of_workers(client, number=1):
    """What the scheduler knows of all its workers, when there are so many."""
    wait_until(lambda: len(client.nthreads()) == number, 30, f"{number} workers are there")
    return list(client.scheduler_info()["workers"].values())


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2GiB", 2 * 2**30),
        ("500 MB", 500 * 10**6),
        ("123456789", 123456789),
        ("0.25", host.memory_limit() * 0.25),
        ("auto", host.memory_limit() / CPUS - NANNY_MEMORY),
        ("0", 0),
    ],
)
def test_a_memory_limit_may_be_bytes_a_size_a_fraction_or_none(visitor, standing, text, nbytes):
    nanny = "--nanny" if text == "auto" else "--no-nanny"  # of which it needs a little itself
    words = (nanny, "--nthreads", "1", "--memory-limit", text)
    visitor.hpc_dask("worker", standing.address, *words)
    with standing.client() as client:
        [info] = info_of_workers(client)
        assert info["memory_limit"] == pytest.approx(nbytes, rel=0.01)


def test_workers_of_one_command_share_the_memory_and_the_cpus(visitor, standing):
    visitor.hpc_dask("worker", standing.address, "--nworkers", "2")
    with standing.client() as client:
        infos = info_of_workers(client, 2)
        assert sum(info["memory_limit"] for info in infos) <= host.memory_limit()
        share = str(infos[0]["nthreads"])
        environs = client.run(os.getenv, "OMP_NUM_THREADS")
        assert set(environs.values()) == {os.environ.get("OMP_NUM_THREADS", share)}


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_scratch_is_made_where_it_is_wanted_and_removed_at_the_end(visitor, standing, nanny):
    scratch = visitor.folder / "elsewhere"
    worker = visitor.hpc_dask("worker", standing.address, nanny, "--local-directory", scratch)
    with standing.client() as client:
        [info] = info_of_workers(client)
    folder = info["local_directory"]
    assert folder.startswith(f"{scratch}/")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert worker.end() == 0
    assert not os.path.exists(folder)


def test_an_idle_cluster_uses_no_cpu(home):
    scheduler, address = start_scheduler(home)
    worker = home.hpc_dask("worker", address)
    worker.line("Registered to: ")
    processes = [*scheduler.processes(), *worker.processes()]
    before = [sum(p.cpu_times()[:2]) for p in processes]
    threading.Event().wait(2)  # the length of the measurement
    used = {str(p): sum(p.cpu_times()[:2]) - b for p, b in zip(processes, before, strict=True)}
    assert all(seconds < 0.1 for seconds in used.values()), used


def test_a_worker_that_is_killed_is_replaced(visitor, standing):
    worker = visitor.hpc_dask("worker", standing.address, "--name", "a")
    worker.line("Start Nanny at: ")
    with standing.client() as client:
        [info] = info_of_workers(client)
        psutil.Process(info["pid"]).kill()
        # Wherever the task is sent to at this very moment.
        assert client.submit(pow, 2, 3).result(timeout=20) == 8
        assert [i["pid"] for i in info_of_workers(client)] != [info["pid"]]
    worker.line("was killed by SIGKILL; starting another")
    assert worker.end() == 0
