"""The two clusters that chaos comes over, told apart by what there is to kill, stop and cut."""

from __future__ import annotations

import abc
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from chaos_programs import HERE, ClientProgram
from chaos_times import CLIENT_GRACE, WORKER_TTL
from commands import Command, Home
from hosts import Hosts, hosts
from janitor import janitor
from waiting import wait_until

from hpcdask import LocalCluster

#: Workers that may die under a task: here they die of chaos, and not of their tasks.
FAILURES = 1_000_000
#: Workers of the LocalCluster; two more have nannies of their own.
LOCAL_WORKERS = 2
#: Seconds in which everything that starts must have started. The machine may be busy.
_START = 60.0
#: Seconds in which all must have ended when it is asked to.
_END = 30.0


class Cluster(abc.ABC):
    """What the two have in common: nannies in processes of their own, and clients."""

    kind = ""
    #: Hosts whose cable can be pulled: of workers, and of clients.
    links: tuple[str, ...] = ()
    client_links: tuple[str, ...] = ()

    def __init__(self, home: Home) -> None:
        self.home = home
        #: In the environment of each process under test.
        self.mark = f"HPCDASK_CHAOS={os.getpid()}-{id(self)}"
        name, _, value = self.mark.partition("=")
        home.env[name] = value
        folders = [str(HERE), str(HERE.parent), *sys.path]
        home.env["PYTHONPATH"] = os.pathsep.join(folders)
        self.scheduler_file = home.folder / "scheduler.json"
        self.nannies: dict[Command, str] = {}  # each with its host
        self.clients: list[ClientProgram] = []
        self.victims: list[ClientProgram] = []
        self.control: ClientProgram | None = None
        self.troubled: set[str] = set()  # hosts that are cut off, or have no scheduler just now
        self._numbers = itertools.count()

    def on(self, host: str, *command: str) -> tuple[str, ...]:
        """The command that runs a command on a host."""
        return command

    def start_nanny(self, host: str = "") -> Command:
        """Start a worker under a nanny, as a job does."""
        name = f"{host or 'job'}-{next(self._numbers)}"
        options = ["--scheduler-file", str(self.scheduler_file), "--name", name, "--nthreads", "2"]
        options += self.worker_options()
        command = (sys.executable, "-m", "hpcdask", "worker", *options)
        nanny = self.home.run(*self.on(host, *command))
        self.nannies[nanny] = host
        return nanny

    def worker_options(self) -> list[str]:
        return ["--memory-limit", "0"]

    def start_client(self, name: str) -> ClientProgram:
        """Start a program, which has a name of its own to tell its keys by."""
        full_name = f"{name}{next(self._numbers)}"
        host = self.client_links[0] if self.client_links else ""
        return ClientProgram(
            self.home, self.scheduler_file, full_name, lambda *words: self.on(host, *words)
        )

    def start_clients(self) -> None:
        """The programs that run all the time, one that will be killed, and the test's own."""
        self.control = self.start_client("control")
        self.clients = [self.start_client("client") for _ in range(2)]
        self.victims = [self.start_client("victim")]
        for program in (self.control, *self.clients, *self.victims):
            program.answer(_START)

    def close_clients(self) -> None:
        """Let them end, and see that they do it well."""
        for program in self._forget_clients():
            assert program.close() == 0, program.err

    def kill_clients(self) -> None:
        """After a failure, when nobody can tell whether they would ever end."""
        for program in self._forget_clients():
            program.kill()

    def _forget_clients(self) -> list[ClientProgram]:
        programs = [*self.clients, *self.victims, *([self.control] if self.control else [])]
        self.clients, self.victims, self.control = [], [], None
        return programs

    # -- What is there ----------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def scheduler_pid(self) -> int:
        """Process in which the scheduler lives."""

    def workers(self) -> list[psutil.Process]:
        """Worker processes that are alive, whoever watches them."""
        return [worker for nanny in self.nannies for worker in children(nanny.process.pid)]

    @property
    def expected_workers(self) -> int:
        """How many there are when nothing is amiss."""
        return len(self.nannies)

    def end(self) -> None:
        """End the scheduler, and wait for the nannies, which end with it."""
        for nanny in self.nannies:
            assert nanny.code(_END) == 0, str(nanny)

    def ended(self) -> list[str]:
        """Nannies and workers that have ended by themselves, for good."""
        return [str(nanny) for nanny in self.nannies if nanny.process.poll() is not None]


