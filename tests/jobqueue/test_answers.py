"""What the answers of several batch systems have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saying import said

from hpcdask.errors import StatusError
from hpcdask.jobqueue.answers import (
    Exit,
    complete,
    indices,
    of_shell_code,
    of_wait_status,
    ranges,
    seconds,
)
from hpcdask.jobqueue.status import End, Phase
from hpcdask.jobqueue.system import chunks
from hpcdask.jobqueue.systems import WORKER_SYSTEMS


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("0:00", 0),
        ("9:58", 598),
        ("1:30:00", 5400),
        ("2-12:00:01", 60 * 3600 + 1),
        ("100:00:00", 360_000),
        ("INVALID", None),  # squeue's, of a job that is over its time
        ("UNLIMITED", None),
        ("N/A", None),
        ("", None),
    ],
)
def test_times_are_read_and_words_are_no_time(clock, expected):
    assert seconds(clock) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("1-3", [1, 2, 3]),
        ("1-3:1", [1, 2, 3]),  # Grid Engine
        ("1-7:3,9", [1, 4, 7, 9]),
        ("[1-2,5%4]", [1, 2, 5]),  # Slurm: four of them at a time
        ("", []),
    ],
)
def test_indices_of_an_array_are_read(text, expected):
    assert list(indices(text)) == expected


@given(st.sets(st.integers(0, 300)))
def test_ranges_are_read_as_what_they_were_made_of(numbers):
    assert list(indices(ranges(numbers))) == sorted(numbers)


def test_a_job_leaves_a_code_or_a_signal():
    assert of_wait_status(768) == Exit(3, None)
    assert of_wait_status(15) == Exit(None, 15)
    assert of_shell_code(3) == Exit(3, None)
    assert of_shell_code(137) == Exit(None, 9)
    assert of_shell_code(255) == Exit(255, None)
    assert Exit(0).end is End.COMPLETED
    assert {Exit(1).end, Exit(None, 9).end, Exit().end} == {End.FAILED}


def test_a_command_that_failed_has_told_nothing():
    with pytest.raises(StatusError) as caught:
        complete("Slurm", said("half a list\n", "Unable to contact slurm controller\n", 1))
    words = str(caught.value)
    assert "Slurm gave no complete listing of jobs (exit code 1)" in words
    assert "Unable to contact slurm controller" in words


def test_many_ids_are_cut_into_several_commands():
    assert chunks(map(str, range(5)), 2) == [["0", "1"], ["2", "3"], ["4"]]
    for system in WORKER_SYSTEMS.values():
        ids = [id for n in range(10, 400) for id in system.elements(str(n), 1)]
        commands = system.cancel_commands(ids)
        assert len(commands) == -(-len(ids) // 100)
        assert max(len(" ".join(command)) for command in commands) < 100_000
        assert {command[0] for command in commands} == {system.cancel_command}


@pytest.mark.parametrize("system", WORKER_SYSTEMS.values(), ids=lambda system: system.name)
@pytest.mark.parametrize(
    "answer",
    [
        said("", "cannot connect to server (errno=111)\n", 255),
        said("", "Segmentation fault\n", -11),
        said("<html>502 Bad Gateway</html>\n"),
        said("Please wait, maintenance until 12:00\n"),
    ],
    ids=["server down", "killed", "a web page", "a notice"],
)
def test_what_is_no_listing_is_never_an_empty_one(system, answer):
    with pytest.raises(StatusError):
        system.parse_status(answer)
    with pytest.raises(StatusError):
        system.parse_ends(answer)


@pytest.mark.parametrize("end", End)
def test_every_end_is_a_failure_or_none(end):
    failures = {End.FAILED, End.OUT_OF_MEMORY, End.LAUNCH_FAILED}
    assert end.is_failure == (end in failures)
    assert Phase.ENDED.value == "ended"
