"""``hpc-dask --dry-run``: what each rank would be, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hpcdask import config, network
from hpcdask import host as hosts
from hpcdask.errors import InterfaceNotFoundError

if TYPE_CHECKING:
    from hpcdask.launchers.part import Part

_TITLES = ("RANK", "HOST", "ROLE", "ADDRESS", "INTERFACE", "CPUS", "MEMORY", "SCRATCH")


def show(part: Part) -> int:
    """Print the table on rank 0; return 1 there if a rank could not do its part, else 0."""
    rows = part.ranks.gather(_row(part))
    if rows is None:
        return 0
    world = part.world
    found = f"started by {world.launcher}" if world.launcher else "no launcher"
    click.echo(f"{found}; the ranks meet {part.ranks.how}; {part.roles.in_words}")
    click.echo(table([_TITLES, *(row["cells"] for row in rows)]))
    problems = [f"rank {rank}: {row['problem']}" for rank, row in enumerate(rows) if row["problem"]]
    for problem in problems:
        click.echo(problem, err=True)
    return 1 if problems else 0


def _row(part: Part) -> dict[str, Any]:
    """What this rank knows of itself."""
    rank, size = part.world.rank, part.size
    options = part.options.scheduler if part.is_scheduler else part.options.worker
    key = "scheduler.interface" if part.is_scheduler else "worker.interface"
    spec = options.get("interface") or config.current()[key]
    address = interface = problem = scratch = ""
    try:
        address = network.interface_address(spec) if spec else network.default_address()
        interface = network.name_of(address)
    except InterfaceNotFoundError as exc:
        problem = str(exc)
    n = part.roles.workers_of(rank)
    if n:
        scratch = hosts.find_scratch(part.options.worker.get("local_directory")).base
    times = f"{n} x " if n > 1 else ""
    memory = hosts.format_bytes(size.memory_limit) if size.memory_limit else "no limit"
    cells = [
        str(rank),
        network.hostname(),
        part.roles.of(rank),
        address or "-",
        interface or "-",
        f"{times}{size.nthreads}" if n else "-",
        f"{times}{memory}" if n else "-",
        scratch or "-",
    ]
    return {"cells": cells, "problem": problem}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(map(str.rstrip, lines))
