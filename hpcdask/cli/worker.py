"""``hpc-dask worker``."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import click

from hpcdask.cli import options
from hpcdask.cli.configured import settled
from hpcdask.errors import ConfigError


@click.command()
@click.argument("scheduler", required=False)
@click.option(
    "--worker-port",
    "port",
    default="0",
    show_default=True,
    metavar="N|FIRST:LAST",
    help="Port to listen on; 0 for any free one, or a range to try in turn.",
)
@click.option("--listen-address", help="Address to listen on, as in tcp://0.0.0.0:9000.")
@click.option("--contact-address", help="Address to advertise instead of --listen-address.")
@click.option("--host", help="Address or name to listen on and advertise.")
@click.option(
    "--interface",
    metavar="NAME|LIST|GLOB|SUBNET",
    help="Network interface to listen on and advertise: ib0, 'ib*,hsn0', 10.1.0.0/16.",
)
@click.option(
    "--protocol", type=click.Choice(["tcp"]), default="tcp", show_default=True, help="Transport."
)
@click.option(
    "--nthreads",
    type=click.IntRange(min=0),
    default=0,
    help="Threads per worker. Default: CPUs / workers.",
)
@click.option(
    "--nworkers",
    default="1",
    show_default=True,
    help="Worker processes; negative: CPUs + 1 + N; 'auto': chosen with the threads.",
)
@click.option("--name", help="Name; with several workers -0, -1, ... is appended.")
@click.option(
    "--memory-limit",
    default="auto",
    show_default=True,
    help="Per worker: bytes, '4 GiB', a fraction of what the host grants, 0 for none, or 'auto'. "
    "Told to the scheduler; nothing enforces it yet.",
)
@click.option(
    "--nanny/--no-nanny",
    default=True,
    show_default=True,
    help="Run the worker in a process that is watched and replaced when it dies.",
)
@click.option("--local-directory", type=click.Path(), help="Where to make the scratch folder.")
@click.option(
    "--scheduler-file",
    type=click.Path(),
    help="File in which the scheduler says where it is; waited for.",
)
@click.option(
    "--death-timeout",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to wait for the scheduler.",
)
@click.option(
    "--reconnect-timeout",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to look for the scheduler when it is lost; 0 to end at once.",
)
@options.lives_of_workers
@click.option(
    "--walltime",
    metavar="H:MM:SS|TIME",
    help="How long the batch job may run, from its start, if the batch system does not tell or "
    "grants more. Workers hand over what only they hold, and end, before it is over.",
)
@click.option(
    "--walltime-margin",
    metavar="TIME",
    help="How long before that, at the latest; 0 to stay until the end. Default: as long as "
    "--drain-timeout, or 5 % of the walltime, up to 2 min, if that is more.",
)
@click.option("--pid-file", type=click.Path(), help="File to keep our process id in.")
@click.option(
    "--preload-nanny",
    multiple=True,
    metavar="MODULE|FILE|URL",
    help="As --preload, in the nanny's process.",
)
@options.authentication
@options.log_level("info")
@options.preload
@options.print_version("hpc-dask worker")
def worker(pid_file: str | None, log_level: str, **given: Any) -> None:
    """Start one or more workers and register them with the scheduler at SCHEDULER.

    SCHEDULER is host, host:port or tcp://host:port; or give --scheduler-file, or both: the file is
    read when nobody answers at the address. Ends with code 0 when the scheduler says so, at the end
    of --lifetime, before the walltime of its batch job is over, and on signals: after SIGTERM,
    SIGUSR1 or SIGUSR2, with which batch systems warn, workers first hand over what only they hold;
    SIGINT, or outside of batch jobs a second SIGTERM, ends them at once.
    """

    def work() -> None:
        from hpcdask.launchers import process

        options.import_from_here()
        given.update(settled(given), preload_argv=given["preload_argv"] or None)
        _refuse_contradictions(given)
        before_the_end = _departure(given)
        services = _services(log_level, **given)
        with process.pid_file(pid_file), process.event_loop() as loop:
            loop.run_until_complete(
                process.serve(
                    services,
                    leaves=True,
                    for_good=True,
                    beside=lambda: before_the_end(services),
                )
            )

    options.run("hpc-dask worker", log_level, work)


def _refuse_contradictions(given: dict[str, Any]) -> None:
    several = given["nworkers"] != "1"
    if not given["nanny"] and several:
        raise ConfigError("--no-nanny runs one worker in this process; drop --nworkers")
    if not given["nanny"] and given["preload_nanny"]:
        raise ConfigError("--preload-nanny needs a nanny; drop --no-nanny")
    if not given["nanny"] and given["lifetime_restart"]:
        raise ConfigError("--lifetime-restart needs a nanny; drop --no-nanny")
    if given["contact_address"] and not given["listen_address"]:
        raise ConfigError("--contact-address needs --listen-address, for which it stands")
    if given["listen_address"]:
        if several:
            raise ConfigError("--listen-address is one address; it cannot serve --nworkers")
        if given["port"] != "0" or given["host"]:
            raise ConfigError("give either --listen-address or --worker-port and --host")
    if given["interface"] and given["host"]:
        raise ConfigError("give either --interface or --host")
    if not given["scheduler"] and not given["scheduler_file"]:
        raise ConfigError(
            "no scheduler given: add its address, as in tcp://host:8786, or --scheduler-file"
        )


def _departure(given: dict[str, Any]) -> Callable[[list[Any]], Coroutine[Any, Any, None]]:
    """Take the options about the end of the job; return what lets workers leave before it."""
    from hpcdask import config

    settings = config.current()
    walltime = settings.value("worker.walltime.duration", given.pop("walltime"))
    margin = settings.value("worker.walltime.margin", given.pop("walltime_margin"))
    patience = settings.value("worker.drain-timeout", given["drain_timeout"])

    async def before_the_end(services: list[Any]) -> None:
        from hpcdask.launchers.departure import leave_in_time  # not before the workers are up

        await leave_in_time(services, walltime, margin, patience)

    return before_the_end


def _try_out(given: dict[str, Any]) -> None:
    """Raise here what would else be raised in a worker process, a second later."""
    from hpcdask import host as hosts
    from hpcdask import network
    from hpcdask.comm.addresses import parse_address

    for option in ("scheduler", "listen_address", "contact_address"):
        if given[option]:
            parse_address(given[option])
    if given["interface"]:
        network.interface_address(given["interface"])
    if given["local_directory"]:
        hosts.local_directory(given["local_directory"])
    hosts.parse_timedelta(given["death_timeout"])


def _services(
    log_level: str,
    *,
    nworkers: str,
    nthreads: int,
    name: str | None,
    memory_limit: str,
    nanny: bool,
    no_auth: bool,
    resources: str,
    preload_nanny: tuple[str, ...],
    **given: Any,
) -> list[Any]:
    from hpcdask import network, sizing
    from hpcdask.comm.addresses import parse_ports
    from hpcdask.launchers.shape import shape_of_host
    from hpcdask.nanny import Nanny
    from hpcdask.resources import parse_resources
    from hpcdask.worker import Worker

    _try_out(given)
    n, _ = shape_of_host(nworkers, nthreads)
    ports = parse_ports(given["port"])
    if ports != [0] and len(ports) < n:
        raise ConfigError(f"{n} workers need {n} ports; {given['port']} has {len(ports)}")
    common = {
        **given,
        "nthreads": nthreads or None,  # as asked; else each takes its part, and says of what
        "memory_limit": memory_limit,
        "sharing": sizing.Sharing.here(n),
        "resources": parse_resources(resources),
        "auth": not no_auth,
    }
    services: list[Any] = []
    for i in range(n):
        own_name = f"{name}-{i}" if name is not None and n > 1 else name
        if nanny:
            own_name = own_name or f"{network.hostname()}-{os.getpid()}-{i}"
            services.append(
                Nanny(name=own_name, preload_nanny=preload_nanny, log_level=log_level, **common)
            )
        else:
            _set_library_threads(nthreads, common["sharing"])
            services.append(Worker(name=own_name, **common))
    return services


def _set_library_threads(nthreads: int | None, sharing: Any) -> None:
    """Do for this process, which is all the worker's, what a nanny does for a worker."""
    from hpcdask import host as hosts
    from hpcdask import sizing

    size = sizing.size_worker(nthreads, 0, sharing)
    os.environ.update(hosts.thread_environment(size.nthreads, os.environ))
