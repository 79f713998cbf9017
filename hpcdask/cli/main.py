"""``hpc-dask``: the group of all commands, and the cluster under mpirun when none is named."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any, NoReturn

import click

from hpcdask.cli import options

#: Commands whose file is not called as they are.
_FILES = {"run": "mpi"}
_NAMES = [
    *("attach", "clean", "config", "doctor", "jobscript", "mpi", "ps", "run", "scheduler", "ssh"),
    *("submit", "worker"),
]
#: Commands that all ranks of an mpirun or srun are given alike.
_OF_RANKS = ("mpi", "run", "doctor")


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name, each imported when it is asked for.

    Of a thousand workers that start at once on a shared file system, none needs the others.
    """

    def __init__(self) -> None:
        self._found: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._found:
            if name not in _NAMES:
                raise KeyError(name)
            from hpcdask.cli.configured import configure

            module = importlib.import_module(f"hpcdask.cli.{_FILES.get(name, name)}")
            self._found[name] = getattr(module, name)
            configure(self._found[name])
        return self._found[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*_NAMES, *self._found]))

    def __contains__(self, name: object) -> bool:
        return name in _NAMES or name in self._found

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Group(click.Group):
    """Where no command is named, `mpi` is meant, and its options stand right behind hpc-dask."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in the command that is meant, and read the rest."""
        first = args[0] if args else ""
        for_all = first in self.commands or first in ("-h", "--help", "--version")
        is_address = ":" in first or "--no-scheduler" in args
        if first.endswith(".py") or (not for_all and os.path.isfile(first)):
            args = ["run", *args]
        elif not for_all and (not first or first.startswith("-") or is_address):
            args = ["mpi", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command."""
        _run(super().main, *args, **kwargs)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show both forms."""
        formatter.write_usage(ctx.command_path, "[OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS] [ARGS]...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of `mpi` as our own."""
        self.commands["mpi"].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def _run(command: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
    """Run a command; of the ranks of an mpirun one says what is wrong with its options."""
    try:
        code = command(*args, **{**kwargs, "standalone_mode": False})
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)
        is_of_ranks = context is not None and context.command.name in _OF_RANKS
        if not is_of_ranks or options.is_spokesman():
            exc.show()
            sys.exit(exc.exit_code)
        code = 0
    except click.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@options.print_version("hpc-dask")
def main() -> None:
    """Start a task cluster.

    Without a command, under 'mpirun -np N hpc-dask' or 'srun -n N hpc-dask': rank 0 runs the
    scheduler, every other rank a worker, until 'Client(scheduler_file=...).shutdown()', SIGTERM or
    Ctrl-C.

    Defaults of options that have a key can be configured, in files and in the environment:
    'hpc-dask config' shows what is.
    """


main.commands = _Commands()


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Let a command be installed under a name of its own, as hpc-dask-worker is."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_run, main.commands[name].main)
