"""``hpc-dask ssh``."""

from __future__ import annotations

from typing import Any

import click

from hpcdask.cli import options
from hpcdask.cli.configured import settled
from hpcdask.errors import ConfigError


@click.command()
@click.argument("hostnames", nargs=-1, metavar="[HOST ...]")
@click.option(
    "--hostfile",
    type=click.Path(),
    help="File with more hosts, one per line; # begins a comment.",
)
@click.option("--scheduler", metavar="HOST", help="Host of the scheduler. Default: the first HOST.")
@click.option(
    "--scheduler-port",
    default="8786",
    show_default=True,
    metavar="N|FIRST:LAST",
    help="Port of the scheduler; 0 for any free one, or a range to try in turn.",
)
@click.option(
    "--nthreads",
    type=click.IntRange(min=0),
    default=0,
    help="Threads per worker. Default: the host's CPUs / its workers.",
)
@click.option(
    "--nworkers",
    default="1",
    show_default=True,
    help="Workers per host; negative: CPUs + 1 + N; 'auto': chosen with the threads.",
)
@click.option("--ssh-username", metavar="NAME", help="Who to log in as. Default: as ssh does.")
@click.option(
    "--ssh-port",
    type=click.IntRange(1, 65535),
    help="Port of the SSH servers. Default: 22, or what ~/.ssh/config says.",
)
@click.option(
    "--ssh-private-key",
    type=click.Path(),
    help="File with the private key. Default: ssh-agent and the usual files in ~/.ssh.",
)
@click.option(
    "--nohost",
    is_flag=True,
    help="Do not have scheduler and workers advertise the address at which SSH has reached their "
    "host; each finds one out by itself.",
)
@click.option(
    "--interface",
    metavar="NAME|LIST|GLOB|SUBNET",
    help="Network interface of scheduler and workers: ib0, 'ib*,hsn0', 10.1.0.0/16.",
)
@click.option(
    "--log-directory",
    type=click.Path(),
    help="Folder on the hosts where each writes its log into a file, instead of showing it here.",
)
@click.option(
    "--local-directory",
    type=click.Path(),
    help="Where workers make their scratch folders, on their hosts.",
)
@click.option(
    "--remote-python",
    metavar="COMMAND",
    help="What starts Python on the hosts, as in a shell. Default: the path of this Python.",
)
@click.option(
    "--memory-limit",
    default="auto",
    show_default=True,
    help="Per worker: bytes, '4 GiB', a fraction of what the host grants, 0 for none, or 'auto'. "
    "Told to the scheduler; nothing enforces it yet.",
)
@click.option(
    "--worker-port",
    default="0",
    show_default=True,
    metavar="N|FIRST:LAST",
    help="Port of the workers; 0 for any free one, or a range to try in turn.",
)
@click.option(
    "--nanny-port",
    type=int,
    default=0,
    help="Only 0: nannies here listen on no port, so there is none to choose or to open.",
)
@click.option(
    "--remote-dask-worker",
    default="hpcdask.Nanny",
    show_default=True,
    metavar="CLASS|MODULE",
    help="What to start as a worker: hpcdask.Nanny, hpcdask.Worker, the path of another class that "
    "takes their parameters, or of a module with a class Nanny or Worker.",
)
@click.option(
    "--scheduler-file",
    type=click.Path(),
    help="File on this host to write the scheduler's address and token to, mode 0600, for clients.",
)
@click.option(
    "--death-timeout",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long a worker tries to reach the scheduler.",
)
@click.option(
    "--silence-timeout",
    default="5 min",
    show_default=True,
    metavar="TIME",
    help="After how long a host that hears nothing from here ends what it runs.",
)
@options.lives_of_workers
@options.dial_back
@options.worker_ttl
@options.allowed_failures
@options.authentication
@options.log_level("info")
@options.print_version("hpc-dask ssh")
def ssh(**given: Any) -> None:
    """Start a cluster on hosts that are reached by SSH, until Ctrl-C or SIGTERM.

    HOST is a name or an address, as in node1, user@node1 or node1:2222. The first one runs the
    scheduler, unless --scheduler names another; each one runs workers, the first one too.
    """
    level = given["log_level"]

    def work() -> None:
        from hpcdask.launchers.process import event_loop
        from hpcdask.launchers.ssh import SSHCluster, serve

        arguments = _arguments({**given, **settled(given)})
        with event_loop() as loop:
            loop.run_until_complete(serve(lambda: SSHCluster(asynchronous=True, **arguments)))

    options.run("hpc-dask ssh", level, work)


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What `SSHCluster` is to be made with."""
    from hpcdask.launchers.ssh_hosts import read_hostfile
    from hpcdask.rendezvous import resolve_token

    hosts = [*given["hostnames"], *(read_hostfile(given["hostfile"]) if given["hostfile"] else ())]
    if not hosts:
        raise ConfigError(
            "no hosts given: name them, as in 'hpc-dask ssh node1 node2', or give --hostfile"
        )
    if given["nanny_port"]:
        raise ConfigError(
            "--nanny-port: a nanny listens on no port here, so there is none to choose; leave it "
            "out, and open --worker-port and --scheduler-port only"
        )
    connect = {
        "username": given["ssh_username"],
        "port": given["ssh_port"],
        "client_keys": given["ssh_private_key"] and [given["ssh_private_key"]],
    }
    worker = {
        "n_workers": given["nworkers"],
        "nthreads": given["nthreads"] or None,
        "port": given["worker_port"],
        **{name: given[name] for name in _FOR_WORKERS if given[name] is not None},
    }
    scheduler = {
        "port": given["scheduler_port"],
        **{name: given[name] for name in _FOR_SCHEDULERS if given[name] is not None},
    }
    return {
        "hosts": [given["scheduler"] or hosts[0], *hosts],
        "connect_options": {name: value for name, value in connect.items() if value},
        "worker_options": worker,
        "scheduler_options": scheduler,
        "worker_class": given["remote_dask_worker"],
        "remote_python": given["remote_python"],
        "silence_logs": given["log_level"],
        # As for a scheduler that is started here: clients of this user, and this host, have it.
        "token": None if given["no_auth"] else resolve_token(None, given["token_file"]),
        "auth": not given["no_auth"],
        "scheduler_file": given["scheduler_file"],
        "log_directory": given["log_directory"],
        "use_ssh_address": not given["nohost"],
        "silence_timeout": given["silence_timeout"],
    }


_FOR_WORKERS = (
    "interface",
    "local_directory",
    "memory_limit",
    "death_timeout",
    "resources",
    "lifetime",
    "lifetime_stagger",
    "lifetime_restart",
    "drain_timeout",
)
_FOR_SCHEDULERS = ("interface", "dial_back", "worker_ttl", "allowed_failures")
