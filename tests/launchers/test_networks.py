"""Hosts with two networks each: what goes where, and what is said when it cannot."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hosts import Hosts, hosts, needs_hosts, needs_walls
from waiting import wait_until

HEAD, NEAR, FAR = "head", "near", "far"
FILE = ("--scheduler-file", "scheduler.json")


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Hosts]:
    """One of them has a name of its own for its fast interface."""
    with hosts(HEAD, NEAR, FAR, fast={FAR: "hsn0"}) as made:
        yield made


@pytest.fixture(scope="module")
def six() -> Iterator[Hosts]:
    """Hosts without IPv4."""
    with hosts(HEAD, NEAR, ipv6=True) as made:
        yield made


def scheduler_on(home, where: Hosts, *options: str):
    command = ("-m", "hpcdask", "scheduler", "--port", "0", *FILE, *options)
    scheduler = home.run(*where.python(HEAD, *command))
    scheduler.line("Scheduler at: ")
    return scheduler


def worker_on(home, where: Hosts, name: str, *options: str):
    command = ("-m", "hpcdask", "worker", "--nthreads", "1", "--name", name, *options)
    return home.run(*where.python(name, *command))


def program_on(home, where: Hosts, name: str, program: str, *arguments: str):
    return home.run(*where.python(name, "-c", program, *arguments))


def registered(scheduler) -> list[str]:
    return re.findall(r"Register worker (\S+),", scheduler.err)


#: Moves 20 MB from each worker to each other one, and to the client.
MOVING = """
import os, sys
from hpcdask import Client

place = {"address": sys.argv[2]} if sys.argv[2:] else {"scheduler_file": "scheduler.json"}
with Client(**place) as client:
    client.wait_for_workers(int(sys.argv[1]), timeout=30)
    names = [info["name"] for info in client.scheduler_info()["workers"].values()]
    data = {n: client.submit(os.urandom, 20_000_000, workers=n, pure=False) for n in names}
    sums = [client.submit(len, data[a], workers=b, pure=False) for a in names for b in names]
    assert client.gather(sums, timeout=30) == [20_000_000] * len(names) ** 2
    assert len(data[names[-1]].result(timeout=30)) == 20_000_000
    print(client.scheduler_info()["address"], *sorted(client.nthreads()))
    client.shutdown()
