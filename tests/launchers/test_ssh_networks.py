"""SSH over real networks: several hosts, one that is cut off, one that is out of direct reach."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, Home
from hosts import Hosts, hosts, needs_hosts
from janitor import ip
from sshd import SSHServer, needs_sshd, ssh_server

pytestmark = [*needs_hosts, *needs_sshd]
#: Where the launcher runs, and two hosts that it starts things on.
HERE, ONE, TWO = "a", "b", "c"


class Network:
    """Hosts, and an SSH server on each but the first, where a user may log in everywhere."""

    def __init__(self, hosts: Hosts, servers: dict[str, SSHServer], home: Home) -> None:
        self.hosts, self.servers, self.home = hosts, servers, home
        self.addresses = hosts.addresses

    def python(self, *arguments: str) -> Command:
        """Run a program where the launcher is."""
        return self.home.run(*self.hosts.python(HERE, *arguments))

    def all_gone(self, timeout: float = 20.0) -> None:
        for server in self.servers.values():
            server.all_gone(timeout)


@pytest.fixture
def network(home: Home, tmp_path: Path) -> Iterator[Network]:
    with hosts(HERE, ONE, TWO) as made, contextlib.ExitStack() as stack:
        servers = {}
        for name in (ONE, TWO):
            folder, address = tmp_path / f"sshd-{name}", made.addresses[name]
            key = next(iter(servers.values())).key if servers else None
            server = ssh_server(folder, address, on=made.on(name), key=key)
            servers[name] = stack.enter_context(server)
            servers[name].let_in(home)
        yield Network(made, servers, home)


PROGRAM = """
import os, sys, time
from hpcdask import Client, SSHCluster

one, two = sys.argv[1:]
go = os.path.abspath("go")

def wait_for(path, value):
    while not os.path.exists(path):
        time.sleep(0.01)
    return value

with SSHCluster(
    [one, one, two],
    connect_options={"keepalive_interval": 0.5, "keepalive_count_max": 2},
    worker_options={"nthreads": 1, "reconnect_timeout": "1s"},
    scheduler_options={"worker_ttl": "3s"},
    silence_timeout="3s",
) as cluster, Client(cluster) as client:
    print(*sorted(client.nthreads(timeout=10)), cluster.scheduler_address)
    futures = client.map(wait_for, [go] * 8, range(8))
    while not all(client.processing(timeout=10).values()):
        time.sleep(0.01)
    print("all are busy", flush=True)
    while len(cluster.workers) > 1:
        time.sleep(0.01)
    print("one is lost", flush=True)
    open(go, "w").close()
    print(sum(client.gather(futures, timeout=30)))
    print(*cluster.workers)
"""


def test_a_host_that_is_cut_off_costs_time_and_ends_what_it_runs(network):
    one, two = network.addresses[ONE], network.addresses[TWO]
    program = network.python("-c", PROGRAM, one, two)
    program.line("all are busy")
    busy = network.servers[TWO].processes()
    assert len(busy) >= 2
    network.hosts.cut(TWO, is_seen=False)
    start = time.monotonic()
    program.line("one is lost", 15)
    noticed = time.monotonic() - start
    assert program.code(60) == 0, str(program)
    assert noticed < 5
    first, _, _, total, left = program.out.splitlines()
    assert first.split() == sorted(first.split()[:2]) + first.split()[2:]
    assert [a.rpartition(":")[0] for a in first.split()] == [
        f"tcp://{one}",
        f"tcp://{two}",
        f"tcp://{one}",
    ]
    assert int(total) == sum(range(8))
    assert left == "0"
    assert f"lost {two}: its connection ended" in program.err
    network.all_gone()  # on the host that is still cut off, too


def test_a_host_out_of_direct_reach_is_used_through_another(network):
    one, two = network.addresses[ONE], network.addresses[TWO]
    namespace = network.hosts.namespace(HERE)
    ip("-n", namespace, "route", "add", "unreachable", f"{two}/32")
    network.home.file(".ssh/config", f"Host {two}\n  ProxyJump {one}\n")
    words = ("--scheduler-port", "0", "--scheduler-file", "s.json", "--nthreads", "1", two)
    command = network.python("-m", "hpcdask", "ssh", *words)
    command.line("the cluster is up")
    assert "the scheduler is reached through the SSH connection to" in command.err
    program = network.python(
        "-c",
        "from hpcdask import Client\n"
        "with Client(scheduler_file='s.json', timeout=20, direct_to_workers=False) as client:\n"
        "    print(client.submit(pow, 2, 10).result(timeout=20))\n"
        "    print(len(client.gather(client.submit(bytes, 5_000_000), timeout=30)))\n"
        "    print(*client.nthreads())\n",
    )
    assert program.code(60) == 0, f"{program}\n{command}"
    value, size, address = program.out.splitlines()
    assert (value, size) == ("1024", "5000000")
    assert address.startswith(f"tcp://{two}:")
    assert command.end() == 0
    network.all_gone()


def test_several_hosts_make_one_cluster(network):
    one, two = network.addresses[ONE], network.addresses[TWO]
    words = ("--scheduler-port", "8786", "--nthreads", "1", "--interface", "ib*", one, two)
    command = network.python("-m", "hpcdask", "ssh", *words)
    command.line(rf"the cluster is up: 2 workers on 2 hosts, scheduler at tcp://{one}:8786;")
    code = (
        "import sys\nfrom hpcdask import Client\n"
        "with Client(sys.argv[1], timeout=20) as client:\n"
        "    print(sum(client.gather(client.map(abs, range(-50, 0)), timeout=20)))\n"
        "    print(*sorted(client.nthreads()))\n"
    )
    program = network.python("-c", code, one)
    assert program.code(60) == 0, f"{program}\n{command}"
    total, addresses = program.out.splitlines()
    assert int(total) == 1275
    hosts_of_workers = [a.rpartition(":")[0] for a in addresses.split()]
    assert hosts_of_workers == [f"tcp://{one}", f"tcp://{two}"]
    assert f"[{two}] " in command.err
    command.process.kill()
    network.all_gone()
