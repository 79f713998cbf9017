"""Every setting: its key, what it may be, its default, and what it stands behind.

The keys are those of dask.distributed where the feature is the same. Whoever adds an option adds a
line here; the documentation's table, ``hpc-dask config`` and the defaults of options follow.
"""

from __future__ import annotations

from hpcdask.config import jobs, kinds
from hpcdask.config.setting import Setting

SCHEMA: tuple[Setting, ...] = (
    # -- Finding and trusting a cluster
    Setting(
        "scheduler-file",
        kinds.PATH,
        None,
        "File in which the scheduler of the cluster to join says where it is.",
        "Client(scheduler_file=)",
        ("worker --scheduler-file",),
    ),
    Setting(
        "scheduler-address",
        kinds.TEXT,
        None,
        "Address of the scheduler to join. If both are set in one place, it is tried first.",
        "Client(address)",
        ("worker SCHEDULER",),
    ),
    Setting(
        "token-file",
        kinds.PATH,
        None,
        "Your own token file, in place of ~/.config/hpcdask/token. From the environment it goes "
        "before the token in a scheduler file, from a file after it.",
        "Scheduler(token_file=), Worker(token_file=), Client(token_file=)",
        (
            "scheduler --token-file",
            "worker --token-file",
            "mpirun --token-file",
            "ssh --token-file",
        ),
        is_preset=False,
    ),
    Setting(
        "log-level",
        kinds.one_of("debug", "info", "warning", "error"),
        None,
        "Lowest level of log lines to show. Default: info, for hpc-dask run warning.",
        "",
        (
            "scheduler --log-level",
            "worker --log-level",
            "mpirun --log-level",
            "ssh --log-level",
        ),
    ),
    # -- The scheduler
    Setting(
        "scheduler.port",
        kinds.PORTS,
        None,
        "Port to listen on, or a range FIRST:LAST to try in turn. Default: any free one, for "
        "hpc-dask scheduler 8786.",
        "Scheduler(port=)",
        (
            "scheduler --port",
            "mpirun --scheduler-port",
            "mpirun --port-range",
            "ssh --scheduler-port",
        ),
    ),
    Setting(
        "scheduler.interface",
        kinds.TEXT,
        None,
        "Network interface to listen on and advertise: a name, list, glob or subnet.",
        "Scheduler(interface=)",
        (
            "scheduler --interface",
            "mpirun --interface",
            "mpirun --scheduler-interface",
            "ssh --interface",
        ),
    ),
    Setting(
        "scheduler.contact-address",
        kinds.TEXT,
        None,
        "Address to advertise, if it is not the one listened on.",
        "Scheduler(contact_address=)",
        ("scheduler --contact-address",),
    ),
    Setting(
        "scheduler.scheduler-file",
        kinds.PATH,
        None,
        "File that a scheduler writes its address and token to.",
        "",
        (
            "scheduler --scheduler-file",
            "mpirun --scheduler-file",
            "ssh --scheduler-file",
        ),
    ),
    Setting(
        "scheduler.idle-timeout",
        kinds.DURATION,
        None,
        "End after so long without tasks.",
        "Scheduler(idle_timeout=)",
        ("scheduler --idle-timeout",),
    ),
    Setting(
        "scheduler.allowed-failures",
        kinds.COUNT,
        3,
        "Workers that may die under a task before it is given up.",
        "Scheduler(allowed_failures=)",
        (
            "scheduler --allowed-failures",
            "mpirun --allowed-failures",
            "ssh --allowed-failures",
        ),
    ),
    Setting(
        "scheduler.worker-ttl",
        kinds.PATIENCE,
        "30s",
        "A worker that is silent for so long is taken for lost; 0 for never.",
        "Scheduler(worker_ttl=)",
        (
            "scheduler --worker-ttl",
            "mpirun --worker-ttl",
            "ssh --worker-ttl",
        ),
    ),
    Setting(
        "scheduler.dial-back",
        kinds.SWITCH,
        True,
        "Whether a worker is let in only if the scheduler can reach it, as others must for data.",
        "Scheduler(dial_back=)",
        ("scheduler --dial-back", "mpirun --dial-back", "ssh --dial-back"),
    ),
    Setting(
        "scheduler.client-grace",
        kinds.DURATION,
        "30s",
        "How long the work of a client is kept that vanished without a word.",
        "Scheduler(client_grace=)",
        ("scheduler --client-grace",),
    ),
    Setting(
        "scheduler.heartbeat",
        kinds.INTERVAL,
        "2s",
        "How often a worker says how it is: at the most, since with more than 200 it is less.",
    ),
    Setting(
        "scheduler.work-stealing",
        kinds.SWITCH,
        True,
        "Whether idle workers get tasks that others have not started.",
    ),
    Setting(
        "scheduler.transition-log-length",
        kinds.COUNT,
        0,
        "Moves of tasks that are remembered for Client.story; each takes the scheduler a "
        "microsecond more.",
    ),
    Setting(
        "scheduler.events-log-length",
        kinds.COUNT,
        10_000,
        "Events of each topic that are kept for `get_events`; see `Client.log_event`.",
    ),
    Setting(
        "scheduler.preload",
        kinds.LIST,
        (),
        "Modules or files to import before connecting.",
        "Scheduler(preload=)",
        ("scheduler --preload",),
    ),
    Setting(
        "scheduler.preload-argv",
        kinds.LIST,
        (),
        "Arguments of their dask_setup, where that is a click command.",
        "Scheduler(preload_argv=)",
    ),
    # -- Workers
    Setting(
        "worker.port",
        kinds.PORTS,
        "0",
        "Port to listen on, 0 for any free one, or a range FIRST:LAST to try in turn.",
        "Worker(port=)",
        (
            "worker --worker-port",
            "mpirun --port-range",
            "ssh --worker-port",
            "doctor --port-range",
        ),
    ),
    Setting(
        "worker.interface",
        kinds.TEXT,
        None,
        "Network interface to listen on and advertise: a name, list, glob or subnet.",
        "Worker(interface=)",
        (
            "worker --interface",
            "mpirun --interface",
            "ssh --interface",
            "doctor --interface",
        ),
    ),
    Setting(
        "worker.nthreads",
        kinds.COUNT,
        None,
        "Threads per worker. Default: its share of the CPUs.",
        "Worker(nthreads=)",
        (
            "worker --nthreads",
            "mpirun --nthreads",
            "ssh --nthreads",
        ),
    ),
    Setting(
        "worker.nworkers",
        kinds.WORKERS,
        "1",
        "Worker processes of one hpc-dask worker.",
        "",
        (
            "worker --nworkers",
            "ssh --nworkers",
        ),
    ),
    Setting(
        "worker.nanny",
        kinds.SWITCH,
        True,
        "Whether workers run in processes that are watched and replaced when they die.",
        "",
        (
            "worker --nanny",
            "mpirun --nanny",
        ),
    ),
    Setting(
        "worker.memory-limit",
        kinds.MEMORY,
        "auto",
        "Memory per worker.",
        "Worker(memory_limit=)",
        (
            "worker --memory-limit",
            "mpirun --memory-limit",
            "ssh --memory-limit",
        ),
    ),
    Setting(
        "worker.local-directory",
        kinds.PATH,
        None,
        "Where workers make their scratch folders. Default: the job's folder on its own host.",
        "Worker(local_directory=)",
        (
            "worker --local-directory",
            "mpirun --local-directory",
            "doctor --local-directory",
        ),
    ),
    Setting(
        "worker.resources",
        kinds.AMOUNTS,
        {},
        "What tasks may ask for besides threads and memory.",
        "Worker(resources=)",
        (
            "worker --resources",
            "mpirun --resources",
            "ssh --resources",
        ),
    ),
    Setting(
        "worker.death-timeout",
        kinds.DURATION,
        "60s",
        "How long to look for the scheduler at the start.",
        "Worker(death_timeout=)",
        (
            "worker --death-timeout",
            "mpirun --death-timeout",
            "ssh --death-timeout",
        ),
    ),
    Setting(
        "worker.reconnect-timeout",
        kinds.PATIENCE,
        "60s",
        "How long to look for a lost scheduler; 0 to end at once, as always under mpirun.",
        "Worker(reconnect_timeout=)",
        ("worker --reconnect-timeout",),
    ),
    Setting(
        "worker.drain-timeout",
        kinds.DURATION,
        "30s",
        "How long a worker that is to end may take to hand over what only it holds.",
        "Worker(drain_timeout=)",
        (
            "worker --drain-timeout",
            "mpirun --drain-timeout",
            "ssh --drain-timeout",
        ),
    ),
    Setting(
        "worker.lifetime.duration",
        kinds.DURATION,
        None,
        "How long a worker runs before it leaves. Default: for ever.",
        "Worker(lifetime=)",
        (
            "worker --lifetime",
            "mpirun --lifetime",
            "ssh --lifetime",
        ),
    ),
    Setting(
        "worker.lifetime.stagger",
        kinds.DURATION,
        "0s",
        "By how much longer or shorter that may be, at random.",
        "Worker(lifetime_stagger=)",
        (
            "worker --lifetime-stagger",
            "mpirun --lifetime-stagger",
            "ssh --lifetime-stagger",
        ),
    ),
    Setting(
        "worker.lifetime.restart",
        kinds.SWITCH,
        False,
        "Whether the nanny then starts another.",
        "Nanny(lifetime_restart=)",
        (
            "worker --lifetime-restart",
            "mpirun --lifetime-restart",
            "ssh --lifetime-restart",
        ),
    ),
    Setting(
        "worker.walltime.duration",
        kinds.WALLTIME,
        None,
        "How long the batch job that a worker is part of may run, if that is less than what the "
        "batch system tells.",
        "",
        ("worker --walltime",),
    ),
    Setting(
        "worker.walltime.margin",
        kinds.DURATION,
        None,
        "How long before the end of its batch job a worker leaves, at the latest; 0 to stay. "
        "Default: what draining may take, or 5 % of the walltime up to 2 min, if that is more.",
        "",
        ("worker --walltime-margin",),
    ),
    Setting(
        "worker.connections.outgoing",
        kinds.POSITIVE,
        16,
        "Other workers that a worker fetches data from at a time.",
    ),
    Setting(
        "worker.transfer.message-bytes-limit",
        kinds.SIZE,
        "64 MiB",
        "Most data that it asks another for at a time; a single value may be larger.",
    ),
    Setting(
        "worker.profile.enabled",
        kinds.SWITCH,
        True,
        "Whether the stacks of running tasks are looked at now and then, for Client.profile.",
    ),
    Setting(
        "worker.profile.interval",
        kinds.INTERVAL,
        "20ms",
        "How often, at the most: looking never takes more than a hundredth of the time.",
    ),
    Setting(
        "worker.preload",
        kinds.LIST,
        (),
        "Modules or files to import before connecting.",
        "Worker(preload=)",
        ("worker --preload", "mpirun --preload"),
    ),
    Setting(
        "worker.preload-argv",
        kinds.LIST,
        (),
        "Arguments of their dask_setup, where that is a click command.",
        "Worker(preload_argv=)",
    ),
    # -- Nannies
    Setting(
        "nanny.environ",
        kinds.VARIABLES,
        {},
        "Environment variables of workers; those that are set already stay as they are.",
        "Nanny(env=)",
    ),
    Setting(
        "nanny.preload",
        kinds.LIST,
        (),
        "As worker.preload, in the nanny's process.",
        "Nanny(preload_nanny=)",
        ("worker --preload-nanny",),
    ),
    Setting(
        "nanny.preload-argv",
        kinds.LIST,
        (),
        "Arguments of their dask_setup, where that is a click command.",
        "Nanny(preload_nanny_argv=)",
    ),
    # -- Clients
    Setting(
        "client.reconnect-timeout",
        kinds.PATIENCE,
        "60s",
        "How long to look for a lost scheduler; 0 to cancel all futures at once.",
        "Client(reconnect_timeout=)",
    ),
    Setting(
        "client.direct-to-workers",
        kinds.SWITCH,
        None,
        "Whether data goes directly between client and workers. Default: where it can.",
        "Client(direct_to_workers=)",
    ),
    Setting(
        "client.preload",
        kinds.LIST,
        (),
        "Modules or files that each client imports once it is connected, with "
        "`dask_setup(client)` and `dask_teardown(client)`.",
    ),
    Setting(
        "client.preload-argv",
        kinds.LIST,
        (),
        "Arguments of their dask_setup, where that is a click command.",
    ),
    # -- Connections
    Setting(
        "comm.compression",
        kinds.COMPRESSION,
        "auto",
        "Of large buffers between hosts: auto is the best that is installed.",
        variables=("HPCDASK_COMM_COMPRESSION",),
    ),
    Setting(
        "comm.max-messages",
        kinds.SIZE,
        "512 MiB",
        "Most bytes of messages in one frame.",
        variables=("HPCDASK_COMM_MAX_MESSAGES",),
    ),
    Setting(
        "comm.max-buffers",
        kinds.SIZE,
        "64 GiB",
        "Most bytes of large buffers in one frame.",
        variables=("HPCDASK_COMM_MAX_BUFFERS",),
    ),
    Setting(
        "comm.timeouts.connect",
        kinds.DURATION,
        "30s",
        "How long a client tries to reach the scheduler.",
        "Client(timeout=)",
    ),
    Setting(
        "comm.timeouts.handshake",
        kinds.INTERVAL,
        "5s",
        "How long a stranger may take to prove who it is.",
        variables=("HPCDASK_COMM_HANDSHAKE_TIMEOUT",),
    ),
    Setting(
        "comm.timeouts.stall",
        kinds.INTERVAL,
        "15s",
        "A worker that owes data and sends nothing for so long is passed over.",
    ),
    Setting(
        "comm.timeouts.tcp",
        kinds.INTERVAL,
        "30s",
        "A host that confirms nothing for so long is taken for lost.",
    ),
    # -- Batch jobs
    *jobs.settings(),
    # -- Launchers
    Setting(
        "mpi.use-mpi",
        kinds.SWITCH,
        None,
        "Whether ranks agree by MPI or through files. Default: by MPI, where its mpirun has "
        "started them and mpi4py is installed.",
        "",
        ("mpirun --mpi",),
    ),
    Setting(
        "mpi.exclusive-workers",
        kinds.SWITCH,
        None,
        "Whether the scheduler's rank has no worker. Default: so, if other ranks are left.",
        "",
        ("mpirun --exclusive-workers",),
    ),
    Setting(
        "mpi.shutdown-timeout",
        kinds.INTERVAL,
        "10s",
        "How long the end of all ranks may take; what is left then is ended by force.",
        "",
        ("mpirun --shutdown-timeout",),
    ),
    Setting(
        "ssh.remote-python",
        kinds.TEXT,
        None,
        "What starts Python on other hosts, as in a shell. Default: the path of this Python.",
        "",
        ("ssh --remote-python",),
    ),
    Setting(
        "ssh.silence-timeout",
        kinds.DURATION,
        "5 min",
        "After how long a host that hears nothing from the launcher ends what it runs.",
        "",
        ("ssh --silence-timeout",),
    ),
    # -- Logs
    Setting(
        "admin.log-length",
        kinds.COUNT,
        1000,
        "Last lines of its log that each process keeps, for get_logs.",
    ),
    Setting(
        "admin.log-format",
        kinds.LOG_FORMAT,
        "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
        "What a line of the log has in it, as for Python's logging.",
    ),
    Setting(
        "admin.full-tracebacks",
        kinds.SWITCH,
        False,
        "Show in the tracebacks of tasks the lines of hpcdask, dask, asyncio and the like, too.",
    ),
)

