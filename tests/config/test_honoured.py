"""Every setting changes what it stands behind: no key is read and then forgotten."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from waiting import on_a_loop

from hpcdask import Client, Nanny, Scheduler, Worker, config, execution, logs
from hpcdask.cli.configured import behind, settled
from hpcdask.cli.jobscript import _this_environment, system_and_job
from hpcdask.cli.main import main
from hpcdask.cli.worker import _departure
from hpcdask.client.first_things import set_up_preloads
from hpcdask.client.place import find_place
from hpcdask.comm.options import CommOptions
from hpcdask.comm.tcp import TCPComm
from hpcdask.config import jobs
from hpcdask.config.schema import BY_KEY, SCHEMA
from hpcdask.config.setting import Setting
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError
from hpcdask.jobqueue import (
    HTCondorJob,
    Job,
    JobQueueCluster,
    LSFJob,
    MoabJob,
    OARJob,
    PBSJob,
    SGEJob,
    SLURMJob,
)
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.tracebacks import shown

NOBODY = "tcp://127.0.0.1:1"
TOKEN = "5a" * 32


def client(**given: Any) -> Client:
    """A client before it has connected."""
    made = Client.__new__(Client)
    made._prepare(given.pop("address", None), **given)
    return made


def preloaded(names: list[str] | None = None) -> Client:
    """A client that has imported its preloads."""
    with config.set({"client.preload": names} if names else {}):
        made = client()
    asyncio.run(set_up_preloads(made))
    return made


def place() -> SchedulerPlace:
    return asyncio.run(find_place(client()))


def options() -> CommOptions:
    return SchedulerPlace(NOBODY, token=TOKEN).options()


def preloads(service: Any) -> tuple[list[str], list[str]]:
    if service._preloads is None:  # a client's, who usually has none
        return [], []
    return service._preloads._names, service._preloads._argv


def of_command(name: str, option: str) -> Any:
    """What a command finds in an option that is not on its command line."""
    return started(main.commands[name]).params[option]


def log_format() -> str:
    logs.configure()
    formatter = logging.getLogger("hpcdask").handlers[0].formatter
    assert formatter is not None
    return formatter.format(logging.makeLogRecord({"msg": "hello"}))


def log_length() -> int | None:
    logs.configure()
    return logs._recent.maxlen


#: What to set of a job, the field of its JobSpec, and what is then there, where ``hpc-dask
#: jobscript`` has an option for it.
OF_SCRIPTS = {
    "queue": ("long", "queue", "long"),
    "account": ("abc", "account", "abc"),
    "walltime": ("01:30:00", "walltime", 5400),
    "memory": ("1 GiB", "memory", 2**30),
    "tasks-per-node": (3, "tasks_per_node", 3),
    "cpus-per-task": (3, "cpus_per_task", 3),
    "launch": ("native", "launch", "native"),
    "job-name": ("mine", "name", "mine"),
    "output": ("x.log", "output", "x.log"),
    "interface": ("ib0", "interface", "ib0"),
    "venv": ("/v", "environment", ("source /v/bin/activate",)),
    "job-script-prologue": (["ml x"], "environment", ("ml x", *_this_environment())),
    "job-extra-directives": (["--x"], "directives", ("--x",)),
    "job-directives-skip": (["--mem"], "skip", ("--mem",)),
    "parallel-environment": ("threads", "parallel_environment", "threads"),
}


def says(words: str) -> Callable[[Job], bool]:
    """Whether the script of a job has these words in it."""
    return lambda job: words in job.job_script()


#: The same for `Job` classes: what to set, what to look at, and what has to be seen there.
OF_CLASSES: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
    "queue": ("long", lambda job: job.spec().queue, "long"),
    "account": ("abc", lambda job: job.spec().account, "abc"),
    "walltime": ("01:30:00", lambda job: job.walltime, 5400),
    "cores": (9, lambda job: (job.cores, job.processes), (9, 3)),
    "memory": ("1 GiB", lambda job: job.memory, 2**30),
    "nodes-per-job": (3, lambda job: job.nodes_per_job, 3),
    "job-cpu": (3, lambda job: job.spec().cpus, 3),
    "job-mem": ("5G", says("--mem=5G\n"), True),
    "ncpus": (3, lambda job: job.spec().cpus, 3),
    "mem": ("1 GiB", lambda job: job.spec().memory, 2**30),
    "lsf-units": ("gb", says("#BSUB -M 8\n"), True),
    "use-stdin": (False, lambda job: job.submit_command, "bsub"),
    "disk": ("1 GiB", lambda job: job.spec().disk, 2**30),
    "memory-per-core-property-name": ("memcore", says("memcore>=2048"), True),
    "resource-spec": ("x=1", says(" -l x=1\n"), True),
    "parallel-environment": ("threads", says(" -pe threads 4\n"), True),
    "job-name": ("mine", lambda job: (job.job_name, job.spec().name), ("mine", "mine")),
    "log-directory": ("/logs", lambda job: job.log_directory, "/logs"),
    "job-extra-directives": (["--x"], says(" --x\n"), True),
    "job-directives-skip": (["--mem"], lambda job: job.spec().skip, ("--mem",)),
    "submit-command-extra": (["-z"], lambda job: " -z" in job.submit_command, True),
    "cancel-command-extra": (["-z"], lambda job: job.cancel_command[-3:], " -z"),
    "shebang": ("#!/bin/sh", lambda job: job.job_script().splitlines()[0], "#!/bin/sh"),
    "job-script-prologue": (["ml x"], says("\nml x\n"), True),
    "job-script-epilogue": (["over"], says("\nover\n"), True),
    "launcher": ("jsrun -n 1", says("exec jsrun -n 1 "), True),
    "python": ("py", says(" py -m hpcdask worker"), True),
    "worker-command": ("my.worker", says(" -m my.worker "), True),
    "processes": (1, lambda job: (job.processes, job.nthreads), (1, 4)),
    "nanny": (False, says("--no-nanny"), True),
    "interface": ("ib0", says("--interface ib0"), True),
    "protocol": ("tcp", says("--protocol tcp"), True),
    "local-directory": ("/x", says('--local-directory "/x"'), True),
    "death-timeout": ("1h", says("--death-timeout 3600s "), True),
    "resources": ({"GPU": 2}, says("--resources GPU=2"), True),
    "worker-extra-args": (["--x y"], says("--x y"), True),
}
#: The same for clusters of such jobs.
OF_CLUSTERS: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
    "shared-temp-directory": (
        "/shared",
        lambda cluster: os.path.dirname(os.path.dirname(cluster.scheduler_file)),
        "/shared",
    ),
    "scheduler-options": (
        {"idle_timeout": "1h"},
        lambda cluster: cluster._scheduler_options.get("idle_timeout"),
        "1h",
    ),
    "poll-interval": ("7s", lambda cluster: cluster._interval, 7.0),
    "max-array": (7, lambda cluster: cluster._max_array, 7),
}
CLASSES = {
    each.system.name: each
    for each in (SLURMJob, PBSJob, SGEJob, LSFJob, OARJob, HTCondorJob, MoabJob)
}
JOBS = [(setting.key.split(".")[1], setting.key.split(".")[2]) for setting in jobs.settings()]


def effect_on_jobs(system: str, name: str) -> tuple[Any, Callable[[], Any], Any]:
    """What a setting does to what ``hpc-dask jobscript SYSTEM`` asks for, and to a `Job`."""
    raw: Any = None
    looks: list[Callable[[], Any]] = []
    expected: list[Any] = []
    if BY_KEY[f"jobqueue.{system}.{name}"].options:
        raw, field, value = OF_SCRIPTS[name]
        looks.append(lambda: getattr(script_of(system), field))
        expected.append(value)
    if jobs.WORDS[name].is_keyword:
        raw, look, value = OF_CLASSES[name]
        looks.append(lambda: look_at_job(system, name, look))
        expected.append(value)
    if name in OF_CLUSTERS:
        raw, look, value = OF_CLUSTERS[name]
        looks.append(lambda: asyncio.run(look_at_cluster(system, look)))
        expected.append(value)
    return raw, lambda: [each() for each in looks], expected


def script_of(system: str) -> JobSpec:
    with started(main.commands["jobscript"], system) as context:
        return system_and_job(dict(context.params))[1]


def look_at_job(system: str, name: str, look: Callable[[Any], Any]) -> Any:
    """Look at a job that has a size, which is to be configured if `name` is a part of it."""
    given = {"cores": 4, "memory": "8 GiB", "processes": 1 if name == "nanny" else None}
    if given.pop(name, None) and config.get(f"jobqueue.{system}.{name}") is None:
        return None  # there can be no such job
    return look(CLASSES[system](**given))


async def look_at_cluster(system: str, look: Callable[[Any], Any]) -> Any:
    """Look at a cluster that is never started."""
    disk = {"disk": "1 GiB"} if system == "htcondor" else {}
    kind = CLASSES[system]
    return look(JobQueueCluster(job_cls=kind, cores=1, memory="1 GiB", asynchronous=True, **disk))


#: For each key: what to set it to, what to look at, and what has to be seen there.
EFFECTS: dict[str, tuple[Any, Callable[[], Any], Any]] = {
    "scheduler-file": ("s.json", lambda: place().scheduler_file, "s.json"),
    "scheduler-address": ("tcp://h:1", lambda: place().address, "tcp://h:1"),
    "token-file": ("TOKEN", lambda: SchedulerPlace().options().token, bytes.fromhex(TOKEN)),
    "log-level": ("error", lambda: of_command("scheduler", "log_level"), "error"),
    "scheduler.port": ("9000:9001", lambda: Scheduler()._port, "9000:9001"),
    "scheduler.interface": ("ib0", lambda: Scheduler()._interface, "ib0"),
    "scheduler.contact-address": ("h:1", lambda: Scheduler()._contact_address, "h:1"),
    "scheduler.scheduler-file": ("f", lambda: of_command("scheduler", "scheduler_file"), "f"),
    "scheduler.idle-timeout": ("1h", lambda: Scheduler()._idle_timeout, 3600.0),
    "scheduler.allowed-failures": (7, lambda: Scheduler().state.allowed_failures, 7),
    "scheduler.worker-ttl": ("1min", lambda: Scheduler().worker_ttl, 60.0),
    "scheduler.dial-back": (False, lambda: Scheduler().dial_back, False),
    "scheduler.client-grace": ("1min", lambda: Scheduler().state.unclaimed, 60.0),
    "scheduler.heartbeat": ("1s", lambda: Scheduler().members._registered().heartbeat, 1.0),
    "scheduler.work-stealing": (False, lambda: Scheduler().state.work_stealing, False),
    "scheduler.transition-log-length": (9, lambda: Scheduler().story._steps.maxlen, 9),
    "scheduler.events-log-length": (9, lambda: Scheduler().requests.topics.topics._length, 9),
    "scheduler.preload": (["a"], lambda: preloads(Scheduler())[0], ["a"]),
    "scheduler.preload-argv": (["--n", "1"], lambda: preloads(Scheduler())[1], ["--n", "1"]),
    "worker.port": ("9000", lambda: Worker(NOBODY)._port, "9000"),
    "worker.interface": ("ib0", lambda: Worker(NOBODY)._interface, "ib0"),
    "worker.nthreads": (3, lambda: Worker(NOBODY).nthreads, 3),
    "worker.nworkers": ("2", lambda: of_command("worker", "nworkers"), "2"),
    "worker.nanny": (False, lambda: of_command("worker", "nanny"), False),
    "worker.memory-limit": ("1 GiB", lambda: Worker(NOBODY).memory_limit, 2**30),
    "worker.local-directory": ("/x", lambda: Worker(NOBODY)._scratch, "/x"),
    "worker.resources": ({"GPU": 2}, lambda: Worker(NOBODY).resources, {"GPU": 2.0}),
    "worker.death-timeout": ("1h", lambda: Worker(NOBODY)._death_timeout, 3600.0),
    "worker.reconnect-timeout": (0, lambda: Worker(NOBODY)._reconnect_timeout, 0.0),
    "worker.drain-timeout": ("1h", lambda: Worker(NOBODY)._drain_timeout, 3600.0),
    "worker.lifetime.duration": ("1h", lambda: Worker(NOBODY).lifetime, (3600.0, 0.0)),
    "worker.lifetime.stagger": (60, lambda: Worker(NOBODY, lifetime="1h").lifetime, (3600.0, 60)),
    "worker.lifetime.restart": (True, lambda: lifetimes(), (None, (3600.0, 0.0))),
    "worker.walltime.duration": ("90min", lambda: departure()[0], 5400),
    "worker.walltime.margin": ("5 min", lambda: departure()[1], 300.0),
    "worker.connections.outgoing": (3, lambda: asyncio.run(fetching())[0], 3),
    "worker.transfer.message-bytes-limit": ("1 kB", lambda: asyncio.run(fetching())[1], 1000),
    "worker.profile.enabled": (False, lambda: Worker(NOBODY)._profile_interval, 0.0),
    "worker.profile.interval": ("5ms", lambda: Worker(NOBODY)._profile_interval, 0.005),
    "worker.preload": (["a"], lambda: preloads(Worker(NOBODY))[0], ["a"]),
    "worker.preload-argv": (["x"], lambda: preloads(Worker(NOBODY))[1], ["x"]),
    "nanny.environ": (
        {"ANSWER": 42},
        lambda: Nanny(NOBODY)._worker_environment().get("ANSWER"),
        "42",
    ),
    "nanny.preload": (["a"], lambda: preloads(Nanny(NOBODY))[0], ["a"]),
    "nanny.preload-argv": (["x"], lambda: preloads(Nanny(NOBODY))[1], ["x"]),
    "client.reconnect-timeout": (0, lambda: client()._reconnect_timeout, 0.0),
    "client.direct-to-workers": (False, lambda: client().direct_to_workers, False),
    "client.preload": (["json"], lambda: preloads(preloaded())[0], ["json"]),
    "client.preload-argv": (["x"], lambda: preloads(preloaded(["json"]))[1], ["x"]),
    "comm.compression": ("zstd", lambda: options().compression, "zstd"),
    "comm.max-messages": ("1 MiB", lambda: options().limits.section, 2**20),
    "comm.max-buffers": ("1 MiB", lambda: options().limits.buffers, 2**20),
    "comm.timeouts.connect": ("7s", lambda: (client()._timeout, options().connect_timeout), (7, 7)),
    "comm.timeouts.handshake": ("7s", lambda: options().handshake_timeout, 7.0),
    "comm.timeouts.stall": ("7s", lambda: options().stall_timeout, 7.0),
    "comm.timeouts.tcp": ("90s", lambda: options().tcp_timeout, 90.0),
    **{f"jobqueue.{system}.{name}": effect_on_jobs(system, name) for system, name in JOBS},
    "mpi.use-mpi": (False, lambda: of_command("mpi", "use_mpi"), False),
    "mpi.exclusive-workers": (True, lambda: of_command("run", "exclusive_workers"), True),
    "mpi.shutdown-timeout": ("7s", lambda: of_command("mpi", "shutdown_timeout"), "7s"),
    "ssh.remote-python": ("py", lambda: of_command("ssh", "remote_python"), "py"),
    "ssh.silence-timeout": ("7s", lambda: of_command("ssh", "silence_timeout"), "7s"),
    "admin.log-length": (7, log_length, 7),
    "admin.log-format": ("<%(message)s>", log_format, "<hello>"),
    "admin.full-tracebacks": (True, lambda: len(shown(FRAMES)), 2),
}


#: Of a traceback: a line of ours, and one of a user.
FRAMES = [(execution.__file__, 1, "_outcome"), ("program.py", 2, "work")]


def lifetimes() -> tuple[Any, Any]:
    """Of a nanny, and of the workers that it starts one after the other."""
    nanny = Nanny(NOBODY, lifetime="1h")
    return nanny.lifetime, nanny._workers_lifetime


def departure() -> tuple[Any, Any]:
    """How long a job lasts, and how long before its end workers leave, for ``hpc-dask worker``."""
    found: list[Any] = []

    async def leave_in_time(services: Any, *how: Any) -> None:
        found.extend(how)

    with started(main.commands["worker"]) as context, pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpcdask.launchers.departure.leave_in_time", leave_in_time)
        asyncio.run(_departure(dict(context.params))([]))
    return found[0], found[1]


async def fetching() -> tuple[int, int]:
    """Bounds of what a running worker asks others for."""
    async with (
        Scheduler(protocol="inproc") as scheduler,
        Worker(scheduler.address, nthreads=1, protocol="inproc") as worker,
    ):
        return worker.state._max_peers, worker.state._max_fetch_bytes


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    return path


@pytest.fixture
def log_as_before() -> Iterator[None]:
    logger = logging.getLogger("hpcdask")
    handlers, level, propagate, recent = (
        logger.handlers[:],
        logger.level,
        logger.propagate,
        logs._recent,
    )
    yield
    logger.handlers[:], logger.propagate, logs._recent = handlers, propagate, recent
    logger.setLevel(level)


def test_every_setting_has_its_proof() -> None:
    assert list(EFFECTS) == list(BY_KEY)


@pytest.mark.usefixtures("log_as_before")
@pytest.mark.parametrize("key", EFFECTS)
def test_a_setting_changes_what_it_stands_behind(key: str, token_file: Path) -> None:
    raw, look, expected = EFFECTS[key]
    raw = str(token_file) if raw == "TOKEN" else raw
    with config.set({key: raw}):
        assert look() == expected
    if key not in ("scheduler-file", "scheduler-address"):  # without, a cluster would be started
        assert look() != expected, "or it proves nothing"


@on_a_loop
async def test_a_silent_host_is_given_up_after_what_is_configured() -> None:
    with config.set({"comm.timeouts.tcp": "90s", "scheduler.interface": "lo"}):
        async with Scheduler() as scheduler, Worker(scheduler.address, nthreads=1) as worker:
            assert worker._link is not None
            comm = worker._link.comm
            assert isinstance(comm, TCPComm)
            sock = comm._sock
            idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert (idle, comm.patience) == (30, 90.0)
            assert [c.patience for c in scheduler.workers.values()] == [90.0]


# -- What is given goes before what is configured -------------------------------------------------


def test_arguments_go_before_the_configuration() -> None:
    with config.set({"scheduler.worker-ttl": "1h", "worker.drain-timeout": "1h"}):
        assert Scheduler(worker_ttl="2s").worker_ttl == 2.0
        assert Worker(NOBODY, drain_timeout=0)._drain_timeout == 0.0
        assert Nanny(NOBODY, drain_timeout="5s")._worker_options["drain_timeout"] == 5.0


def test_a_component_keeps_what_it_was_made_with() -> None:
    with config.set({"comm.timeouts.stall": "1s"}):
        worker = Worker(NOBODY, token=TOKEN)
    assert worker.place.options().stall_timeout == 1.0
    assert config.get("comm.timeouts.stall") == 15.0


def test_a_host_that_is_given_goes_before_an_interface_that_is_configured() -> None:
    both = {"scheduler.interface": "ib0", "worker.interface": "ib0"}
    with config.set({**both, "scheduler.contact-address": "h:1"}):
        scheduler = Scheduler(host="127.0.0.1")
        assert (scheduler._interface, scheduler._contact_address) == (None, None)
        assert Scheduler(interface="lo")._contact_address is None
        assert Worker(NOBODY, host="127.0.0.1")._interface is None
        assert Worker(NOBODY, listen_address="tcp://:0")._interface is None
        assert Worker(NOBODY, interface="lo")._interface == "lo"


def test_a_configured_lifetime_is_the_nannys_where_there_is_one() -> None:
    with config.set({"worker.lifetime": {"duration": "1h", "stagger": "1min"}}):
        assert Nanny(NOBODY).lifetime == (3600.0, 60.0)
        assert Worker(NOBODY, nanny="of this name").lifetime is None
    with config.set({"worker.lifetime": {"stagger": "1min", "restart": True}}):
        assert Nanny(NOBODY).lifetime is None, "they say how, if there is a lifetime"
        assert Worker(NOBODY).lifetime is None


def test_what_the_environment_has_goes_before_variables_from_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    variables = {"MINE": "theirs", "OMP_NUM_THREADS": "4", "GIVEN": "theirs"}
    with config.set({"nanny.environ": variables}):
        environ = Nanny(NOBODY, env={"GIVEN": "given"})._worker_environment()
    assert environ["MINE"] == "mine"
    assert environ["OMP_NUM_THREADS"] == "4"
    assert environ["GIVEN"] == "given"
    assert "MKL_NUM_THREADS" not in environ, "it follows OMP_NUM_THREADS"


def test_what_pbs_sets_for_nobody_gives_way_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_JOBID", "1")
    for name in ("NCPUS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert Nanny(NOBODY)._worker_environment()["OMP_NUM_THREADS"] == "1", "as in Torque"
    for name, value in {"NCPUS": "8", "OMP_NUM_THREADS": "8"}.items():
        monkeypatch.setenv(name, value)
    assert Nanny(NOBODY)._worker_environment()["OMP_NUM_THREADS"] == "1"
    with config.set({"nanny.environ": {"OMP_NUM_THREADS": "4"}}):
        assert Nanny(NOBODY)._worker_environment()["OMP_NUM_THREADS"] == "4"


# -- Options of commands --------------------------------------------------------------------------

#: Every option that the schema names, with its setting.
OPTIONS = [(setting, option) for setting in SCHEMA for option in setting.options]
#: What a command needs on its command line besides.
NEEDED = {"run": ["script.py"], "ssh": ["host"]}
by_key = pytest.mark.parametrize(
    ("setting", "option"), OPTIONS, ids=lambda each: getattr(each, "key", each)
)


def commands(called: str) -> list[click.Command]:
    """The commands that the schema calls so."""
    alike = {"mpirun": ["mpi", "run"], "jobscript": ["jobscript", "submit"]}
    names = alike.get(called, [called])
    return [main.commands[name] for name in names]


def started(command: click.Command, *words: str) -> click.Context:
    """The context of a command as if it had been started."""
    name = str(command.name)
    return command.make_context(name, [*words, *NEEDED.get(name, [])])


def parameter_of(command: click.Command, name: str) -> click.Parameter:
    """The parameter that an option, or the capital name of an argument, stands for."""
    (found,) = (p for p in command.params if name in (*p.opts, str(p.name).upper()))
    return found


@by_key
def test_an_option_has_the_default_of_its_setting_and_names_its_key(
    setting: Setting, option: str
) -> None:
    called, _, name = option.partition(" ")
    for command in commands(called):
        parameter = parameter_of(command, name)
        if isinstance(parameter, click.Option):
            assert jobs.generic(setting.key) in str(parameter.help)
        assert setting in behind(command)[str(parameter.name)]
        value = started(command).params[str(parameter.name)]
        if setting.default is not None and not setting.kind.is_table and value is not None:
            assert setting.read(value) == setting.read(setting.default)


@by_key
def test_a_command_gets_what_is_configured(setting: Setting, option: str) -> None:
    called, _, name = option.partition(" ")
    is_shared = len([each for each in SCHEMA if option in each.options]) > 1
    before = [started(command).params for command in commands(called)]
    with config.set({setting.key: EFFECTS[setting.key][0]}):
        for command, unconfigured in zip(commands(called), before, strict=True):
            parameter = str(parameter_of(command, name).name)
            value = started(command).params[parameter]
            if is_shared or not setting.is_preset:
                assert value == unconfigured[parameter], "to be looked up where it is known"
            else:
                assert setting.read(value) == config.get(setting.key)


def test_an_option_goes_before_what_is_configured_for_its_system() -> None:
    with config.set({"jobqueue": {"slurm": {"queue": "long"}, "pbs": {"queue": "other"}}}):
        for words, queue in ((["slurm"], "long"), (["pbs"], "other"), (["sge"], "")):
            with started(main.commands["submit"], *words) as context:
                assert system_and_job(dict(context.params))[1].queue == queue
        with started(main.commands["submit"], "slurm", "--queue", "short") as context:
            assert system_and_job(dict(context.params))[1].queue == "short"


def weighed(words: str, configured: dict[str, Any]) -> dict[str, Any]:
    """Options of a command as it takes them."""
    command, *arguments = words.split()
    with config.set(configured), started(main.commands[command], *arguments) as context:
        return settled(dict(context.params))


@pytest.mark.parametrize(
    ("words", "configured", "option", "expected"),
    [
        ("worker", {"worker.interface": "ib0"}, "interface", "ib0"),
        ("worker --host h", {"worker.interface": "ib0"}, "interface", None),
        ("worker --listen-address tcp://:1", {"worker.interface": "ib0"}, "interface", None),
        ("worker --listen-address tcp://:1", {"worker.port": "9000:9010"}, "port", "0"),
        ("worker --listen-address tcp://:1", {"worker.nworkers": "4"}, "nworkers", "1"),
        ("worker --no-nanny", {"worker.nworkers": "4"}, "nworkers", "1"),
        ("worker --nanny", {"worker.nworkers": "4"}, "nworkers", "4"),
        ("worker --no-nanny", {"nanny.preload": ["a"]}, "preload_nanny", ()),
        ("worker --nworkers 4", {"worker.nanny": False}, "nanny", True),
        ("worker --nworkers 1", {"worker.nanny": False}, "nanny", False),
        ("worker tcp://h:1", {"scheduler-file": "s.json"}, "scheduler_file", None),
        ("worker --scheduler-file s", {"scheduler-address": "h:1"}, "scheduler", None),
        (
            "worker",
            {"scheduler-file": "~/s.json"},
            "scheduler_file",
            os.path.expanduser("~/s.json"),
        ),
        ("worker", {"worker.memory-limit": "none"}, "memory_limit", "0"),
        ("worker", {"worker.memory-limit": None}, "memory_limit", "0"),
        ("worker", {"worker.lifetime.stagger": "5min"}, "lifetime_stagger", "0s"),
        ("worker --lifetime 1h", {"worker.lifetime.stagger": "5min"}, "lifetime_stagger", "5min"),
        ("worker", {"worker.lifetime.restart": True}, "lifetime_restart", False),
        ("run", {"worker.lifetime.stagger": "5min"}, "lifetime_stagger", "0s"),
        ("mpi", {"scheduler.interface": "ib0"}, "scheduler_interface", "ib0"),
        ("mpi --interface lo", {"scheduler.interface": "ib0"}, "scheduler_interface", None),
        ("mpi --port-range 9000:9009", {"scheduler.port": "8000"}, "scheduler_port", None),
        ("mpi --no-scheduler h:1", {"scheduler.scheduler-file": "s"}, "scheduler_file", None),
        ("mpi --nworkers 4", {"worker.nanny": False}, "nanny", False),
        ("scheduler --host h", {"scheduler.interface": "ib0"}, "interface", None),
        ("scheduler --host h", {"scheduler.contact-address": "h:1"}, "contact_address", None),
    ],
)
def test_what_is_configured_gives_way_to_the_command_line(
    words: str, configured: dict[str, Any], option: str, expected: Any
) -> None:
    assert weighed(words, configured)[option] == expected


def test_contradictions_on_the_command_line_are_left_to_be_refused() -> None:
    given = weighed("worker --no-nanny --nworkers 4", {})
    assert (given["nanny"], given["nworkers"]) == (False, "4")


# -- In a program ---------------------------------------------------------------------------------


def test_what_a_program_sets_ends_with_its_block() -> None:
    before = config.get("scheduler.worker-ttl")
    with config.set(scheduler__worker_ttl="1s"):
        with config.set({"scheduler.worker-ttl": "2s"}):
            assert config.get("scheduler.worker-ttl") == 2.0
        assert config.get("scheduler.worker-ttl") == 1.0
    assert config.get("scheduler.worker-ttl") == before


def test_nothing_is_set_by_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'scheduler.worker-ttl'\?"):
        config.set({"scheduler.port": 1, "scheduler.worker-tl": "1s"})
    assert config.get("scheduler.port") is None


def test_a_process_that_was_told_reads_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_program", [])
    monkeypatch.setattr(config, "_adopted", None)
    with config.set({"scheduler.worker-ttl": "1s", "nanny.environ": {"A": "1"}}):
        handed_over = config.hand_over(config.current())
    config.adopt(handed_over)
    monkeypatch.setenv("HPCDASK_CONFIG", str(tmp_path / "missing.yaml"))
    monkeypatch.setenv("HPCDASK_COMM__TIMEOUTS__STALL", "1s")
    settings = config.current()
    assert settings["scheduler.worker-ttl"] == 1.0
    assert settings.source("scheduler.worker-ttl") == "hpcdask.config.set"
    assert settings["nanny.environ"] == {"A": "1"}
    assert settings["comm.timeouts.stall"] == 1.0, "its environment is its own"
