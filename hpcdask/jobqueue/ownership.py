"""Who may keep the jobs of a cluster that is there already: one process at a time."""

from __future__ import annotations

from collections.abc import Callable

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState
from hpcdask.jobqueue.survey import Condition, KnownCluster, survey


def line_to_use(state: ClusterState) -> str:
    """The line of Python that makes a client of a cluster, which may be any process's."""
    return f"Client(scheduler_file={state.scheduler_file!r})"


def refuse_dependent(state: ClusterState) -> None:
    """Raise `ConfigError` if a cluster cannot live without the process that has made it."""
    if state.has_scheduler_job:
        return
    if state.owner is not None and state.owner.has_ended():
        raise ConfigError(
            f"the scheduler of {state.name} was in {state.owner}, which has ended. Remove what is "
            f"left with: hpc-dask clean {state.name}. A cluster with scheduler='job' can be left"
        )
    raise ConfigError(
        f"the scheduler of {state.name} is in {state.owner}, so no other can keep its jobs. As "
        f"long as that runs, its workers are there for {line_to_use(state)}"
    )


async def approval(folder: ClusterFolder, take_over: bool) -> Callable[[ClusterState], None]:
    """Look whether a cluster may be taken over; the result is for `ClusterFolder.own`.

    Parameters
    ----------
    take_over : bool
        Whether to do so if nobody can tell.

    Raises
    ------
    LaunchError
        If somebody keeps it, who is named.
    """
    found = await survey([folder], asks_queue=False)
    if not found:
        raise LaunchError(f"the cluster of {folder.path} has ended just now")
    [known] = found
    _refuse_kept(known, take_over)

    def approve(state: ClusterState) -> None:
        if state.owner != known.state.owner:
            raise LaunchError(f"{state.owner} was faster, and keeps cluster {state.name} now")

    return approve


def _refuse_kept(known: KnownCluster, take_over: bool) -> None:
    state = known.state
    if known.condition is Condition.KEPT:
        raise LaunchError(
            f"cluster {state.name} is kept by {state.owner}: end that, or let it call "
            f"cluster.detach(). To use the workers, there is {line_to_use(state)}"
        )
    if known.condition is Condition.UNKNOWN and not take_over:
        raise LaunchError(
            f"cluster {state.name} was kept by {state.owner}, and from here nobody can see whether "
            "that runs: its scheduler does not answer. Look there, and if it does not run, say "
            f"attach({state.name!r}, take_over=True)"
        )
