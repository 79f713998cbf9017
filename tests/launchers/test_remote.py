"""What the SSH launcher starts on a host, here at the end of two pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import wait_until

from hpcdask import Client, Worker, __version__
from hpcdask.errors import ConfigError
from hpcdask.launchers.remote import MARK, class_of
from hpcdask.nanny import Nanny

TOKEN = "5a" * 32
WORKER = {"role": "worker", "kind": "hpcdask.Nanny", "share": 1}


class Remote:
    """One such process."""

    def __init__(self, home, **settings):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpcdask.launchers.remote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**home.env, "SSH_CONNECTION": "10.0.0.9 50000 10.0.0.1 22"},
            cwd=home.folder,
            start_new_session=True,
        )
        self.hello = self.read()
        self.settings = {
            "token": TOKEN,
            "log_level": "warning",
            "log_directory": None,
            "title": "test",
            "silence": 60.0,
            **settings,
        }

    def write(self, **what):
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def read(self):
        line = self.process.stdout.readline().decode()
        assert line.startswith(MARK), line
        return json.loads(line.removeprefix(MARK))

    def start_scheduler(self):
        options = {"host": "127.0.0.1", "port": 0}
        self.write(do="start", name="scheduler", role="scheduler", options=options)
        return self.read()["contact"]["address"]

    def start_worker(self, scheduler, name="0", **options):
        options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0, **options}
        self.write(do="start", name=name, options=options, scheduler=scheduler, **WORKER)
        return self.read()

    def family(self):
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


@pytest.fixture
def new_remote(home):
    made = []

    def make(**settings):
        remote = Remote(home, **settings)
        made.append(remote)
        remote.write(**remote.settings)
        return remote

    yield make
    for remote in made:
        remote.process.stdin.close()
        assert remote.process.wait(20) == 0
        remote.process.stdout.close()


@pytest.fixture
def remote(new_remote):
    made = new_remote()
    ready = made.read()
    assert ready["say"] == "ready"
    assert ready["address"] == "10.0.0.1"
    assert ready["cpus"] == len(os.sched_getaffinity(0))
    return made


def all_gone(processes, timeout=10):
    wait_until(lambda: not any(each.is_running() for each in processes), timeout, str(processes))


def test_it_says_who_it_is_before_it_is_told_anything(remote):
    assert remote.hello == {
        "say": "hello",
        "version": __version__,
        "python": sys.version.split()[0],
    }


def test_it_ends_if_the_launcher_does_not_want_it(home):
    remote = Remote(home)
    remote.process.stdin.close()
    assert remote.process.wait(10) == 0
    remote.process.stdout.close()


def test_it_says_what_is_wrong_with_the_configuration_of_its_host(home):
    home.env["HPCDASK_SCHEDULER__WORKER_TLL"] = "1s"
    remote = Remote(home)
    remote.write(**remote.settings)
    said = remote.read()
    assert said["say"] == "refused"
    assert "did you mean HPCDASK_SCHEDULER__WORKER_TTL?" in said["why"]
    remote.process.stdin.close()
    assert remote.process.wait(10) == 1
    remote.process.stdout.close()


def test_a_scheduler_and_a_worker_work_and_their_token_is_nowhere_to_be_seen(remote):
    address = remote.start_scheduler()
    assert remote.start_worker(address)["say"] == "started"
    with Client(address, token=TOKEN, set_as_default=False) as client:
        assert client.submit(pow, 2, 10).result(timeout=20) == 1024
        # What tasks print does not mix with the answers.
        assert client.submit(os.write, 1, b"printed by a task\n").result(timeout=20) == 18
    for process in remote.family():
        for file in ("cmdline", "environ"):
            with open(f"/proc/{process.pid}/{file}", "rb") as shown:
                assert TOKEN.encode() not in shown.read()
    assert len(remote.family()) == 2
    remote.write(do="end", name="0", reason="enough")
    assert remote.read() == {"say": "ended", "name": "0", "failure": ""}
    assert len(remote.family()) == 1


@pytest.mark.parametrize("how", ["stdin ends", "silence", "SIGTERM", "quit"])
def test_all_ends_when(new_remote, how):
    remote = new_remote(silence=1.0 if how == "silence" else 60.0)
    remote.read()
    address = remote.start_scheduler()
    assert remote.start_worker(address)["say"] == "started"
    family = remote.family()
    if how == "stdin ends":
        remote.process.stdin.close()
    elif how == "SIGTERM":
        remote.process.send_signal(signal.SIGTERM)
    elif how == "quit":
        remote.write(do="quit", reason="enough")
    remote.process.wait(10)
    all_gone(family)


def test_a_sign_of_life_keeps_it_going(new_remote):
    remote = new_remote(silence=1.0)
    remote.read()
    for _ in range(8):
        remote.write(do="nothing")
        with pytest.raises(subprocess.TimeoutExpired):
            remote.process.wait(0.25)


def test_a_killed_one_takes_its_workers_along(remote):
    address = remote.start_scheduler()
    assert remote.start_worker(address)["say"] == "started"
    family = remote.family()
    remote.process.kill()
    remote.process.wait(10)
    all_gone(family)
    remote.process.wait = lambda timeout: 0  # its fixture expects a clean end


@pytest.mark.parametrize(
    ("options", "is_option", "why"),
    [
        ({"interface": "nope0"}, False, "no network interface 'nope0'"),
        ({"memory_limit": "lots"}, True, "'lots' is not a size"),
        ({"preload": ["missing.py"]}, False, "cannot preload 'missing.py'"),
        ({"sped": 1}, False, "unexpected keyword argument 'sped'"),
    ],
)
def test_a_worker_that_cannot_start_says_why(remote, options, is_option, why):
    address = remote.start_scheduler()
    if "interface" in options:
        options = {"host": None, **options}
    answer = remote.start_worker(address, **options)
    assert answer["say"] == "failed"
    assert answer["is_option"] == is_option
    assert why in answer["why"]


def test_what_it_says_goes_into_a_file_if_a_folder_is_named(new_remote, tmp_path):
    remote = new_remote(log_directory=str(tmp_path / "logs"), log_level="info", title="scheduler")
    remote.read()
    address = remote.start_scheduler()
    [path] = (tmp_path / "logs").iterdir()
    assert path.name.startswith("hpc-dask-scheduler-")
    assert path.stat().st_mode & 0o077 == 0
    assert f"Scheduler at: {address}" in path.read_text()


def test_a_folder_for_logs_that_cannot_be_is_refused(home):
    remote = Remote(home, log_directory="/dev/null/logs")
    remote.write(**remote.settings)
    answer = remote.read()
    assert answer["say"] == "refused"
    assert "--log-directory" in answer["why"]
    assert "/dev/null" in answer["why"]
    assert remote.process.wait(10) == 1
    remote.process.stdin.close()
    remote.process.stdout.close()


@pytest.mark.parametrize("prefix", ["", "hpcdask.", "distributed.", "dask.distributed."])
def test_our_classes_have_the_names_that_users_know(prefix):
    assert class_of(f"{prefix}Nanny") is Nanny
    assert class_of(f"{prefix}Worker") is Worker
    assert class_of("hpcdask") is class_of("distributed.cli.dask_worker") is Nanny


def test_a_class_may_be_named_by_its_path_or_its_module(tmp_path, monkeypatch):
    (tmp_path / "site_workers.py").write_text("class Worker: pass\nclass Special: pass\n")
    (tmp_path / "needy.py").write_text("import nosuchmodule")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert class_of("site_workers.Special").__name__ == "Special"
    assert class_of("site_workers").__module__ == "site_workers"
    for wrong in ("site_workers.Other", "nosuchmodule.Nanny", "os", "nonsense..Nanny", ""):
        with pytest.raises(ConfigError, match=f"there is no worker class {wrong!r}"):
            class_of(wrong)
    with pytest.raises(ConfigError, match="No module named 'nosuchmodule'"):
        class_of("needy.Nanny")
