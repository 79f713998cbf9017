"""What chaos does to a cluster.

A deed is a generator. It does its evil, yields what it did and for how many seconds that lasts, and
heals it when it is resumed; it may then go on to a next act. One that finds no victim ends at once.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
from chaos_clusters import Cluster, OnHosts, children
from chaos_times import DRAINED, WORKER_TTL
from commands import Command
from janitor import find
from waiting import wait_until

#: One act of a deed: what was done, and the seconds until the deed goes on.
Act = tuple[str, float]
Acts = Iterator[Act]

#: Seconds in which a killed nanny's worker must be gone.
_TAKEN_ALONG = 5.0


def some_time(rng: random.Random) -> float:
    """Seconds that a silence lasts: clearly shorter, or clearly longer, than worker_ttl."""
    if rng.random() < 0.6:
        return rng.uniform(0.1, WORKER_TTL / 2)
    return rng.uniform(1.3 * WORKER_TTL, 2 * WORKER_TTL)


# -- Processes ------------------------------------------------------------------------------------


def kill_worker(cluster: Cluster, rng: random.Random) -> Acts:
    if worker := _one_of(rng, _running(cluster)):  # those that are stopped are to be given up
        with contextlib.suppress(psutil.Error):
            worker.kill()
        yield f"kill -9 worker {worker.pid}", 0.0


def stop_worker(cluster: Cluster, rng: random.Random) -> Acts:
    if worker := _one_of(rng, _running(cluster)):
        yield from _stop(worker.pid, "worker", some_time(rng))


def stop_nanny(cluster: Cluster, rng: random.Random) -> Acts:
    if nanny := _one_of(rng, _well(cluster)):
        yield from _stop(nanny.process.pid, "nanny", some_time(rng))


def stop_scheduler(cluster: Cluster, rng: random.Random) -> Acts:
    yield from _stop(cluster.scheduler_pid, "scheduler", rng.uniform(0.1, 1.5))


def stop_client(cluster: Cluster, rng: random.Random) -> Acts:
    client = rng.choice(cluster.clients)
    yield from _stop(client.process.pid, client.name, some_time(rng))


def kill_nanny(cluster: Cluster, rng: random.Random) -> Acts:
    """Its worker goes with it, and the batch system starts another job."""
    nanny = _one_of(rng, _well(cluster))
    if nanny is None:
        return
    workers = children(nanny.process.pid)
    host = cluster.nannies.pop(nanny)
    nanny.process.kill()
    nanny.process.wait(10)
    pids = [worker.pid for worker in workers]
    wait_until(
        lambda: not any(_is_alive(worker) for worker in workers),
        _TAKEN_ALONG,
        f"the killed nanny {nanny.process.pid} has taken its workers {pids} along",
    )
    yield f"kill -9 nanny {nanny.process.pid} of worker {pids} on {host or 'this machine'}", 0.5
    yield from _another_job(cluster, host)


def drain_nanny(cluster: Cluster, rng: random.Random) -> Acts:
    """The walltime ends: SIGTERM, and another job starts."""
    # One without a worker may not even listen to signals yet.
    started = [nanny for nanny in _well(cluster) if children(nanny.process.pid)]
    nanny = _one_of(rng, started)
    if nanny is None:
        return
    host = cluster.nannies.pop(nanny)
    nanny.process.terminate()
    yield f"SIGTERM to nanny {nanny.process.pid} on {host or 'this machine'}", 0.5
    yield from _another_job(cluster, host)
    # Not waited for here: what keeps it, as a scheduler that is stopped, is to be healed meanwhile.
    deadline = time.monotonic() + DRAINED
    while nanny.process.poll() is None and time.monotonic() < deadline:
        yield f"nanny {nanny.process.pid} is leaving", 0.5
    code = nanny.code(0)
    assert code == 0, f"a nanny that got SIGTERM ended with {code}: {nanny}"


def _another_job(cluster: Cluster, host: str) -> Acts:
    """No batch system starts jobs on a host that it cannot reach."""
    while host in cluster.troubled:
        yield f"no new nanny on {host} yet: it is cut off", 0.5
    nanny = cluster.start_nanny(host)
    yield f"start nanny {nanny.process.pid} on {host or 'this machine'}", 0.0


def kill_client(cluster: Cluster, rng: random.Random) -> Acts:
    """A user's program dies in the midst of its work, and is started again."""
    ready = [victim for victim in cluster.victims if victim.is_ready]
    if not ready:
        return
    victim = ready[0]
    cluster.victims.remove(victim)
    victim.order("round", seed=str(rng.random()), seconds=60.0)
    yield f"{victim.name} starts to work", rng.uniform(0.1, 2.0)
    victim.kill()
    yield f"kill -9 {victim.name}", 0.0
    victim = cluster.start_client("victim")
    cluster.victims.append(victim)
    while not victim.has_answered:  # it may take until a deed that keeps it from that is healed
        yield f"{victim.name} is starting", 0.5
    victim.answer(0)


def restart_scheduler(cluster: Cluster, rng: random.Random) -> Acts:
    """It dies, and a new one starts on the same scheduler file."""
    assert isinstance(cluster, OnHosts)
    if "head" in cluster.troubled:
        return
    cluster.troubled.add("head")
    cluster.scheduler.process.kill()
    cluster.scheduler.code(10)
    yield f"kill -9 scheduler {cluster.scheduler.process.pid}", rng.uniform(0.0, 3.0)
    cluster.start_scheduler()
    cluster.troubled.discard("head")
    yield f"start scheduler {cluster.scheduler.process.pid}", 0.0


