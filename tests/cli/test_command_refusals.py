"""What cannot work is said in one line, with code 1 for the world and 2 for the options.

The options are weighed before anything is started: these commands run in this very process.
"""

from __future__ import annotations

import socket

import pytest

TOKEN = "ab" * 32
#: Of a scheduler that nobody gets to ask.
SOMEWHERE = "tcp://127.0.0.1:1"


def assert_one_line(command, code, *expected):
    """The command has ended with `code` and one line, which has all of `expected` in it."""
    assert command.code() == code
    lines = command.err.splitlines()
    assert len(lines) == 1, command.err
    for text in expected:
        assert text in lines[0]
    assert command.out == ""


@pytest.fixture
def taken_port():
    with socket.create_server(("", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--interface nope0", "no network interface 'nope0' on"),
        ("--scheduler-file missing/s.json", "the folder missing does not exist"),
        ("--scheduler-file /sys/s.json", "you may not write to the folder /sys"),
        ("--host nosuch.invalid", "cannot listen on nosuch.invalid"),
        ("--host 192.0.2.1", "this machine has no such address"),
        ("--token-file missing", "there is no token file missing"),
        ("--preload missing.py", "cannot preload 'missing.py': there is no such file"),
        ("--preload nosuchmodule", "cannot preload 'nosuchmodule': ModuleNotFoundError"),
        ("--pid-file missing/pid", "cannot write --pid-file missing/pid"),
    ],
)
def test_a_scheduler_that_cannot_start_says_why_in_one_line(home, options, expected):
    command = home.hpc_dask("scheduler", *options.split(), "--port", "0")
    assert_one_line(command, 1, "hpc-dask scheduler: ", expected)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--port 9001:9000", "'9001:9000' is no port or range of ports"),
        ("--port 65536", "'65536' is no port"),
        ("--port eight", "'eight' is no port"),
        ("--port 0 --idle-timeout soon", "'soon' is not a duration"),
        ("--port 0 --worker-ttl soon", "'soon' is not a duration"),
        ("--port 0 --worker-ttl -1s", "'-1s' is not a duration"),
    ],
)
def test_options_that_a_scheduler_cannot_have_are_refused(here, options, expected):
    assert_one_line(here("scheduler", *options.split()), 2, "hpc-dask scheduler: ", expected)


def test_the_code_of_a_refusal_is_that_of_the_process(home):
    for words in (["scheduler", "--port", "eight"], ["worker", SOMEWHERE, "--nworkers", "0"]):
        assert_one_line(home.hpc_dask(*words), 2, f"hpc-dask {words[0]}: ")


def test_a_scheduler_refuses_a_port_that_is_in_use(home, taken_port):
    command = home.hpc_dask("scheduler", "--port", taken_port)
    assert_one_line(command, 1, f"port {taken_port}: it is in use; choose another")


def test_a_scheduler_refuses_a_range_of_ports_that_are_all_in_use(home, taken_port):
    command = home.hpc_dask("scheduler", "--port", f"{taken_port}:{taken_port}")
    assert_one_line(command, 1, "in use; choose another")


def test_a_token_file_that_others_can_read_is_refused_with_the_cure(home):
    path = home.file("token", TOKEN)
    path.chmod(0o644)
    command = home.hpc_dask("scheduler", "--port", "0", "--token-file", path)
    assert_one_line(command, 1, "open to other users", f"chmod 600 {path}")
    assert TOKEN not in command.err


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1 / 0\n", "cannot preload 'bad.py': ZeroDivisionError: division by zero"),
        ("def dask_setup(x):\n    1 / 0\n", "dask_setup of preload 'bad.py' failed: ZeroDivision"),
        ("def (\n", "cannot preload 'bad.py': SyntaxError: invalid syntax"),
    ],
)
@pytest.mark.parametrize("command", ["scheduler", "worker", "worker --no-nanny"])
def test_a_preload_that_raises_is_named_with_its_line(visitor, standing, command, text, what):
    visitor.file("bad.py", text)
    words = [*command.split(), "--preload", "bad.py"]
    words += ["--port", "0"] if command == "scheduler" else [standing.address]
    line = len(text.splitlines())
    assert_one_line(visitor.hpc_dask(*words), 1, what, "bad.py", f"line {line}")


def test_a_preload_of_the_nanny_that_is_missing_is_named(visitor, standing):
    command = visitor.hpc_dask("worker", standing.address, "--preload-nanny", "missing.py")
    assert_one_line(command, 1, "cannot preload 'missing.py': there is no such file")


