"""What tasks print, warn of and log, shown where the client is."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import pytest
from waiting import wait_until

import hpcdask
from hpcdask import Client, ForwardOutput
from hpcdask.plugins.forwarding import as_plain
from hpcdask.plugins.output import show_printed, show_warning


def step(n: int) -> int:
    hpcdask.print("step", n, sep="=", end=";\n")
    hpcdask.print("trouble", file=sys.stderr)
    return n


def say(text: str, flush: bool = False) -> None:
    print(text, end="", flush=flush)


def test_outside_of_tasks_they_are_the_builtins(capsys: pytest.CaptureFixture[str]) -> None:
    hpcdask.print("here", 3, sep="-")
    assert capsys.readouterr().out == "here-3\n"
    with pytest.warns(UserWarning, match="careful") as warned:
        hpcdask.warn("careful")
    assert warned[0].filename == __file__


def test_what_a_task_prints_is_printed_by_clients(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # Workers write to the descriptors that they were started with, and not to what is read here.
    assert client.submit(step, 3).result(timeout=10) == 3
    out = err = ""

    def has_come() -> bool:
        nonlocal out, err
        captured = capsys.readouterr()
        out, err = out + captured.out, err + captured.err
        return "step=3;\n" in out and "trouble\n" in err

    wait_until(has_come)
    assert out.count("step=3;\n") == 1

    def to_a_file() -> None:
        hpcdask.print("lost", file=open("/dev/null", "w"))  # noqa: SIM115

    with pytest.raises(TypeError, match=r"takes sys.stdout or sys.stderr as file="):
        client.submit(to_a_file).result(timeout=10)


def test_what_a_task_warns_of_is_a_warning_of_clients(client: Client) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        client.submit(hpcdask.warn, "will change", FutureWarning).result(timeout=10)
        wait_until(lambda: len(warned) > 0)
    assert (warned[0].category, str(warned[0].message)) == (FutureWarning, "will change")


def test_output_of_this_process_is_not_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with Client(n_workers=1, processes=False) as client:
        client.register_plugin(ForwardOutput(), timeout=20)
        client.submit(step, 4).result(timeout=10)
        client.submit(say, "plain\n").result(timeout=10)
        seen = client.get_events("print")
        wait_until(lambda: len(client.get_events("print")) >= 3)
        assert len(seen) >= 2
    text = capsys.readouterr().out
    assert text.count("step=4;\n") == 1
    assert text.count("plain\n") == 1
    assert sys.stdout.write.__name__ == "write"
    assert not hasattr(sys.stdout.write, "__self__") or "Forwarded" not in repr(
        sys.stdout.write.__self__  # type: ignore[attr-defined]
    )


def test_events_that_a_user_logs_under_these_topics_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_printed((0.0, "a word"))
    assert capsys.readouterr().out == "a word\n"
    with pytest.warns(UserWarning, match="mind the gap"):
        show_warning((0.0, "mind the gap"))


def test_all_that_workers_print_comes_line_by_line(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.register_plugin(ForwardOutput(), timeout=20)
    here = next(iter(client.nthreads()))

    def printed() -> list[str]:
        return ["".join(msg["args"]) for _, msg in client.get_events("print")][n:]

    n = len(client.get_events("print"))
    for text in ("one ", "line\nand ", "half"):
        client.submit(say, text, workers=here, pure=False).result(timeout=10)
    wait_until(lambda: printed() == ["one line\n"])
    client.submit(say, "", True, workers=here).result(timeout=10)
    wait_until(lambda: printed() == ["one line\n", "and half"])

    def warn_by_logging() -> None:
        logging.getLogger("hpcdask").warning("logged to stderr")

    client.run(warn_by_logging, workers=here)
    wait_until(lambda: any("logged to stderr" in text for text in printed()))
    client.unregister_worker_plugin("forward-output", timeout=20)
    n = len(client.get_events("print"))
    client.submit(say, "for nobody\n", workers=here).result(timeout=10)
    client.log_event("print", "last")
    assert client.get_events("print")[n:][-1][1] == "last"
    assert len(client.get_events("print")[n:]) == 1


class Keeps(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_what_workers_log_is_handled_here(client: Client) -> None:
    def work(level: int) -> None:
        logger = logging.getLogger("of_tasks.inner")
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logger.log(
                level, "failed %d times", 3, exc_info=True, extra={"run": 7, "odd": object()}
            )

    kept = Keeps()
    logging.getLogger("of_tasks").addHandler(kept)
    try:
        client.forward_logging("of_tasks", level="ERROR", timeout=20)
        client.submit(work, logging.WARNING).result(timeout=10)  # too low
        client.submit(work, logging.ERROR).result(timeout=10)
        wait_until(lambda: kept.records)
        (record,) = kept.records
        assert record.getMessage() == "failed 3 times"
        assert (record.name, record.levelname) == ("of_tasks.inner", "ERROR")
        assert record.worker in client.nthreads()
        assert record.run == 7
        assert "ZeroDivisionError: division by zero" in logging.Formatter().format(record)

        client.unforward_logging("of_tasks", timeout=20)
        assert not any(client.run(lambda dask_worker: list(dask_worker.plugins)).values())
        with pytest.raises(ValueError, match="has not subscribed"):
            client.unforward_logging("of_tasks", timeout=20)
    finally:
        logging.getLogger("of_tasks").removeHandler(kept)


def test_a_record_is_sent_as_text_and_numbers() -> None:
    record = logging.LogRecord("name", 30, "file.py", 3, "%s of %s", (1, object), None)
    sent = as_plain(record)
    assert sent["msg"] == "1 of <class 'object'>"
    assert {type(value) for value in sent.values()} <= {str, int, float, bool, type(None)}
