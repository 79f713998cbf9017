"""Two hosts in network namespaces, joined by a cable with an interface called ib0 at either end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from waiting import wait_until

NAMES = (f"hpcdask-a-{os.getpid()}", f"hpcdask-b-{os.getpid()}")
ADDRESSES = ("10.78.61.1", "10.78.61.2")


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "ip", *words]
    return subprocess.run(command, check=check, capture_output=True, text=True)


def why_not() -> str:
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        made = ip("netns", "add", f"hpcdask-try-{os.getpid()}", check=False)
        ip("netns", "del", f"hpcdask-try-{os.getpid()}", check=False)
    except OSError:
        return "there is no 'ip' command: apt-get install iproute2"
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


WHY_NOT = why_not()
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    try:
        for name in NAMES:
            ip("netns", "add", name)
        end = ("peer", "name", "ib0", "netns", NAMES[1])
        ip("link", "add", "ib0", "netns", NAMES[0], "type", "veth", *end)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "ib0")
            ip("-n", name, "link", "set", "ib0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        for name in NAMES:  # the kernel takes a moment to see that the cable is in
            wait_until(lambda name=name: "state UP" in ip("-n", name, "link", "show", "ib0").stdout)
        yield NAMES
    finally:
        for name in NAMES:
            ip("netns", "del", name, check=False)


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


def start(home, host: str, *arguments: str):
    return home.run("ip", "netns", "exec", host, sys.executable, *arguments)


def test_hosts_work_together_over_the_interface_that_is_named(home, hosts):
    here, there = hosts
    options = ("--interface", "ib*", "--scheduler-file", "scheduler.json")
    command = ("-m", "hpcdask")
    scheduler = start(home, here, *command, "scheduler", "--port", "0", *options)
    workers = [start(home, host, *command, "worker", *options, "--nthreads", "1") for host in hosts]
    program = start(home, there, "-c", PROGRAM)
    assert program.code(60) == 0, "\n".join(map(str, (program, scheduler, *workers)))
    total, received, addresses = program.out.splitlines()
    assert int(total) == sum(n * n for n in range(200))
    assert int(received) == 20_000_000
    assert [a.rpartition(":")[0] for a in addresses.split()] == [
        f"tcp://{ADDRESSES[0]}",
        f"tcp://{ADDRESSES[0]}",
        f"tcp://{ADDRESSES[1]}",
    ]
    assert scheduler.code() == 0
    assert [worker.code() for worker in workers] == [0, 0]


def test_an_interface_that_a_host_lacks_is_named_with_those_that_it_has(home, hosts):
    worker = start(
        home, hosts[1], "-m", "hpcdask", "worker", "--interface", "hsn0", "tcp://10.78.61.1:8786"
    )
    assert worker.code() == 1
    assert "no network interface 'hsn0'" in worker.err
    assert f"ib0 ({ADDRESSES[1]}" in worker.err