BY_KEY = {setting.key: setting for setting in SCHEMA}

#: Sections of the hierarchy: what a key may begin with.
SECTIONS = {key.rsplit(".", n)[0] for key in BY_KEY for n in range(1, key.count(".") + 1)}

#: Other keys for the same, as dask and distributed have them.
ALIASES = {
    "temporary-directory": "worker.local-directory",
    "nanny.pre-spawn-environ": "nanny.environ",
    **jobs.aliases(),
}


def find(key: str) -> Setting | None:
    """The setting of a key, also by another name or in a section of batch jobs of a user's own."""
    return BY_KEY.get(ALIASES.get(key, key)) or jobs.own_setting(key)


#: Variables that are no settings: they say where these are, or must not lie in a file.
VARIABLES = {
    "HPCDASK_CONFIG": "Your file, or folder of files, in place of those in ~/.config/hpcdask. "
    "Empty: none.",
    "HPCDASK_SITE_CONFIG": "The site's, in place of those in /etc/hpcdask and PREFIX/etc/hpcdask. "
    "Empty: none.",
    "HPCDASK_TOKEN": "The cluster token itself, as 64 hex digits.",
    "HPCDASK_RANK": "A rank's number, from a launcher that hpcdask does not know.",
    "HPCDASK_SIZE": "The number of its ranks.",
    "HPCDASK_SCRIPT": "Set for the script of `hpc-dask run`, which has a cluster then.",
    "HPCDASK_LAUNCH_ID": "The same word for all ranks of a launch that has none by itself.",
}

#: Settings of which the one from a stronger place silences the other: who names an address in the
#: environment does not want the scheduler file of a file.
RIVALS = (("scheduler-file", "scheduler-address"),)
