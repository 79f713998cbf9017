"""Configuration as a user meets it: ``hpc-dask config``, and commands that heed it."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path

import pytest
from in_process import run_here

pytest.importorskip("yaml")

TOKEN = "ab" * 32
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def site(home):
    """Writes the site's profile; returns the variable that names it."""

    def write(text):
        return {"HPCDASK_SITE_CONFIG": str(home.file("site.yaml", text))}

    return write


@pytest.fixture
def user(home):
    """Writes the user's file; returns its path."""

    def write(text):
        folder = home.folder / "config/hpcdask"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "mine.yaml"
        path.write_text(text)
        return path

    return write


def output(home, *words, **env):
    command = run_here(home, *words, **env)
    assert command.code() == 0, command
    assert command.err == ""
    return command.out


def refusal(home, *words, **env):
    command = run_here(home, *words, **env)
    assert command.code() == 2, command
    assert command.out == ""
    (line,) = command.err.splitlines()
    return line


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# -- Showing it -----------------------------------------------------------------------------------


def test_every_value_is_shown_with_its_source(home, user, site):
    path = user("scheduler:\n  worker-ttl: 45s\nnanny: {environ: {A: 1}}\n")
    env = {**site("worker:\n  interface: ib*\n"), "HPCDASK_SCHEDULER__PORT": "9000"}
    lines = output(home, "config", HPCDASK_TOKEN=TOKEN, **env).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["scheduler.worker-ttl"] == ["45s", f"{path}:2"]
    assert rows["nanny.environ.A"] == ["1", f"{path}:3"]
    assert rows["worker.interface"] == ["ib*", f"{env['HPCDASK_SITE_CONFIG']}:2"]
    assert rows["scheduler.port"] == ["9000", "HPCDASK_SCHEDULER__PORT"]
    assert rows["scheduler.allowed-failures"] == ["3", "default"]
    assert rows["HPCDASK_TOKEN"] == ["(not", "shown)", "the", "environment"]
    assert TOKEN not in "".join(lines)
    assert lines[-1] == f"files, the strongest first: {path}, {env['HPCDASK_SITE_CONFIG']}"


def test_what_nobody_has_set_of_batch_systems_is_shown_once(home):
    variables = {"HPCDASK_JOBQUEUE__PBS__CORES": "4", "HPCDASK_JOBQUEUE__GPU__QUEUE": "x"}
    lines = output(home, "config", **variables).splitlines()
    rows = [line.split() for line in lines if re.search(r"^jobqueue\S+\.(cores|queue) ", line)]
    assert rows == [
        ["jobqueue.SYSTEM.queue", "null", "default"],
        ["jobqueue.SYSTEM.cores", "null", "default"],
        ["jobqueue.pbs.cores", "4", "HPCDASK_JOBQUEUE__PBS__CORES"],
        ["jobqueue.gpu.queue", "x", "HPCDASK_JOBQUEUE__GPU__QUEUE"],
    ]


def test_one_value_is_shown_as_it_was_written(home, user):
    user("scheduler: {worker-ttl: 5 minutes}\nworker: {local-directory: $TMPDIR/x}\n")
    assert output(home, "config", "scheduler.worker-ttl") == "5 minutes\n"
    assert output(home, "config", "--json", "scheduler.worker-ttl") == "300.0\n"
    assert output(home, "config", "worker.local-directory") == f"{home.scratch}/x\n"
    lifetime = json.loads(output(home, "config", "worker.lifetime"))
    assert lifetime == {"duration": None, "stagger": 0.0, "restart": False}


def test_all_of_it_is_there_for_programs(home, user):
    path = user("worker:\n  resources: {GPU: 2}\n  port: 9000:9010\n")
    values = json.loads(output(home, "config", "--json"))
    assert values["worker.resources.GPU"] == {"value": 2.0, "source": f"{path}:2"}
    assert values["worker.port"] == {"value": "9000:9010", "source": f"{path}:3"}
    assert values["comm.timeouts.connect"] == {"value": 30.0, "source": "default"}


