"""``hpc-dask``: the group of all commands, and the cluster under mpirun when none is named."""

from __future__ import annotations

from typing import Any

import click

from hpcdask.cli import mpi, options
from hpcdask.cli.scheduler import scheduler
from hpcdask.cli.worker import worker


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@mpi.mpi_options
@options.log_level("info")
@options.print_version("hpc-dask")
@click.pass_context
def main(context: click.Context, /, **given: Any) -> None:
    """Start a task cluster.

    Without a command, under 'mpirun -np N hpc-dask': rank 0 runs the scheduler, every other rank
    a worker, until 'Client(scheduler_file=...).shutdown()', SIGTERM or Ctrl-C.
    """
    if context.invoked_subcommand is None:
        mpi.start(None, given)
    misplaced = [
        name
        for name in given
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if misplaced:
        option = f"--{misplaced[0].replace('_', '-')}"
        raise click.UsageError(f"put {option} behind {context.invoked_subcommand!r}")


main.add_command(mpi.run)
main.add_command(scheduler)
main.add_command(worker)
