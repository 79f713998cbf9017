"""Two hosts in network namespaces, each with an interface called ib0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hosts import Hosts, hosts, needs_hosts

pytestmark = needs_hosts
HERE, THERE = "a", "b"


@pytest.fixture
def two_hosts() -> Iterator[Hosts]:
    with hosts(HERE, THERE) as made:
        yield made


PROGRAM = """
from hpcdask import Client

with Client(scheduler_file="scheduler.json", timeout=20) as client:
    client.wait_for_workers(2, timeout=20)
    squares = client.map(pow, range(200), [2] * 200)
    print(client.submit(sum, squares).result(timeout=20))
    large = client.map(bytearray, [5_000_000] * 4)
    print(sum(map(len, client.gather(large, timeout=20))))
    print(client.scheduler_info()["address"], *sorted(client.nthreads()))
    client.shutdown()
"""


def start(home, hosts: Hosts, name: str, *arguments: str):
    return home.run(*hosts.python(name, *arguments))


def test_hosts_work_together_over_the_interface_that_is_named(home, two_hosts):
    options = ("--interface", "ib*", "--scheduler-file", "scheduler.json")
    server = ("-m", "hpcdask", "scheduler", "--port", "0", *options)
    worker = ("-m", "hpcdask", "worker", *options, "--nthreads", "1")
    scheduler = start(home, two_hosts, HERE, *server)
    workers = [start(home, two_hosts, name, *worker) for name in two_hosts.names]
    program = start(home, two_hosts, THERE, "-c", PROGRAM)
    assert program.code(60) == 0, "\n".join(map(str, (program, scheduler, *workers)))
    total, received, addresses = program.out.splitlines()
    assert int(total) == sum(n * n for n in range(200))
    assert int(received) == 20_000_000
    here, there = two_hosts.addresses.values()
    assert [a.rpartition(":")[0] for a in addresses.split()] == [
        f"tcp://{here}",
        f"tcp://{here}",
        f"tcp://{there}",
    ]
    assert scheduler.code() == 0
    assert [worker.code() for worker in workers] == [0, 0]


def test_an_interface_that_a_host_lacks_is_named_with_those_that_it_has(home, two_hosts):
    options = ("--interface", "hsn0", "tcp://10.78.61.1:8786")
    worker = start(home, two_hosts, THERE, "-m", "hpcdask", "worker", *options)
    assert worker.code() == 1
    assert "no network interface 'hsn0'" in worker.err
    assert f"ib0 ({two_hosts.addresses[THERE]}" in worker.err