def test_what_of_a_distributed_yaml_does_nothing_is_told(home, user):
    path = user("distributed:\n  scheduler: {worker-ttl: 9s}\n  worker: {profile: {cycle: 1s}}\n")
    shown = output(home, "config")
    assert re.search(rf"scheduler.worker-ttl +9s +{path}:2\n", shown)
    assert f"means nothing here: distributed.worker.profile.cycle ({path}:3)\n" in shown
    scheduler = home.hpc_dask("scheduler", "--port", "0")
    scheduler.line("1 keys of distributed mean nothing to hpcdask, as distributed.worker.profile")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scheduler:\n  worker-tl: 1s\n", "2: there is no setting 'scheduler.worker-tl'; did you"),
        ("worker:\n  memory-limit: lots\n", "2: worker.memory-limit: 'lots' is not a size"),
        ("worker: {\n", "2: this is no YAML: "),
    ],
)
@pytest.mark.parametrize("words", ["config", "config worker.port", "scheduler", "worker tcp://h:1"])
def test_an_error_in_a_file_is_told_with_its_line_and_code_2(home, user, words, text, expected):
    path = user(text)
    words = words.split()
    assert refusal(home, *words).startswith(f"hpc-dask {words[0]}: {path}:{expected}")


def test_a_reader_that_has_seen_enough_is_no_error(home):
    command = home.run("sh", "-c", f"{sys.executable} -m hpcdask config | true")
    assert command.code() == 0
    assert command.err == ""


def test_an_unknown_key_says_what_was_meant(home):
    expected = "hpc-dask config: there is no setting 'worker-ttl'; did you mean 'scheduler.work"
    assert refusal(home, "config", "worker-ttl").startswith(expected)
    line = refusal(home, "scheduler", HPCDASK_SCHEDULER_WORKER_TTL="1s")
    assert "HPCDASK_SCHEDULER_WORKER_TTL, which is no setting; did you mean HPCDASK_SCHED" in line


def test_a_file_that_others_can_write_is_refused(home, user):
    path = user("worker: {preload: evil.py}\n")
    path.chmod(0o666)
    assert f"chmod go-w {path}" in refusal(home, "config")


def test_help_works_and_shows_what_is_configured(home, user):
    user("scheduler: {worker-ttl: 45s}\n")
    text = " ".join(output(home, "scheduler", "--help").split())
    assert "0 for never. [key: scheduler.worker-ttl] [default: 45s]" in text
    user("scheduler: {worker-tl: 45s}\n")
    assert "[default: 30s]" in output(home, "scheduler", "--help")


def test_a_variable_in_a_path_that_is_not_set_is_told(home, user):
    path = user("worker:\n  local-directory: $NOSUCH/x\n")
    line = refusal(home, "worker", "tcp://127.0.0.1:1")
    assert line == (
        f"hpc-dask worker: {path}:2: worker.local-directory: $NOSUCH/x names $NOSUCH, "
        "which is not set here"
    )


def test_an_error_says_where_its_value_is_configured(home, site):
    env = site("worker: {interface: nope0}\nscheduler: {interface: nope0}\n")
    worker = home.hpc_dask("worker", "tcp://127.0.0.1:1", **env)
    assert worker.code() == 1
    assert "no network interface 'nope0' on" in worker.err
    assert f"(worker.interface is from {env['HPCDASK_SITE_CONFIG']}:1)" in worker.err
    assert len(worker.err.splitlines()) == 1


def test_a_sites_profile_is_in_job_scripts(home):
    # A copy: in a clone it may be writable by a group.
    path = home.file("site.yaml", (DOCS / "site-profile.yaml").read_text())
    path.chmod(0o644)
    env = {"HPCDASK_SITE_CONFIG": str(path)}
    lines = output(home, "jobscript", "slurm", "script.py", **env).splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH ")]
    assert "#SBATCH --partition=compute" in directives
    assert "#SBATCH --time=01:00:00" in directives
    assert "#SBATCH --ntasks-per-node=8" in directives
    assert not [line for line in directives if "--mem" in line]
    assert [line for line in lines if line.strip() == "module load openmpi"]
    assert [line for line in lines if re.search(r"\bsrun\b", line)]
    words = ("jobscript", "slurm", "--queue", "short", "script.py")
    assert "#SBATCH --partition=short" in output(home, *words, **env)
    assert "\n#PBS -q" not in output(home, "jobscript", "pbs", "script.py", **env)
    line = refusal(home, "jobscript", "slurm", HPCDASK_JOBQUEUE__SLURM__WALLTIME="soon")
    assert line.endswith("(jobqueue.slurm.walltime is from HPCDASK_JOBQUEUE__SLURM__WALLTIME)")


