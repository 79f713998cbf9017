"""What a cluster logs of its jobs, once each: programs that wait for results hear nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hpcdask.jobqueue.controller import Controller

log = logging.getLogger("hpcdask.jobqueue")


class Complaints:
    """Says what is wrong with jobs.

    Parameters
    ----------
    name : str
        Of the cluster.
    title : str
        Of the batch system.
    controller : Controller
    """

    def __init__(self, name: str, title: str, controller: Controller) -> None:
        self._name, self._title, self._controller = name, title, controller
        self._told: dict[str, tuple[int, bool]] = {}  # by pool, of failed starts
        self._hopeless: set[str] = set()  # jobs of which it was told that they never run

    def of_starts(self) -> None:
        """Say of each failed start that it has, and when no more are tried."""
        pools = self._controller.pools
        for name, pool in pools.items():
            troubles, told = pool.troubles, self._told.get(name, (0, False))
            self._told[name] = (troubles.starts.n, troubles.has_stopped)
            title = f"{self._name}, pool {name!r}" if len(pools) > 1 else self._name
            if troubles.has_stopped:
                if not told[1]:
                    log.error("%s: %s", title, troubles.in_words())
            elif troubles.starts.n > told[0]:
                text = "%s: a start has failed, number %d in a row of at most %d: %s"
                n, most = troubles.starts.n, troubles.limits.max_failures
                log.warning(text, title, n, most, troubles.starts.why)

    def of_hopeless(self, never: Iterable[str]) -> None:
        """Say of jobs that they can never run, as their batch system says."""
        for id in never:
            job = self._controller.jobs.get(id)
            if job is not None and id not in self._hopeless:
                self._hopeless.add(id)
                text = "job %s can never run, says %s: %s"
                log.warning(text, id, self._title, job.status.reason)