class OnThisMachine(Cluster):
    """A LocalCluster, which two other nannies have joined that are no part of it."""

    kind = "LocalCluster"

    @contextlib.contextmanager
    def running(self) -> Iterator[OnThisMachine]:
        name, _, value = self.mark.partition("=")
        scheduler: dict[str, Any] = {
            "scheduler_file": self.scheduler_file,
            "allowed_failures": FAILURES,
            "worker_ttl": WORKER_TTL,
            "client_grace": CLIENT_GRACE,
        }
        with (
            janitor(self.mark),
            LocalCluster(
                n_workers=LOCAL_WORKERS,
                threads_per_worker=1,
                memory_limit=0,
                local_directory=str(self.home.scratch),
                scheduler_kwargs=scheduler,
                env={name: value, "PYTHONPATH": self.home.env["PYTHONPATH"]},
            ) as self.cluster,
        ):
            try:
                for _ in range(2):
                    self.start_nanny()
                self.start_clients()
                yield self
            finally:
                self.kill_clients()

    @property
    def scheduler_pid(self) -> int:
        return os.getpid()

    def end(self) -> None:
        self.cluster.close(_END)
        super().end()

    def workers(self) -> list[psutil.Process]:
        return children(os.getpid()) + super().workers()

    @property
    def expected_workers(self) -> int:
        return LOCAL_WORKERS + super().expected_workers

    def ended(self) -> list[str]:
        failed = [n for n, w in self.cluster.workers.items() if w.status in ("closed", "failed")]
        return [f"worker {name} of the LocalCluster" for name in failed] + super().ended()


class OnHosts(Cluster):
    """A scheduler, its clients and three nannies on five hosts in network namespaces."""

    kind = "hosts"
    links = ("node1", "node2", "node3")
    client_links = ("login",)

    @contextlib.contextmanager
    def running(self) -> Iterator[OnHosts]:
        with janitor(self.mark), hosts("head", *self.client_links, *self.links) as self.hosts:
            try:
                self.start_scheduler()
                for host in self.links:
                    self.start_nanny(host)
                self.start_clients()
                yield self
            finally:
                self.kill_clients()

    hosts: Hosts

    def start_scheduler(self, port: str = "0") -> None:
        """Start the scheduler; wait until its file is there."""
        options = ["--scheduler-file", str(self.scheduler_file), "--port", port]
        options += ["--interface", "ib0", "--allowed-failures", str(FAILURES)]
        options += ["--worker-ttl", f"{WORKER_TTL}s", "--client-grace", f"{CLIENT_GRACE}s"]
        command = (sys.executable, "-m", "hpcdask", "scheduler", *options)
        self.scheduler = self.home.run(*self.on("head", *command))
        self.scheduler.line("Scheduler at", _START)
        wait_until(self.scheduler_file.exists, _START)

    def worker_options(self) -> list[str]:
        return [*super().worker_options(), "--interface", "ib0"]

    def on(self, host: str, *command: str) -> tuple[str, ...]:
        return self.hosts.on(host, *command)

    @property
    def scheduler_pid(self) -> int:
        return self.scheduler.process.pid

    def end(self) -> None:
        assert self.scheduler.end(timeout=_END) == 0, str(self.scheduler)
        super().end()


def children(pid: int) -> list[psutil.Process]:
    """Worker processes that a process has started."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if "hpcdask.worker_process" in process.cmdline():
                    found.append(process)
    return found


CLUSTERS: dict[str, Callable[[Home], Any]] = {
    cluster.kind: cluster for cluster in (OnThisMachine, OnHosts)
}
