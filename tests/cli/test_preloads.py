"""``--preload``: modules and files that are set up before, and torn down after, a service runs."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_commands import start_scheduler

PLAIN = """
def dask_setup(service):
    print("setup", type(service).__name__, service.status, flush=True)

def dask_teardown(service):
    print("teardown", type(service).__name__, flush=True)
"""

ASYNC = """
import asyncio

async def dask_setup(service):
    await asyncio.sleep(0)
    print("setup", type(service).__name__, service.status, flush=True)

async def dask_teardown(service):
    await asyncio.sleep(0)
    print("teardown", type(service).__name__, flush=True)
"""

CLICK = """
import click

@click.command()
@click.argument("word")
@click.option("--times", type=int, default=1)
def dask_setup(service, word, times):
    print("setup", type(service).__name__, word * times, flush=True)
"""


@pytest.fixture(params=[PLAIN, ASYNC], ids=["plain", "async"])
def preload(request, home):
    return str(home.file("preloaded.py", request.param))


def test_a_scheduler_calls_setup_before_it_listens_and_teardown_at_its_end(home, preload):
    scheduler, _ = start_scheduler(home, "--preload", preload)
    assert scheduler.out == "setup Scheduler starting\n"
    assert scheduler.end() == 0
    assert scheduler.out == "setup Scheduler starting\nteardown Scheduler\n"


@pytest.mark.parametrize(
    ("options", "service"),
    [
        (["--preload"], "Worker"),
        (["--no-nanny", "--preload"], "Worker"),
        (["--preload-nanny"], "Nanny"),
    ],
)
def test_workers_and_nannies_call_them_too(visitor, standing, preload, options, service):
    worker = visitor.hpc_dask("worker", standing.address, *options, preload)
    worker.line("Registered to: ")
    assert worker.out == f"setup {service} starting\n"
    assert worker.end() == 0
    assert worker.out == f"setup {service} starting\nteardown {service}\n"


@pytest.mark.parametrize("command", ["scheduler", "worker", "worker --no-nanny"])
def test_a_setup_that_is_a_click_command_gets_the_arguments_behind_the_options(
    visitor, standing, command
):
    visitor.file("preloaded.py", CLICK)
    words = [*command.split(), "--preload", "preloaded.py"]
    words += ["--port", "0"] if command == "scheduler" else [standing.address]
    run = visitor.hpc_dask(*words, "--", "ab", "--times", "2")
    service = command.split()[0].title()
    run.line(f"setup {service} abab\n")


@pytest.mark.parametrize("command", ["scheduler", "worker", "worker --no-nanny"])
def test_a_module_of_the_current_folder_can_be_preloaded_by_its_name(visitor, standing, command):
    visitor.file("beside_us.py", PLAIN)
    words = [*command.split(), "--preload", "beside_us"]
    words += ["--port", "0"] if command == "scheduler" else [standing.address]
    visitor.run("hpc-dask", *words).line("setup (Scheduler|Worker)")


def test_a_teardown_that_raises_is_logged_and_keeps_nobody_from_ending(home):
    home.file("a.py", PLAIN)
    home.file("b.py", "def dask_teardown(service):\n    1 / 0\n")
    scheduler, _ = start_scheduler(home, "--preload", "a.py", "--preload", "b.py")
    assert scheduler.end() == 0
    assert "dask_teardown of preload 'b.py' failed: ZeroDivisionError" in scheduler.err
    assert "Traceback" not in scheduler.err
    assert "teardown Scheduler" in scheduler.out


def test_an_old_scheduler_plugin_is_added_by_a_preload(home):
    """As in the documentation of dask, but for the import."""
    home.file(
        "scheduler-setup.py",
        "from hpcdask.diagnostics.plugin import SchedulerPlugin\n"
        "class MyPlugin(SchedulerPlugin):\n"
        "    def start(self, scheduler):\n"
        "        print('started', scheduler.status, flush=True)\n"
        "    def add_worker(self, scheduler=None, worker=None, **kwargs):\n"
        "        print('Added a new worker at:', worker, flush=True)\n"
        "    def close(self):\n"
        "        print('closed', flush=True)\n"
        "def dask_setup(scheduler):\n"
        "    scheduler.add_plugin(MyPlugin())\n",
    )
    scheduler, address = start_scheduler(home, "--preload", "scheduler-setup.py")
    worker = home.hpc_dask("worker", address, "--no-nanny")
    worker.line("Registered to: ")
    scheduler.line("Added a new worker at: tcp://")
    assert worker.end() == 0
    assert scheduler.end() == 0
    assert scheduler.out.startswith("started starting\n")
    assert scheduler.out.endswith("closed\n")


def test_a_preload_can_be_at_an_url(home, tmp_path):
    (tmp_path / "setup.py").write_text(PLAIN)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            scheduler, _ = start_scheduler(home, "--preload", f"{url}/setup.py")
            assert scheduler.out == "setup Scheduler starting\n"
            assert "unencrypted" in scheduler.err
            assert scheduler.end() == 0
            failed = home.hpc_dask("scheduler", "--port", "0", "--preload", f"{url}/none.py")
            failed.line("cannot preload 'http://.*/none.py': HTTPError: HTTP Error 404")
        finally:
            server.shutdown()
            thread.join()


def test_clients_have_preloads_too(home):
    home.file("preloaded.py", PLAIN)
    program = home.file(
        "program.py",
        "from hpcdask import Client, config\n"
        "config.set({'client.preload': ['preloaded.py']})\n"
        "with Client(n_workers=1, processes=False) as client:\n"
        "    print(client.submit(abs, -1).result())\n",
    )
    run = home.run("python", str(program))
    assert run.code() == 0
    assert run.out == "setup Client running\n1\nteardown Client\n"