def _stop(pid: int, name: str, seconds: float) -> Acts:
    with contextlib.suppress(psutil.Error):  # it has died meanwhile
        process = psutil.Process(pid)
        process.suspend()
        yield f"SIGSTOP to {name} {pid} for {seconds:.1f} s", seconds
        process.resume()
        yield f"SIGCONT to {name} {pid}", 0.0


# -- Links ----------------------------------------------------------------------------------------


def cut_link(cluster: Cluster, rng: random.Random) -> Acts:
    yield from _cut(cluster, rng, _one_of(rng, _whole(cluster, cluster.links)), some_time(rng))


def cut_client_link(cluster: Cluster, rng: random.Random) -> Acts:
    host = _one_of(rng, _whole(cluster, cluster.client_links))
    yield from _cut(cluster, rng, host, some_time(rng))


def flap_link(cluster: Cluster, rng: random.Random) -> Acts:
    """A loose contact, which loses what was on its way each time."""
    host = _one_of(rng, _whole(cluster, cluster.links))
    for _ in range(rng.randint(2, 6)):
        if host in cluster.troubled:  # another deed has cut it off meanwhile
            return
        yield from _cut(cluster, rng, host, rng.uniform(0.05, 0.4))


def _cut(cluster: Cluster, rng: random.Random, host: str | None, seconds: float) -> Acts:
    if host is None:
        return
    assert isinstance(cluster, OnHosts)
    cluster.troubled.add(host)
    # Its end of the cable is dead, and the host sees that; or the switch is, and it does not. On an
    # interface that is known to be dead nothing can start, and says so.
    is_seen = rng.random() < 0.5 and not _is_starting_on(cluster, host)
    cluster.hosts.cut(host, is_seen)
    yield f"{'cut' if is_seen else 'mute'} the link of {host} for {seconds:.1f} s", seconds
    cluster.hosts.mend(host)
    cluster.troubled.discard(host)
    yield f"mend the link of {host}", 0.2


def close_connection(cluster: Cluster, rng: random.Random) -> Acts:
    """Reset one connection of a worker: to the scheduler, to another worker or to a client."""
    ss = find("ss")
    if ss is None:
        return
    host = rng.choice(cluster.links or ("",))
    listing = subprocess.run(
        cluster.on(host, ss, "-tnpH", "state", "established"), capture_output=True, text=True
    )
    pids = {worker.pid for worker in cluster.workers()}
    found = [
        (ends[0], ends[1])
        for line in listing.stdout.splitlines()
        if int((re.search(r"pid=(\d+)", line) or ["", "0"])[1]) in pids
        and len(ends := re.findall(r"[\d.]+:\d+", line)) == 2
    ]
    chosen = _one_of(rng, found)
    if chosen is None:
        return
    # Needs a kernel with INET_DIAG_DESTROY; on others it does nothing.
    how = ("src", chosen[0], "dst", chosen[1])
    subprocess.run(cluster.on(host, ss, "-tnK", *how), capture_output=True)
    yield f"reset the connection {chosen[0]} - {chosen[1]} of a worker", 0.0


# -- Choosing -------------------------------------------------------------------------------------


class Deed(NamedTuple):
    """How often a deed is done, and of which clusters."""

    acts: Callable[[Any, random.Random], Acts]
    weight: int
    where: tuple[str, ...] = ("LocalCluster", "hosts")


DEEDS = (
    Deed(kill_worker, 6),
    Deed(stop_worker, 4),
    Deed(kill_nanny, 2),
    Deed(stop_nanny, 1),
    Deed(drain_nanny, 2),
    Deed(kill_client, 1),
    Deed(stop_client, 1),
    Deed(close_connection, 3),
    Deed(stop_scheduler, 1, ("hosts",)),
    Deed(cut_link, 4, ("hosts",)),
    Deed(flap_link, 2, ("hosts",)),
    Deed(cut_client_link, 1, ("hosts",)),
    Deed(restart_scheduler, 1, ("hosts",)),
)


def possible(cluster: Cluster) -> list[Deed]:
    """The deeds that this cluster is to bear."""
    return [d for d in DEEDS if cluster.kind in d.where]


def _one_of(rng: random.Random, these: Any) -> Any:
    """One of them, or None; always one number drawn, so that a seed means the same each time."""
    at = rng.random()
    these = list(these)
    return these[int(at * len(these))] if these else None


def _well(cluster: Cluster) -> list[Command]:
    """Nannies that run, on hosts that are reached, with workers that run."""
    return [
        nanny
        for nanny, host in cluster.nannies.items()
        if host not in cluster.troubled
        and nanny.process.poll() is None
        and not _is_stopped(nanny.process.pid)
        and not any(_is_stopped(worker.pid) for worker in children(nanny.process.pid))
    ]


def _running(cluster: Cluster) -> list[psutil.Process]:
    return [worker for worker in cluster.workers() if not _is_stopped(worker.pid)]


def _is_starting_on(cluster: Cluster, host: str) -> bool:
    nannies = [nanny for nanny, where in cluster.nannies.items() if where == host]
    return not all("Start Nanny at" in nanny.err for nanny in nannies)


def _whole(cluster: Cluster, hosts: tuple[str, ...]) -> list[str]:
    return [host for host in hosts if host not in cluster.troubled]


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False
