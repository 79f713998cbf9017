"""One command under mpirun or srun: one rank runs the scheduler, the others workers.

The launcher only starts the processes. The ranks tell each other the scheduler's address and token,
then part, and all traffic is TCP (see `hpcdask.launchers.ranks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hpcdask import config, network
from hpcdask.errors import HpcdaskError, LaunchError
from hpcdask.launchers import dry_run
from hpcdask.launchers.meeting import find_ranks, go_on_together
from hpcdask.launchers.part import MPIOptions, Part
from hpcdask.launchers.process import Deadline, event_loop, serve
from hpcdask.launchers.ranks import Ranks
from hpcdask.launchers.script import serve_script
from hpcdask.rendezvous import Contact
from hpcdask.service import Service
from hpcdask.world import launched_world, nodes_of_job

log = logging.getLogger("hpcdask.mpi")


class Meeting(NamedTuple):
    """How ranks find each other, as `find_ranks` takes it; known before anything else is."""

    use_mpi: bool | None = None
    folder: str | None = None
    timeout: float = 60.0


def launch(
    find_options: Callable[[], MPIOptions], meeting: Meeting, only_show: bool = False
) -> int:
    """Take this rank's part in the cluster until it ends.

    Parameters
    ----------
    find_options : callable
        Makes the options; what it raises is told to all ranks, as it may be wrong on one only.
    only_show : bool
        Print on rank 0 what each rank would do, and start nothing.

    Returns
    -------
    int
        Exit code: of the scheduler's rank that of the script, of all others 0 unless they could not
        start. One rank's non-zero code ends the whole job, so a worker's death must never become
        one.

    Raises
    ------
    ConfigError
        On rank 0, if an option has a value that it cannot have.
    LaunchError
        On rank 0, if a rank cannot do its part, or does not come.
    """
    try:
        ranks = find_ranks(*meeting)
    except HpcdaskError:  # on each host whose ranks cannot meet the others one says it
        if launched_world().local_rank == 0:
            raise
        return 0
    with ranks:
        try:
            part = part_with_others(find_options, ranks)
        except HpcdaskError:
            ranks.part()
            if ranks.world.rank == 0:
                raise
            return 0  # an error here might end rank 0 before it has said why
        return dry_run.show(part) if only_show else serve_part(part)


def part_with_others(find_options: Callable[[], MPIOptions], ranks: Ranks) -> Part:
    """This rank's part, if all ranks can do theirs; all call it.

    Raises
    ------
    ConfigError, LaunchError
        On all ranks, what is wrong on any.
    """
    part: Part | None = None
    problem: HpcdaskError | OSError | None = None
    try:
        part = Part(find_options(), ranks)
    except (HpcdaskError, OSError) as exc:
        problem = exc
    go_on_together(ranks, problem)
    assert part is not None
    part.settle()
    return part


def serve_part(part: Part, for_good: bool = True) -> int:
    """Run what a rank has to run until the cluster ends; return the rank's exit code.

    Parameters
    ----------
    for_good : bool
        Whether the process ends afterwards.
    """
    with event_loop() as loop:
        return loop.run_until_complete(run_part(part, for_good))


async def run_part(part: Part, for_good: bool = True) -> int:
    """Do what `serve_part` does, on the running loop of the main thread."""
    options, ranks = part.options, part.ranks
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(contextlib.ExitStack())
        scheduler_file = part.name_scheduler_file(files)
        services: list[Service] = []

        async def start() -> Contact:
            if options.script is not None and not os.path.isfile(options.script[0]):
                raise LaunchError(f"there is no script {options.script[0]!r} to run")
            scheduler = await part.start_scheduler(scheduler_file)
            services.append(scheduler)
            return scheduler.contact()

        starting = [asyncio.ensure_future(start())] if part.is_scheduler else []
        if starting:
            await asyncio.wait(starting)
        try:
            place = part.agree(lambda: starting[0].result())
        except LaunchError:
            ranks.part()
            if part.is_scheduler:
                raise
            return 0  # the scheduler's rank says why; an error here might end it before it has
        ranks.part()
        _say_what_was_found(part)
        services += part.workers(place)
        deadline = stack.enter_context(Deadline(options.shutdown_timeout))
        if part.is_scheduler and options.script is not None:
            assert scheduler_file is not None
            return await serve_script(
                services, options.script, scheduler_file, files.close, deadline
            )
        await serve(
            services,
            with_parent=True,
            leaves=not options.with_scheduler,
            for_good=for_good,
            deadline=deadline,
            beside=None if options.with_scheduler else lambda: _leave_in_time(part, services),
        )
        return 0


async def _leave_in_time(part: Part, services: Sequence[Service]) -> None:
    """Let ranks that are all workers of a cluster elsewhere leave it before their job ends."""
    from hpcdask.launchers.departure import leave_in_time

    settings = config.current()
    given = part.options.worker.get("drain_timeout")
    await leave_in_time(
        services,
        settings["worker.walltime.duration"],
        settings["worker.walltime.margin"],
        settings.value("worker.drain-timeout", given),
    )


def _say_what_was_found(part: Part) -> None:
    """One line on what the launch looks like, from its first rank."""
    world = part.world
    if world.rank != 0:
        return
    if not world.launcher and part.options.with_scheduler and (n := nodes_of_job()) > 1:
        text = "this job has %d hosts, and only %s is used: start this with mpirun or srun"
        log.warning(text, n, network.hostname())
    started = f"started by {world.launcher}" if world.launcher else "started by hand"
    ranks = f"{world.size} ranks" if world.size > 1 else "1 rank"
    log.info(
        "%s, %d of them on %s, %s, meeting %s: %s; each worker here has %s",
        ranks,
        world.local_size,
        network.hostname(),
        started,
        part.ranks.how,
        part.roles.in_words,
        part.size.why,
    )
