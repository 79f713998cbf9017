"""Options that several commands share, and how errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hpcdask import logs
from hpcdask.errors import HpcdaskError

F = TypeVar("F", bound=Callable[..., Any])


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Make one decorator of several options, which appear in this order in the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


authentication = together(
    click.option(
        "--token-file",
        type=click.Path(),
        help="File with the cluster token, mode 0600. Default: HPCDASK_TOKEN_FILE, HPCDASK_TOKEN, "
        "the scheduler file's token, or your own in ~/.config/hpcdask/token, made when first used.",
    ),
    click.option(
        "--no-auth",
        is_flag=True,
        help="Let anybody in who reaches the port: they can run code as you. Needed on both sides.",
    ),
)

preload = together(
    click.option(
        "--preload",
        multiple=True,
        metavar="MODULE|FILE",
        help="Import before connecting; dask_setup(service) and dask_teardown(service) in it are "
        "called. May be repeated.",
    ),
    click.argument("preload_argv", nargs=-1, type=click.UNPROCESSED),
)


def log_level(default: str) -> Callable[[F], F]:
    """The --log-level option."""
    return click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default=default,
        show_default=True,
        help="Lowest level of log lines to show.",
    )


def run(command: str, level: str, work: Callable[[], int | None]) -> None:
    """Run a command's work and exit: 0 if it ended as asked, 1 with one clear line if not."""
    logs.configure(level)
    try:
        code = work()
    except (HpcdaskError, OSError) as exc:
        click.echo(f"{command}: {exc}", err=True)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code or 0)


def print_version(name: str) -> Callable[[F], F]:
    """The --version option."""
    from hpcdask._version import __version__

    return click.version_option(__version__, message=f"{name} %(version)s")
