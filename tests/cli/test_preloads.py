"""``--preload``: modules and files that are set up before, and torn down after, a service runs."""

from __future__ import annotations

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