"""


@pytest.mark.usefixtures("no_traffic")
class TestPinned:
    pytestmark = needs_hosts

    @pytest.fixture
    def no_traffic(self, three_hosts: Hosts) -> Iterator[None]:
        """Fail if anything to speak of goes by eth0, or if nothing moves at all."""
        where = three_hosts
        fast = {HEAD: "ib0", NEAR: "ib0", FAR: "hsn0"}

        def count() -> dict[str, tuple[int, int]]:
            return {n: (where.traffic(n, "eth0"), where.traffic(n, fast[n])) for n in where.names}

        before = count()
        yield
        for name, (slow, quick) in count().items():
            assert slow - before[name][0] < 2_000, f"{name} uses eth0"
            assert quick - before[name][1] > 20_000_000, f"{name} does not use {fast[name]}"

    def test_all_that_moves_goes_by_the_interfaces_that_are_named(self, home, three_hosts: Hosts):
        where = three_hosts
        interface = ("--interface", "ib*,hsn0")
        scheduler = scheduler_on(home, where, *interface)
        workers = [
            worker_on(home, where, NEAR, *FILE, *interface),
            worker_on(home, where, FAR, *FILE, "--interface", "10.78.61.0/24", "--no-nanny"),
        ]
        program = program_on(home, where, HEAD, MOVING, "2")
        assert program.code(60) == 0, "\n".join(map(str, (program, scheduler, *workers)))
        found = [address.rpartition(":")[0] for address in program.out.split()]
        expected = [where.addresses[name] for name in (HEAD, NEAR, FAR)]
        assert found == [f"tcp://{address}" for address in expected]
        assert [command.code() for command in (scheduler, *workers)] == [0, 0, 0]

    def test_ranks_may_have_another_interface_than_their_scheduler(self, home, three_hosts: Hosts):
        where = three_hosts
        interfaces = ("--interface", "ib0,hsn0", "--scheduler-interface", "10.78.61.0/24")
        launch = {"HPCDASK_SIZE": "3", "HPCDASK_LAUNCH_ID": "by-hand"}
        ranks = [
            home.run(
                *where.python(name, "-m", "hpcdask", "--no-mpi", *FILE, *interfaces),
                HPCDASK_RANK=str(rank),
                **launch,
            )
            for rank, name in enumerate((HEAD, NEAR, FAR))
        ]
        program = program_on(home, where, HEAD, MOVING, "2")
        assert program.code(60) == 0, "\n".join(map(str, (program, *ranks)))
        found = [address.rpartition(":")[0] for address in program.out.split()]
        assert found == [f"tcp://{where.addresses[name]}" for name in (HEAD, NEAR, FAR)]
        assert [rank.code() for rank in ranks] == [0, 0, 0]


@pytest.mark.parametrize("option", ["hsn0", "ib7,hsn*", "172.16.0.0/12"])
@pytest.mark.system
def test_an_interface_that_a_host_lacks_is_named_with_those_that_it_has(
    home, three_hosts: Hosts, option
):
    worker = worker_on(home, three_hosts, NEAR, "--interface", option, "10.78.61.1:8786")
    assert worker.code() == 1
    [line] = worker.err.splitlines()
    assert option.partition(",")[0] in line
    assert f"on {NEAR}; it has eth0 ({three_hosts.ethernet[NEAR]}), ib0 " in line


class TestIPv6:
    pytestmark = needs_hosts

    @pytest.mark.parametrize(
        ("scheduler_options", "worker_options"),
        [
            (("--interface", "ib0"), ("--interface", "fd78:61::/64")),
            (("--host", "[fd78:61::1]"), ("--host", "fd78:61::{n}")),
            (
                ("--host", "::", "--contact-address", "tcp://[fd78:61::1]"),
                ("--listen-address", "[::]:9100", "--contact-address", "[fd78:61::{n}]"),
            ),
        ],
    )
    def test_hosts_that_have_nothing_else_work_together(
        self, home, six: Hosts, scheduler_options, worker_options
    ):
        scheduler = scheduler_on(home, six, *scheduler_options)
        address = scheduler.line(r"Scheduler at: (\S+)")
        assert address.startswith("tcp://[fd78:61::1]:")
        contact = json.loads((home.folder / "scheduler.json").read_text())
        assert contact["address"] == address
        workers = []
        # One finds the scheduler by its address and one by its file.
        for n, (name, place) in enumerate([(HEAD, (address,)), (NEAR, FILE)], 1):
            options = [option.format(n=n) for option in worker_options]
            workers.append(worker_on(home, six, name, *place, *options))
        program = program_on(home, six, NEAR, MOVING, "2", address)
        assert program.code(60) == 0, "\n".join(map(str, (program, scheduler, *workers)))
        found = [found.rpartition(":")[0] for found in program.out.split()]
        assert found == ["tcp://[fd78:61::1]", "tcp://[fd78:61::1]", "tcp://[fd78:61::2]"]
        assert [command.code() for command in (scheduler, *workers)] == [0, 0, 0]


class TestWalls:
    pytestmark = needs_walls

    def test_who_cannot_reach_whom_is_said_at_once_and_tried_again(self, home, three_hosts: Hosts):
        """The scheduler one worker, and another worker the scheduler."""
        where = three_hosts
        scheduler = scheduler_on(home, where, "--interface", "ib0")
        address = scheduler.line(r"Scheduler at: (\S+)")
        where.wall_off(NEAR, HEAD)
        where.wall_off(HEAD, FAR)
        try:
            near = worker_on(home, where, NEAR, *FILE, "--interface", "ib0")
            far = worker_on(home, where, FAR, address)
            started = near.line("Start worker at: (.*)")
            sentence = near.line("not let in yet: (.*); trying for", 10)
            assert sentence.startswith(
                f"the scheduler on {HEAD} cannot reach worker {NEAR} on {NEAR} at {started}: "
                "no answer within 5 s; look for a firewall between the two hosts, "
            )
            assert sentence in scheduler.line("WARNING - (.*)")
            problem = f"{FAR} cannot reach the scheduler at {address} yet: no answer"
            far.line(f"{problem}; trying for 5. s more", 10)
            assert registered(scheduler) == []
        finally:
            where.open_up(NEAR)
            where.open_up(HEAD)
        for name, worker in ((NEAR, near), (FAR, far)):
            scheduler.line(f"Register worker {name},")
            worker.line("Start Nanny at: ")
        assert scheduler.end() == 0
        assert [near.code(), far.code()] == [0, 0]

    def test_a_worker_that_is_never_let_in_ends_with_the_reason(self, home, three_hosts: Hosts):
        where = three_hosts
        scheduler = scheduler_on(home, where, "--interface", "ib0")
        where.wall_off(NEAR, HEAD, how="reject")
        try:
            walled = worker_on(
                home, where, NEAR, *FILE, "--interface", "ib0", "--death-timeout", "1s"
            )
            assert walled.code() == 1
        finally:
            where.open_up(NEAR)
        assert re.search(
            f"could not start: the scheduler on {HEAD} cannot reach worker {NEAR} on {NEAR} at "
            r"tcp://10.78.61.2:\d+: Connection refused; look for a firewall",
            walled.err,
        )
        said = scheduler.err.count(f"WARNING - the scheduler on {HEAD} cannot reach worker")
        assert said == 1, "said at every try"

    def test_a_worker_may_be_let_in_although_it_cannot_be_reached(self, home, three_hosts: Hosts):
        where = three_hosts
        scheduler = scheduler_on(home, where, "--interface", "ib0", "--no-dial-back")
        where.wall_off(NEAR, HEAD, how="reject")
        try:
            worker_on(home, where, NEAR, *FILE, "--interface", "ib0").line("Start Nanny at")
        finally:
            where.open_up(NEAR)
        assert registered(scheduler) == [NEAR]

    def test_two_workers_that_cannot_reach_each_other_are_named_and_all_is_computed(
        self, home, three_hosts: Hosts
    ):
        where = three_hosts
        scheduler = scheduler_on(home, where, "--interface", "ib0")
        where.wall_off(NEAR, FAR, how="reject")
        where.wall_off(FAR, NEAR, how="reject")
        try:
            for name in (NEAR, FAR):
                worker_on(home, where, name, *FILE, "--interface", "ib0,hsn0")
            program = program_on(home, where, HEAD, APART)
            assert program.code(60) == 0, f"{program}\n{scheduler}"
            sentence = scheduler.line("WARNING - (worker .* could not fetch data .*)")
        finally:
            where.open_up(NEAR)
            where.open_up(FAR)
        one, other = (NEAR, FAR) if sentence.startswith(f"worker {NEAR}") else (FAR, NEAR)
        assert re.fullmatch(
            f"worker {one} on {one} could not fetch data from worker {other} on {other} at "
            rf"tcp://{where.addresses[other]}:\d+: Connection refused; look for a firewall between "
            "the two hosts, .*",
            sentence,
        )


#: Needs two inputs that are on two workers.
APART = """
import time
from hpcdask import Client