def test_wrong_arguments_of_a_preload_are_told_as_click_tells_them(home):
    home.file(
        "command.py",
        "import click\n@click.command()\n@click.option('--n', type=int)\n"
        "def dask_setup(service, n): pass\n",
    )
    command = home.hpc_dask("scheduler", "--port", "0", "--preload", "command.py", "--", "--n", "x")
    assert_one_line(command, 1, "dask_setup of preload 'command.py' failed: ", "'x' is not a valid")


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("tcp://127.0.0.1:1", "cannot reach tcp://127.0.0.1:1 within 0.5 s: Connection refused"),
        ("nosuch.invalid:8786", "cannot reach tcp://nosuch.invalid:8786 within 0.5 s"),
        ("--scheduler-file missing.json", "scheduler file missing.json does not exist"),
        ("HERE --interface nope0", "no network interface 'nope0' on"),
        ("HERE --host 192.0.2.1", "this machine has no such address"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    visitor, standing, nanny, options, expected
):
    words = options.replace("HERE", standing.address).split()
    command = visitor.hpc_dask("worker", *words, "--death-timeout", "0.5", nanny)
    assert_one_line(command, 1, "hpc-dask worker: ", expected)
    command.all_gone()
    assert visitor.left_in_scratch() == []


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("HERE --local-directory /sys/x", "/sys/x"),
        ("HERE --interface 10.1.0.0/99", "'10.1.0.0/99' is not a subnet"),
        ("HERE --memory-limit lots", "'lots' is not a size"),
        ("HERE --worker-port 9001:9000", "'9001:9000' is no port or range of ports"),
        ("HERE --death-timeout soon", "'soon' is not a duration"),
        ("HERE --reconnect-timeout soon", "'soon' is not a duration"),
        ("HERE --drain-timeout soon", "'soon' is not a duration"),
        ("HERE --walltime soon", "'soon' is not a duration"),
        ("HERE --walltime 90", "'90' means other things to other batch systems"),
        ("HERE --walltime-margin soon", "'soon' is not a duration"),
        ("HERE --lifetime soon", "'soon' is not a duration"),
        ("HERE --lifetime 0", "a lifetime of 0 s is none"),
        ("HERE --lifetime 1min --lifetime-stagger 1h", "cannot be 3600 s shorter"),
        ("HERE --lifetime-stagger 1h", "lifetime-stagger means nothing without a lifetime"),
        ("HERE --resources GPU", "'GPU' is no resource; write NAME=NUMBER"),
        ("HERE --resources GPU=-1", "-1.0 is no amount of the resource 'GPU'"),
        ("HERE --interface lo --host 127.0.0.1", "give either --interface or --host"),
        ("HERE --contact-address tcp://a:1", "--contact-address needs --listen-address"),
        ("HERE --listen-address tcp://:1 --host a", "give either --listen-address or"),
        ("HERE --listen-address tcp://:1 --worker-port 1", "give either --listen-address or"),
        ("HERE --listen-address nonsense://", "'nonsense://'"),
        ("bad://host:1", "unknown protocol in 'bad://host:1'"),
        ("", "no scheduler given"),
    ],
)
def test_options_that_a_worker_cannot_have_are_refused(here, nanny, options, expected):
    words = options.replace("HERE", SOMEWHERE).split()
    assert_one_line(here("worker", *words, nanny), 2, "hpc-dask worker: ", expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--no-nanny --nworkers 2", "--no-nanny runs one worker"),
        ("--no-nanny --preload-nanny x.py", "--preload-nanny needs a nanny"),
        ("--no-nanny --lifetime 1h --lifetime-restart", "--lifetime-restart needs a nanny"),
        ("--lifetime-restart", "lifetime-restart means nothing without a lifetime"),
        ("--nworkers 0", "--nworkers 0 gives 0 workers"),
        ("--nworkers -1000", "workers on"),
        ("--nworkers few", "'few' is neither a number nor 'auto'"),
        ("--nworkers 3 --worker-port 9000:9001", "3 workers need 3 ports; 9000:9001 has 2"),
        ("--nworkers 2 --worker-port 9000", "2 workers need 2 ports; 9000 has 1"),
        ("--nworkers 2 --listen-address tcp://:9000", "--listen-address is one address"),
    ],
)
def test_options_of_workers_that_contradict_each_other_are_refused(here, options, expected):
    command = here("worker", SOMEWHERE, *options.split())
    assert_one_line(command, 2, "hpc-dask worker: ", expected)


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_refuses_a_port_that_is_in_use(visitor, standing, taken_port, nanny):
    command = visitor.hpc_dask("worker", standing.address, "--worker-port", taken_port, nanny)
    assert_one_line(command, 1, f"port {taken_port}: it is in use; choose another")


@pytest.mark.parametrize("command", ["scheduler", "worker"])
def test_an_unknown_option_is_a_usage_error(here, command):
    run = here(command, "--nosuch")
    assert run.code() == 2
    assert "No such option" in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_another_token_is_refused_with_one_line_on_both_sides(home, nanny):
    scheduler = home.hpc_dask("scheduler", "--port", "0")
    address = scheduler.line(r"Scheduler at: +(tcp://\S+)")
    before = scheduler.err
    worker = home.hpc_dask("worker", address, nanny, HPCDASK_TOKEN=TOKEN)
    assert_one_line(worker, 1, f"cannot connect to {address}", "another cluster token")
    scheduler.line("refused a connection")
    assert scheduler.end() == 0
    after = scheduler.err.removeprefix(before).splitlines()
    assert len([line for line in after if "Scheduler closed" not in line]) == 1, after


def test_a_scheduler_without_authentication_admits_only_who_asks_for_that(home):
    scheduler = home.hpc_dask("scheduler", "--port", "0", "--no-auth")
    scheduler.line("authentication is off: anybody who reaches this port")
    address = scheduler.line(r"Scheduler at: +(tcp://\S+)")
    assert_one_line(home.hpc_dask("worker", address), 1, "hpc-dask worker: ", "--no-auth")
    worker = home.hpc_dask("worker", address, "--no-auth")
    worker.line("Registered to: ")
    assert worker.end() == 0


def test_a_misspelt_option_of_run_is_not_taken_for_the_script(here):
    command = here("run", "--nthread", "1", "script.py")
    assert command.code() == 2
    assert "No such option '--nthread'" in command.err
