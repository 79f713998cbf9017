"""A cluster on hosts that are reached by SSH; asyncssh is imported when one is started."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcdask import host as hosts_module
from hpcdask import network
from hpcdask.comm import connect
from hpcdask.comm.addresses import parse_address, parse_ports
from hpcdask.dialling import SchedulerPlace, refuse_taken_file
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.launchers.cluster import PATIENCE, RETIREMENT, Cluster, refuse_dashboard, settled_token
from hpcdask.launchers.local import check_worker_options
from hpcdask.launchers.process import first_of, stop_signals
from hpcdask.launchers.scheduler_access import SchedulerThere
from hpcdask.launchers.shape import parse_nworkers, shape_of_host
from hpcdask.launchers.ssh_hosts import (
    Load,
    SSHHost,
    choose_hosts,
    choose_surplus,
    known_address,
    make_hosts,
)
from hpcdask.launchers.ssh_link import SSHLink
from hpcdask.launchers.units import UnitShape, given_memory
from hpcdask.nanny import Nanny
from hpcdask.rendezvous import Contact, remove_scheduler_file, write_scheduler_file
from hpcdask.resources import checked_resources
from hpcdask.scheduler import Scheduler
from hpcdask.worker_class import is_ours, path_of

log = logging.getLogger("hpcdask.ssh")

#: Seconds in which the scheduler must answer, or it is reached through its SSH connection.
_DIRECT = 3.0
#: Seconds for which a host that could not be used gets workers only if there is no other.
_AVOIDED = 30.0
#: Seconds that a worker process gets beyond its own limits to start.
_SLACK = 30.0
_SCHEDULER = "scheduler"


@dataclass(frozen=True)
class RemoteWorker:
    """A worker on another host."""

    name: str
    host: str
    address: str  # at first: its nanny may have started another in its place
    nthreads: int
    position: int  # of its host among those for workers
    nanny: str = ""  # id of its nanny, if it has one


@dataclass
class WorkerHost:
    """A host for workers, and how many it is to carry."""

    host: SSHHost
    link: SSHLink
    n_planned: int = 1  # that it has at first
    nthreads: int = 1  # of each
    share: int = 1  # workers that share the machine
    avoided_until: float = 0.0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class SSHCluster(Cluster):
    """Scheduler and workers on other hosts, started by SSH.

    The first host runs the scheduler, each other one a worker. A host that is named twice has both,
    or two workers, which share its CPUs and memory.

    Parameters
    ----------
    hosts : list of str
        Names or addresses, as in ``node1``, ``user@node1`` or ``node1:2222``.
    connect_options : dict or list of dict, optional
        Keywords of ``asyncssh.connect``, for all hosts or for each: `username`, `password`, `port`,
        `client_keys`, `known_hosts`, `tunnel`, `agent_path`, `config` ... What they leave open is
        taken from ``~/.ssh``, as ssh does.
    worker_options : dict, optional
        Parameters of `Worker` and `Nanny`; and `n_workers`, for each host: a number, a negative one
        for CPUs + 1 + it, or "auto".
    scheduler_options : dict, optional
        Parameters of `Scheduler`.
    worker_class : str or type
        "Nanny", "Worker", or another class that takes their parameters and that the hosts can
        import, or its path: ``"mypackage.MyNanny"``.
    remote_python : str or list of str, optional
        What starts Python on the hosts, as one writes it in a shell: ``~/env/bin/python``. By
        default the path of this one.
    name : str, optional
    asynchronous : bool
        Work on the running event loop, with ``async with``.
    silence_logs : int or False
        Lowest level of log lines of the hosts that are shown; WARNING by default.
    token, token_file, auth
        As for `Scheduler`; by default a fresh token: only clients of this object can connect.
    scheduler_file : str, optional
        File on *this* host that tells other clients the scheduler's address and the token.
    log_directory : str, optional
        Folder on the hosts where each writes its log into a file, instead of showing it here.
    use_ssh_address : bool
        Whether scheduler and workers advertise the address at which SSH has reached their host.
        With an `interface` or `host` among their options these decide.
    silence_timeout : float or str
        Seconds after which a host that hears nothing from here ends what it runs.

    Raises
    ------
    LaunchError
        If a host cannot be used; the text says which, why, and what to do.

    Examples
    --------
    >>> with SSHCluster(["node1", "node1", "node2"]) as cluster, Client(cluster) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        hosts: Sequence[str],
        connect_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        worker_options: Mapping[str, Any] | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        worker_class: str | type = "hpcdask.Nanny",
        remote_python: str | Sequence[str] | None = None,
        *,
        name: str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        silence_logs: int | bool | str = logging.WARNING,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        scheduler_file: str | None = None,
        log_directory: str | None = None,
        use_ssh_address: bool = True,
        silence_timeout: float | str = "5 min",
    ) -> None:
        python = shlex.quote(sys.executable)
        self.hosts = make_hosts(hosts, connect_options, remote_python, python)
        self._worker_options = dict(worker_options or {})
        self._scheduler_options = dict(scheduler_options or {})
        self._n_per_host = self._worker_options.pop("n_workers", 1)
        self._worker_class = path_of(worker_class)
        refuse_dashboard(self._scheduler_options)
        self._scheduler_options.pop("dashboard_address", None)
        parse_nworkers(self._n_per_host)
        _try_out(self._worker_options, self._scheduler_options, self._worker_class)
        self._ports = parse_ports(self._worker_options.get("port", 0))
        super().__init__(name, asynchronous, loop, silence_logs)
        self._token = settled_token(token, token_file, auth)
        self._scheduler_file, self._use_ssh_address = scheduler_file, use_ssh_address
        self._start_timeout = _SLACK + hosts_module.parse_timedelta(
            self._worker_options.get("death_timeout", 60.0)
        )
        self._settings = {
            "token": None if self._token is None else self._token.hex(),
            "log_level": self._log_level,
            "log_directory": log_directory,
            "silence": hosts_module.parse_timedelta(silence_timeout),
        }
        if not self._settings["silence"]:
            raise ConfigError("a silence_timeout of 0 s would end every host at once")
        self.failure = ""  # why it has ended although nobody asked it to
        self._contact: Contact | None = None
        self._members: list[WorkerHost] = []
        self._scheduler_link: SSHLink | None = None
        self._numbers = itertools.count()
        self._over = asyncio.Event()
        self._scheduler_is_gone = asyncio.Event()
        if any(each.options.get("known_hosts", "") is None for each in self.hosts):
            log.warning("host keys are not checked (known_hosts=None): whoever answers is trusted")
        self._begin()

    # -- Life -------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        self._scheduler_link = SSHLink(
            self.hosts[0],
            {**self._settings, "title": "scheduler"},
            self._start_timeout,
            lambda name, why: self._scheduler_has_gone(why),
            lambda why: self._scheduler_has_gone(f"lost {self.hosts[0]}: {why}"),
        )
        self._members = [
            WorkerHost(host, self._new_link(i, host)) for i, host in enumerate(self.hosts[1:])
        ]
        if self._scheduler_file:
            await refuse_taken_file(self._scheduler_file)
        links = [self._scheduler_link, *(member.link for member in self._members)]
        # All at the same time: to log in and to start Python there takes the longest.
        await _all(link.open() for link in links)
        self._plan()
        await self._start_scheduler(self._scheduler_link)
        first = [i for i, m in enumerate(self._members) for _ in range(m.n_planned)]
        await self._start_first(first)
        if not self._members:
            text = "%s has no host for workers; name %s twice to have one there, too"
            log.warning(text, self.name, self.hosts[0])

    def _new_link(self, position: int, host: SSHHost) -> SSHLink:
        return SSHLink(
            host,
            {**self._settings, "title": "worker"},
            self._start_timeout,
            self._worker_has_gone,
            lambda why: self._host_has_gone(position, why),
        )

    def _plan(self) -> None:
        """Decide how many workers each host gets, and of how many threads."""
        copies = Counter((m.host.name, m.host.options.get("port")) for m in self._members)
        nthreads = self._worker_options.get("nthreads")
        for member in self._members:
            n_times = copies[member.host.name, member.host.options.get("port")]
            cpus = max(member.link.cpus // n_times, 1)
            n, member.nthreads = shape_of_host(self._n_per_host or 1, nthreads, cpus)
            member.n_planned = n if self._n_per_host else 0
            member.share = n * n_times
            if self._ports != [0] and len(self._ports) < member.share:
                raise ConfigError(
                    f"{member.share} workers on {member.host} need {member.share} ports; "
                    f"{self._worker_options['port']} has {len(self._ports)}"
                )

    async def _start_scheduler(self, link: SSHLink) -> None:
        options = {**self._scheduler_options, **self._where_to_be(link, is_scheduler=True)}
        about = await link.start(_SCHEDULER, "scheduler", options)
        self._contact = contact = Contact(**about["contact"], token=self._token or b"")
        reached_at = await self._way_to(contact.address, link)
        self._access = SchedulerThere(self._place(reached_at), contact.address, self.name)
        if self._scheduler_file:
            here = Contact(**{**about["contact"], "address": reached_at}, token=contact.token)
            write_scheduler_file(self._scheduler_file, here)

    def _where_to_be(self, link: SSHLink, is_scheduler: bool) -> dict[str, Any]:
        """Options that make what runs on a host known at the address where SSH has reached it."""
        options = self._scheduler_options if is_scheduler else self._worker_options
        said = {"host", "interface", "contact_address", "listen_address"}
        if not self._use_ssh_address or said & options.keys():
            return {}
        others = [member.link.address for member in self._members]
        address = known_address(link.address, others)
        # The scheduler listens everywhere, unless all is on one machine: clients come from outside.
        if is_scheduler and address and not network.is_loopback(address):
            return {"contact_address": f"[{address}]" if ":" in address else address}
        return {"host": address} if address else {}

    async def _way_to(self, address: str, link: SSHLink) -> str:
        """An address at which this host reaches the scheduler: its own, or a port of the link."""
        try:
            comm = await connect(address, self._place(address).options(), _DIRECT, was_there=True)
        except OSError as exc:
            where = parse_address(address)
            port = await link.forward(where.host, where.port)
            text = "the scheduler is reached through the SSH connection to %s, since directly: %s"
            log.info(text, link.host, exc)
            return f"tcp://127.0.0.1:{port}"
        comm.close()
        return address

    async def _end(self) -> None:
        self.workers = {}
        reason = "the cluster ends"
        if self._access is not None:
            await self._access.close(reason)
        await asyncio.gather(*(member.link.close(reason) for member in self._members))
        if self._scheduler_link is not None:
            await self._scheduler_link.close(reason)
        if self._scheduler_file and self._contact is not None:
            remove_scheduler_file(self._scheduler_file, self._contact.id)
        self._over.set()

    async def _close_once(self) -> None:
        await super()._close_once()
        if self.failure:
            self.status = "failed"

    async def finished(self) -> None:
        """Wait until it has ended, by `close` or by itself.

        Raises
        ------
        LaunchError
            If it could not go on.
        """
        await self._over.wait()
        if self.failure:
            raise LaunchError(self.failure)

    # -- What happens on the hosts ----------------------------------------------------------------

    def _scheduler_has_gone(self, why: str) -> None:
        if self._closing is not None:
            return
        self.failure = why
        self._scheduler_is_gone.set()
        if self.status == "running":  # else its start fails, and tells why
            log.log(
                logging.ERROR if why else logging.INFO,
                "%s ends: %s",
                self.name,
                why or "its scheduler was shut down",
            )
            asyncio.get_running_loop().create_task(self._close())

    def _worker_has_gone(self, name: str, why: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None and why and self._closing is None:
            log.warning("worker %s on %s has ended: %s", name, worker.host, why)

    def _host_has_gone(self, position: int, why: str) -> None:
        """Its workers end by themselves; the scheduler has their tasks run elsewhere."""
        lost = [name for name, w in self.workers.items() if w.position == position]
        for name in lost:
            del self.workers[name]
        member = self._members[position]
        member.avoided_until = time.monotonic() + _AVOIDED
        if self._closing is None:
            workers = f"its workers {', '.join(lost)} are gone" if lost else "it had no worker"
            text = "lost %s: %s; %s. scale() and adapt() start others"
            log.warning(text, member.host, why, workers)

    # -- More and fewer workers -------------------------------------------------------------------

    async def _start_workers(self, n: int) -> None:
        if not self._members:
            raise LaunchError(
                f"{self.name} has no host for workers; name {self.hosts[0]} twice to have them "
                "there, too"
            )
        now = time.monotonic()
        counts = Counter(worker.position for worker in self.workers.values())
        counts.update(self._coming.values())
        loads = [
            Load(counts[i], member.n_planned, member.avoided_until <= now)
            for i, member in enumerate(self._members)
        ]
        chosen = choose_hosts(loads, n)
        for position in {i for i in chosen if counts[i] + chosen.count(i) > loads[i].n_planned}:
            member, total = self._members[position], counts[position] + chosen.count(position)
            if total * member.nthreads > member.link.cpus:
                text = "%s gets %d workers of %d threads for %d CPUs; set nthreads for the workers"
                log.warning(text, member.host, total, member.nthreads, member.link.cpus)
        await self._start_on(chosen)

    async def _start_first(self, positions: Iterable[int]) -> None:
        """Start workers, but not beyond the scheduler: they would look for it for long."""
        starting = asyncio.ensure_future(self._start_on(positions))
        gone = asyncio.ensure_future(self._scheduler_is_gone.wait())
        try:
            await first_of(starting, gone)
            if not starting.done():
                why = self.failure or "its scheduler was shut down before all workers were there"
                raise LaunchError(f"{self.name} ends: {why}")
            starting.result()
        finally:
            starting.cancel()
            gone.cancel()
            await asyncio.wait({starting, gone})

    async def _start_on(self, positions: Iterable[int]) -> None:
        names = {str(next(self._numbers)): position for position in positions}
        self._coming.update(names)
        try:
            await _all(self._start_worker(name, position) for name, position in names.items())
        finally:  # the youngest last, whoever was quicker
            in_order = sorted(self.workers.values(), key=lambda worker: int(worker.name))
            self.workers = {worker.name: worker for worker in in_order}

    async def _start_worker(self, name: str, position: int) -> None:
        member = self._members[position]
        try:
            link = await self._open_link(position)
            assert self._contact is not None
            options = {
                **self._worker_options,
                **self._where_to_be(link, is_scheduler=False),
                "nthreads": member.nthreads,
            }
            about = await link.start(
                name,
                "worker",
                options,
                scheduler=self._contact.address,
                kind=self._worker_class,
                share=max(member.share, 1),
            )
        except HpcdaskError:
            member.avoided_until = time.monotonic() + _AVOIDED
            raise
        finally:
            del self._coming[name]
        if name not in link.running:  # since it was said to run
            raise LaunchError(f"worker {name} on {member.host} ended as soon as it had started")
        self.workers[name] = RemoteWorker(
            name, str(member.host), about["address"], member.nthreads, position, about["nanny"]
        )

    async def _open_link(self, position: int) -> SSHLink:
        """Return the link of a host; connect again if it was lost."""
        member = self._members[position]
        async with member.opening:
            if not member.link.is_open:
                if self._closing is not None:
                    raise LaunchError(f"{self.name} is closed")
                await member.link.close("it was lost")
                member.link = self._new_link(position, member.host)
                await member.link.open()
        return member.link

    async def _retire_workers(
        self, names: Collection[str], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        leaving = [self.workers[name] for name in names if name in self.workers]
        ids = [worker.nanny or worker.address for worker in leaving]
        await self._scheduler.retire(ids, timeout, patience)
        for worker in leaving:
            self.workers.pop(worker.name, None)
            link = self._members[worker.position].link
            if link.is_open:
                link.end_soon(worker.name, "scaled down")

    def _surplus(self, n: int) -> list[str]:
        workers = [(worker.name, worker.position) for worker in self.workers.values()]
        return choose_surplus(workers, [member.n_planned for member in self._members], n)

    def _worker_shape(self) -> UnitShape:
        return UnitShape(
            nthreads=self._members[0].nthreads if self._members else 0,
            memory=given_memory(self._worker_options.get("memory_limit")),
            resources=checked_resources(self._worker_options.get("resources")),
        )

    def _place(self, address: str) -> SchedulerPlace:
        return SchedulerPlace(address, token=self._token, auth=self._token is not None)


async def serve(make: Callable[[], SSHCluster]) -> None:
    """Start a cluster, and run it until a signal comes or it has ended by itself.

    Parameters
    ----------
    make : callable
        Makes an asynchronous one.

    Raises
    ------
    LaunchError
        If it cannot start, or could not go on.
    """
    with stop_signals(for_good=True) as stopped:
        cluster = make()
        living = asyncio.ensure_future(_live(cluster))
        await first_of(living, stopped)
        with stop_signals(for_good=True) as stopped_again:
            closing = asyncio.ensure_future(cluster._close())
            if stopped.done():
                log.info("ending what runs on the hosts")
            # What runs there ends without our help, too, when the connections are gone.
            await first_of(closing, stopped_again)
        if not stopped.done():
            living.result()
        living.cancel()
        await asyncio.wait({living})


async def _live(cluster: SSHCluster) -> None:
    await cluster
    text = "the cluster is up: %d workers on %d hosts, scheduler at %s; Ctrl-C ends it"
    n_hosts = len({worker.host for worker in cluster.workers.values()})
    log.info(text, len(cluster.workers), n_hosts, cluster.scheduler_address)
    await cluster.finished()


async def _all(works: Iterable[Any]) -> None:
    """Do all at the same time; what went wrong is raised at the end, all of it."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    if not errors:
        return
    for exc in errors:
        if not isinstance(exc, HpcdaskError):
            raise exc
    texts = list(dict.fromkeys(map(str, errors)))
    kind = ConfigError if all(isinstance(exc, ConfigError) for exc in errors) else LaunchError
    raise kind("\n".join(texts)) from errors[0]


def _try_out(
    worker_options: Mapping[str, Any], scheduler_options: Mapping[str, Any], worker_class: str
) -> None:
    """Raise here what would else be raised on another host, a second later."""
    reserved = {"token", "token_file", "auth", "scheduler", "name", "nanny"}
    for what, options in (("worker", worker_options), ("scheduler", scheduler_options)):
        if taken := sorted(reserved & options.keys()):
            raise ConfigError(f"{', '.join(taken)} cannot be among {what}_options of an SSHCluster")
    Scheduler(**scheduler_options)
    if is_ours(worker_class):  # others only the hosts know
        check_worker_options(worker_options, "SSHCluster")
        Nanny("tcp://localhost", **{"memory_limit": 0, **worker_options})
