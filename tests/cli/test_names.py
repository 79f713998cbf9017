"""The names under which commands are installed."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from hpcdask import __version__, execute, initialize
from hpcdask.cli.main import main

_PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()
SCRIPTS = re.findall(r'^(hpc-dask[\w-]*) = "([\w.]+):(\w+)"$', _PROJECT, re.M)


def test_all_that_peers_install_are_there():
    names = {name for name, _, _ in SCRIPTS}
    assert names >= {f"hpc-dask-{each}" for each in ("scheduler", "worker", "ssh", "mpi")}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs what is installed under a name, and returns its exit code, stdout and stderr."""

    def run(name, *words):
        [(module, attribute)] = [each[1:] for each in SCRIPTS if each[0] == name]
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as caught:
            getattr(importlib.import_module(module), attribute)()
        return (caught.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", [name for name, _, _ in SCRIPTS])
def test_each_name_is_its_command(run, name):
    command = name.replace("hpc-dask-", "hpc-dask ")
    assert run(name, "--version") == (0, f"{command} {__version__}\n", "")


@pytest.mark.parametrize("name", ["hpc-dask", "hpc-dask-mpi"])
def test_of_many_ranks_one_says_what_is_wrong_with_an_option(run, monkeypatch, name):
    monkeypatch.setenv("HPCDASK_SIZE", "2")
    monkeypatch.setenv("HPCDASK_RANK", "1")
    assert run(name, "--bogus") == (0, "", "")
    monkeypatch.setenv("HPCDASK_RANK", "0")
    code, out, err = run(name, "--bogus")
    assert (code, out) == (2, "")
    assert "No such option" in err


#: What dask-mpi and dask-ssh have, so that a job script changes by one word.
OPTIONS = {
    "mpi": "scheduler-file scheduler-port scheduler-rank interface protocol nthreads memory-limit "
    "local-directory scheduler no-scheduler nanny no-nanny exclusive-workers inclusive-workers "
    "worker-class worker-options dashboard no-dashboard dashboard-address name",
    "ssh": "scheduler scheduler-port nthreads nworkers hostfile ssh-username ssh-port "
    "ssh-private-key nohost log-directory local-directory remote-python memory-limit worker-port "
    "nanny-port remote-dask-worker",
}
_OF_BOTH = (
    "interface nthreads local_directory memory_limit nanny dashboard dashboard_address protocol "
    "worker_class worker_options comm"
)
KEYWORDS = {
    initialize: f"{_OF_BOTH} exit",
    execute: f"{_OF_BOTH} client_function client_args client_kwargs client_rank scheduler "
    "scheduler_rank scheduler_address scheduler_port scheduler_file exclusive_workers worker_name",
}


@pytest.mark.parametrize("name", OPTIONS, ids="hpc-dask {}".format)  # "mpi" alone is a mark
def test_every_option_of_the_peers_command_is_there(name):
    ours = {o for p in main.commands[name].params for o in (*p.opts, *p.secondary_opts)}
    assert {f"--{option}" for option in OPTIONS[name].split()} <= ours


@pytest.mark.parametrize("function", KEYWORDS, ids=["initialize", "execute"])
def test_every_keyword_of_the_peers_function_is_there(function):
    assert set(KEYWORDS[function].split()) <= set(inspect.signature(function).parameters)