# -- Heeding it -----------------------------------------------------------------------------------


def test_environment_goes_before_a_file_and_an_option_before_both(home, user):
    ports = [free_port() for _ in range(3)]
    user(f"scheduler: {{port: {ports[0]}, interface: lo}}\n")
    env = {"HPCDASK_SCHEDULER__PORT": str(ports[1])}
    for words, environ, port in (
        ([], {}, ports[0]),
        ([], env, ports[1]),
        (["--port", str(ports[2])], env, ports[2]),
    ):
        scheduler = home.hpc_dask("scheduler", *words, **environ)
        assert scheduler.line(r"Scheduler at: +(tcp://\S+)") == f"tcp://127.0.0.1:{port}"
        assert scheduler.end() == 0


PROFILE_OF_THIS_TEST = """\
scheduler:
  interface: lo
worker:
  interface: lo
  nthreads: 2
  local-directory: $SITE_SCRATCH
  resources: {GPU: 1}
nanny:
  environ: {SITE_SAYS: hello}
comm:
  timeouts: {stall: 7s}
"""

SHOW = """\
import json, os, sys
import hpcdask
from hpcdask import Client

def seen():
    from hpcdask.config import files
    worker = hpcdask.get_worker()
    settings = hpcdask.config.current()
    return {
        "address": worker.address,
        "nthreads": worker.nthreads,
        "resources": worker.resources,
        "scratch": worker.local_directory,
        "variable": os.environ.get("SITE_SAYS"),
        "stall": worker.options.stall_timeout,
        "source": settings.source("comm.timeouts.stall"),
        "read": files._layers_of.cache_info().currsize,
        "yaml": "yaml" in sys.modules,
    }

if __name__ == "__main__":
    with Client() as client:
        print(json.dumps(client.submit(seen).result(timeout=60)))
"""


def assert_profile_is_heeded(seen, home, env):
    assert seen["address"].startswith("tcp://127.0.0.1:")
    assert (seen["nthreads"], seen["resources"], seen["stall"]) == (2, {"GPU": 1.0}, 7.0)
    assert seen["scratch"].startswith(str(home.folder / "fast"))
    assert seen["variable"] == "hello"
    assert seen["source"] == f"{env['HPCDASK_SITE_CONFIG']}:11"
    assert (seen["read"], seen["yaml"]) == (0, False), "the nanny has told the worker"


def test_a_sites_profile_reaches_worker_processes_without_their_reading_it(home, site):
    env = {**site(PROFILE_OF_THIS_TEST), "SITE_SCRATCH": str(home.folder / "fast")}
    scheduler = home.hpc_dask("scheduler", "--port", "0", **env)
    address = scheduler.line(r"Scheduler at: +(tcp://127.0.0.1:\d+)")
    worker = home.hpc_dask("worker", address, **env)
    worker.line("Registered to")
    home.file("show.py", SHOW)
    client = home.run("python", "show.py", HPCDASK_SCHEDULER_ADDRESS=address)
    assert client.code() == 0, client
    assert_profile_is_heeded(json.loads(client.out), home, env)
    assert worker.end() == 0


def test_one_scheduler_file_can_be_configured_for_all_three(home, user):
    user("scheduler: {scheduler-file: ~/s.json, port: 0}\nscheduler-file: ~/s.json\n")
    scheduler = home.hpc_dask("scheduler")
    scheduler.line("Scheduler at")
    worker = home.hpc_dask("worker")
    worker.line("Registered to")
    home.file("show.py", SHOW)
    client = home.run("python", "show.py")
    assert client.code() == 0, client
    assert json.loads(client.out)["nthreads"] >= 1
