"""Options that several commands share, and how errors become exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hpcdask import config, logs
from hpcdask.errors import ConfigError, HpcdaskError

#: Seconds that threads get at the end of a process.
_ENDING = 0.5
log = logging.getLogger("hpcdask.config")

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

lives_of_workers = together(
    click.option(
        "--resources",
        default="",
        metavar="NAME=NUMBER ...",
        help="What tasks may ask for besides, as in 'GPU=1 MEM=2e9'.",
    ),
    click.option(
        "--lifetime",
        metavar="TIME",
        help="How long a worker runs before it hands over what only it holds, and ends: 30min, 1h. "
        "Default: for ever, or until its batch job ends.",
    ),
    click.option(
        "--lifetime-stagger",
        default="0s",
        show_default=True,
        metavar="TIME",
        help="By how much longer or shorter that may be, at random.",
    ),
    click.option(
        "--lifetime-restart/--no-lifetime-restart",
        default=False,
        show_default=True,
        help="Start another worker after each lifetime.",
    ),
    click.option(
        "--drain-timeout",
        default="30s",
        show_default=True,
        metavar="TIME",
        help="How long a worker that is to end may take to hand over what only it holds.",
    ),
)

allowed_failures = click.option(
    "--allowed-failures",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Workers that may die under a task before it is given up.",
)

client_grace = click.option(
    "--client-grace",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long the work of a client is kept that vanished without a word, and may come back.",
)

dial_back = click.option(
    "--dial-back/--no-dial-back",
    default=True,
    show_default=True,
    help="Let a worker in only if the scheduler can reach it, as others must for data.",
)

worker_ttl = click.option(
    "--worker-ttl",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="A worker that is silent for so long is taken for lost; 0 for never.",
)

dashboard = together(
    click.option(
        "--dashboard/--no-dashboard",
        default=None,
        help="This version has no dashboard; accepted where a script says that it wants none.",
    ),
    click.option("--dashboard-address", metavar="ADDRESS", help="As --dashboard."),
)


def refuse_dashboard(given: dict[str, Any]) -> None:
    """Raise if somebody wants a dashboard."""
    if given["dashboard"] or (given["dashboard_address"] and given["dashboard"] is not False):
        raise ConfigError("this version has no dashboard; leave --dashboard... out")


preload = together(
    click.option(
        "--preload",
        multiple=True,
        metavar="MODULE|FILE|URL",
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


def run(
    command: str, level: str, work: Callable[[], int | None], needs_config: bool = True
) -> None:
    """Run a command's work and exit.

    The code is 0 if it ended as asked, or what `work` returns; with one clear line it is 2 if an
    option has a value that it cannot have, and 1 if anything else went wrong. That the
    configuration is in error is said at once, unless the command does not need it.
    """
    try:
        logs.configure(level)
        _tell_of_foreign_keys()
    except ConfigError as exc:
        if needs_config and is_spokesman():
            click.echo(f"{command}: {exc}", err=True)
            _exit(2)
        elif needs_config:
            _exit(0)
        logs.configure(level, config.DEFAULTS)
    try:
        code = work() or 0
    except BrokenPipeError:  # who reads what we print, as head or a pager, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except (HpcdaskError, OSError) as exc:
        click.echo(f"{command}: {with_source(str(exc))}", err=True)
        code = 2 if isinstance(exc, ConfigError) else 1
    except KeyboardInterrupt:
        code = 130
    _exit(code)


def is_spokesman() -> bool:
    """Whether this process tells what is wrong with a command line, or a file, of all ranks."""
    from hpcdask.world import launched_world

    try:
        return launched_world().rank == 0
    except ConfigError:  # variables that contradict each other
        return True


def with_source(complaint: str) -> str:
    """A complaint, and where the value that it is about comes from, if nobody has typed it."""
    try:
        rows = config.current().rows()
    except ConfigError:  # which says that itself
        return complaint
    named = [row for row in rows if row.source != "default" and repr(row.text) in complaint]
    sources = [f" ({row.key} is from {row.source})" for row in named]
    return complaint + "".join(source for source in sources if source not in complaint)


def _tell_of_foreign_keys() -> None:
    """Say what of a distributed.yaml does nothing here."""
    foreign = config.current().foreign()
    if foreign:
        log.info(
            "%d keys of distributed mean nothing to hpcdask, as %s; 'hpc-dask config' lists them",
            len(foreign),
            next(iter(foreign)),
        )


def _exit(code: int) -> None:
    """Exit, without waiting for threads that may be in a task or a call that never returns."""
    deadline = time.monotonic() + _ENDING
    others = {t for t in threading.enumerate() if not t.daemon} - {threading.main_thread()}
    for thread in others:  # most of them are idle, and just ending
        thread.join(max(deadline - time.monotonic(), 0.0))
    if not any(thread.is_alive() for thread in others):
        sys.exit(code)
    from hpcdask.launchers.process import leave_now

    leave_now(code)


def import_from_here() -> None:
    """Let --preload and tasks import modules of the current folder, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def print_version(name: str) -> Callable[[F], F]:
    """The --version option."""
    from hpcdask._version import __version__

    return click.version_option(__version__, message=f"{name} %(version)s")