with Client(scheduler_file="scheduler.json") as client:
    client.wait_for_workers(2, timeout=30)
    parts = client.map(lambda n: time.sleep(0.3) or bytearray(n), [1_000_000, 2_000_000])
    client.gather(parts, timeout=30)
    assert len(set(map(tuple, client.who_has(parts).values()))) == 2
    assert client.submit(lambda a, b: len(a) + len(b), *parts).result(timeout=30) == 3_000_000
"""


class TestCables:
    pytestmark = needs_hosts

    def test_a_cable_that_is_pulled_costs_nothing_or_the_tasks_of_its_host(
        self, home, three_hosts: Hosts
    ):
        """Nothing in five seconds; after worker_ttl its tasks run elsewhere."""
        where = three_hosts
        options = ("--interface", "ib0", "--worker-ttl", "7s", "--allowed-failures", "99")
        scheduler = scheduler_on(home, where, *options)
        for name in (NEAR, FAR):
            worker_on(home, where, name, *FILE, "--interface", "ib0,hsn0")
        scheduler.line(f"Register worker {NEAR},")
        scheduler.line(f"Register worker {FAR},")
        runs = home.folder / "runs"
        runs.mkdir()

        program = program_on(home, where, HEAD, COUNTING, "60")
        wait_until(lambda: len(list(runs.iterdir())) > 20, 30, "tasks run")
        where.cut(FAR)
        time.sleep(5)  # how long the cut lasts is what this is about
        where.mend(FAR)
        assert program.code(60) == 0, f"{program}\n{scheduler}"
        assert set(times_run(runs).values()) == {1}
        assert len(times_run(runs)) == 60
        assert "Remove worker" not in scheduler.err

        for path in runs.iterdir():
            path.unlink()
        program = program_on(home, where, HEAD, COUNTING, "61")
        wait_until(lambda: len(list(runs.iterdir())) > 20, 30, "tasks run")
        where.cut(FAR)
        try:
            assert program.code(60) == 0, f"{program}\n{scheduler}"
            assert len(times_run(runs)) == 61
            scheduler.line(f"Remove worker {FAR} .* nothing was heard of it for 7 s")
        finally:
            where.mend(FAR)


def times_run(folder) -> Counter[str]:
    return Counter(path.name.partition("-")[0] for path in folder.iterdir())


#: Runs N tasks of a tenth of a second, each with a value that is fetched, and notes each run.
COUNTING = """
import pathlib, sys, time, uuid
from hpcdask import Client

def note(n):
    pathlib.Path("runs", f"{n}-{uuid.uuid4()}").touch()
    time.sleep(0.1)
    return bytes([n]) * 50_000

def pair(a, b):
    return len(a) + len(b)

with Client(scheduler_file="scheduler.json") as client:
    count = int(sys.argv[1])
    first = client.map(note, range(count), pure=False)
    pairs = client.map(pair, first, first[1:] + first[:1], pure=False)
    assert sum(client.gather(pairs, timeout=60)) == 100_000 * count
"""
