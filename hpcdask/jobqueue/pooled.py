"""Clusters of several kinds of jobs: pools, which are made and removed while it runs."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine
from typing import Any

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.jobqueue.attachable import POOL, AttachableCluster
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.keeper import Keeper
from hpcdask.jobqueue.keywords import changed


class PooledCluster(AttachableCluster):
    """What a cluster of jobs has to do with the kinds of them."""

    def add_pool(self, name: str, *, config_name: str | None = None, **job_kwargs: Any) -> None:
        """Have jobs of another shape, too: on nodes with GPUs, say, or with much memory.

        Each pool is scaled and adapted apart. A task runs on any worker that has the resources that
        it asks for.

        Parameters
        ----------
        name : str
            Letters, digits, '.', '_' and '-'. It is part of the jobs' name, unless that is given.
        config_name : str, optional
            Section of the configuration to read. Without, what is not given here is as in the other
            jobs of the cluster; with it, as configured in this section.
        **job_kwargs
            What each job asks for: parameters of the `Job` class.

        Raises
        ------
        ConfigError
            If there is a pool of that name, or such jobs cannot be.

        Examples
        --------
        >>> cluster.add_pool("gpu", queue="gpu", cores=4, memory="32GB", resources={"GPU": 1},
        ...                  processes=1, job_extra_directives=["--gres=gpu:1"])
        >>> cluster.adapt(maximum_jobs=4, pool="gpu")
        >>> client.submit(train, data, resources={"GPU": 1})
        """
        if not re.fullmatch(r"[A-Za-z][\w.-]*", name) or name == "scheduler":
            raise ConfigError(
                f"{name!r} cannot be the name of a pool of workers: begin with a letter, and go on "
                "with letters, digits, '.', '_' and '-'"
            )
        if name in self._pools:
            raise ConfigError(f"{self.name} has a pool {name!r} already; choose another name")
        job = self._job_of_pool(name, config_name, job_kwargs)
        self._place(job)

        def add() -> None:
            if self._closing is not None:
                raise LaunchError(f"{self.name} is closed; make a new one")
            if self._keeper is not None:
                self._keep(name, job)
            self._pools[name] = job

        self._on_loop(add)

    def _job_of_pool(self, pool: str, config_name: str | None, given: dict[str, Any]) -> Job:
        """A job with what is given, and else as configured in a section or as the first kind."""
        kind, section = type(self._job), config_name or self._job.config_name
        inherited = self._job_kwargs
        if config_name:
            inherited = {keyword: inherited[keyword] for keyword in ("interface", "protocol")}
        keywords = changed(inherited, given)
        job = kind(config_name=section, **keywords)
        if job.job_name != self._job.job_name:
            return job
        # A keyword, so that it is found again with the cluster.
        return kind(config_name=section, **{**keywords, "job_name": f"{job.job_name}-{pool}"})

    def _keep(self, pool: str, job: Job) -> None:
        """Be ready for jobs of a kind."""
        try:
            # Most batch systems make none, and some fail all jobs then without a word.
            os.makedirs(job.log_directory, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"cannot make the folder {job.log_directory} for logs: {exc.strerror}; name "
                "another with log_directory"
            ) from exc
        self._jobs.add_pool(pool, job)

    def remove_pool(self, name: str) -> Any:
        """Have no jobs of a shape any more: those that there are hand over and end, as by `scale`.

        Raises
        ------
        ConfigError
            If there is no such pool, or it is the first one, which every cluster has.
        """
        pool = self._pool_called(name)
        if pool == POOL:
            raise ConfigError(f"pool {POOL!r} is the cluster's own; scale it to 0 in its place")

        async def work() -> None:
            await self._adapt_no_more(pool)
            if self._keeper is not None:
                self._keeper.remove_pool(pool)
            del self._pools[pool]

        return self._done(work())

    @property
    def pools(self) -> dict[str, Job]:
        """The kinds of jobs by name, with what each asks for; the first one is "workers"."""
        return dict(self._pools)

    def _pool_called(self, name: str | None) -> str:
        if name is None:
            return POOL
        if name not in self._pools:
            raise ConfigError(
                f"{self.name} has no pool {name!r}; it has {', '.join(self._pools)}, and add_pool "
                "makes another"
            )
        return name

    @property
    def _jobs(self) -> Keeper:
        if self._keeper is None:
            raise LaunchError(f"{self.name} has no jobs: it is {self.status}")
        return self._keeper

    def _done(
        self, work: Coroutine[Any, Any, None], timeout: float | str | None = None
    ) -> asyncio.Future[None] | None:
        """Do it; on the cluster's loop also if nobody awaits it."""
        if not self.asynchronous:
            self._maybe_sync(work, timeout)
            return None
        task: asyncio.Future[None] = asyncio.ensure_future(self._maybe_sync(work, timeout))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task
