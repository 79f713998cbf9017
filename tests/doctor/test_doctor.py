"""``hpc-dask doctor`` on this machine, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask.doctor.facts import Examination, HostFacts

MPIRUN = shlex.split(os.environ.get("MPIRUN", "mpirun --map-by :OVERSUBSCRIBE --bind-to none"))
MPIRUN[0] = shutil.which(MPIRUN[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def doctor(home, *options, **env):
    return home.hpc_dask("doctor", *options, **env)


def reds(document):
    return [each for each in document["findings"] if each["severity"] == "red"]


def test_this_machine_alone_is_well_and_nothing_is_left(home):
    command = doctor(home, "--interface", "lo")
    assert command.code() == 0, command
    assert command.err == ""
    lines = command.out.splitlines()
    assert re.match(r"hpc-dask \S+ doctor, 1 host, \d+\.\d s: ", lines[0])
    assert len(lines) < 40
    assert not any(line.startswith("FAIL") for line in lines)
    labels = {line.split()[0] for line in lines[1:] if line[:1].strip()}
    wanted = {"hosts", "Python", "MPI", "batch", "CPUs", "memory", "GPUs", "scratch", "token"}
    assert wanted <= labels
    assert "\033[" not in command.out
    assert home.left_in_scratch() == []
    assert [path.name for path in home.folder.glob("*doctor*")] == []
    assert not (home.folder / "config").exists()


def test_json_has_the_documented_keys(home):
    command = doctor(home, "--json", "--interface", "lo", "--port-range", "20000:20010")
    assert command.code() == 0, command
    document = json.loads(command.out)
    assert set(document) == {"ok", "findings", *Examination.__annotations__}
    assert document["ok"] is True
    (facts,) = document["hosts"].values()
    assert set(facts) == set(HostFacts.__annotations__)
    assert facts["errors"] == {}
    ports = facts["network"]["ports"]
    assert ports["total"] == 11
    # At both ends of the range, on the one interface.
    (host,) = document["hosts"]
    assert [(each["source"], each["target"]) for each in document["reached"]] == [(host, host)] * 2
    assert {each["address"] for each in document["reached"]} == {
        f"127.0.0.1:{ports['first_free']}",
        f"127.0.0.1:{ports['last_free']}",
    }
    assert all(0 < each["seconds"] < 1 for each in document["reached"])


def test_every_key_of_the_document_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    from hpcdask.doctor import facts

    for kind in vars(facts).values():
        if isinstance(kind, type) and kind not in (facts.RankFacts, facts.TypedDict):
            for key in getattr(kind, "__annotations__", {}):
                assert f"`{key}`" in page, f"{kind.__name__}.{key} is not in docs/doctor.md"


def test_a_low_hard_limit_is_red_with_the_limit_that_is_needed(home):
    prlimit = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 300)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = home.run(
        *(sys.executable, "-c", prlimit, "-m", "hpcdask", "doctor", "--interface", "lo"),
        *("--nworkers", "100"),
    )
    assert command.code() == 1
    text = " ".join(command.out.split())
    assert "a process may open 300 files" in text
    assert "100 workers need 456" in text
    assert "-> ask the administrators for 456 open files" in text


def test_a_folder_that_cannot_be_written_is_red_only_if_it_is_named(home):
    # Nobody can make files there, not even root.
    named = doctor(home, "--shared-folder", "/proc/self", "--interface", "lo")
    named_by_file = doctor(home, "--scheduler-file", "/proc/self/s.json", "--interface", "lo")
    assert named.code() == named_by_file.code() == 1
    for command in (named, named_by_file):
        assert "FAIL  a scheduler file cannot be written into /proc/" in command.out
        assert "--shared-folder" in command.out


def test_a_token_file_that_others_can_read_is_red(home):
    folder = home.folder / "config" / "hpcdask"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "token").write_text("ab" * 32)
    (folder / "token").chmod(0o644)
    command = doctor(home, "--json", "--interface", "lo")
    assert command.code() == 1
    (red,) = reds(json.loads(command.out))
    assert red["subject"] == "token"
    assert red["cure"].startswith(f"run: chmod 600 {folder / 'token'}")
    assert "abab" not in command.out


def test_an_interface_that_is_not_there_is_red(home):
    command = doctor(home, "--fast", HPCDASK_WORKER__INTERFACE="hsn*")
    assert command.code() == 1
    text = " ".join(command.out.split())
    assert "no network interface 'hsn*'" in text
    assert "(worker.interface is from HPCDASK_WORKER__INTERFACE)" in text


def test_a_misspelt_setting_is_red(home):
    command = doctor(home, "--json", "--interface", "lo", HPCDASK_COMM_MAX_BUFFER="1GiB")
    assert command.code() == 1
    (red,) = reds(json.loads(command.out))
    assert "HPCDASK_COMM_MAX_BUFFER" in red["what"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--timeout", "soon"], "is not a duration"),
        (["--timeout", "0.5s"], "too short"),
        (["--port-range", "9:1"], "no port or range"),
        (["--scheduler-file", "x", "--shared-folder", "."], "either"),
        (["--nworkers", "0"], "nworkers"),
    ],
)
def test_an_option_that_cannot_be_so_ends_with_2(home, options, words):
    command = doctor(home, *options)
    assert command.code() == 2
    assert words in command.err
    assert command.out == ""


# -- Several ranks --------------------------------------------------------------------------------


def by_hand(home, rank, size, *options, **env):
    """A rank as an ssh loop would start it."""
    numbers = {"HPCDASK_RANK": str(rank), "HPCDASK_SIZE": str(size), "HPCDASK_LAUNCH_ID": "test"}
    return doctor(home, *options, **{**numbers, **env})


def test_a_rank_that_never_comes_is_named_in_time_and_holds_up_nobody(home):
    options = ("--json", "--interface", "lo", "--timeout", "14s")
    first = by_hand(home, 0, 3, *options)
    second = by_hand(home, 1, 3, *options)
    assert first.code() == 1
    assert second.code() == 0, second
    document = json.loads(first.out)
    assert document["missing_ranks"] == [2]
    assert [each["rank"] for each in document["ranks"]] == [0, 1]
    assert [each["what"] for each in reds(document)] == ["rank 2 never reported"]
    assert 7 < document["seconds"] < 14
    assert [path.name for path in home.folder.rglob("*doctor*")] == []


def test_a_rank_without_rank_0_gives_up_and_says_what_it_has_looked_for(home):
    command = by_hand(home, 1, 2, "--timeout", "1s", "--fast")
    assert command.code() == 0
    assert "hpc-dask doctor: rank 1 of 2 on " in command.err
    assert "hpc-dask-doctor-test.json" in command.err
    assert command.out == ""


def test_a_signal_ends_rank_0_and_its_files_go_with_it(home):
    command = by_hand(home, 0, 2)
    name = "hpc-dask-doctor-test.json"
    wait_until((home.folder / name).exists, 30, f"{name} of {command}")
    assert command.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert [path.name for path in home.folder.rglob("*doctor*")] == []


@pytest.mark.skipif(MPIRUN[0] is None, reason="no mpirun here: pip install 'hpcdask[mpi]'")
def test_three_ranks_under_mpirun(home):
    command = home.run(*MPIRUN, "-np", "3", "hpc-dask", "doctor", "--json", **ROOT)
    assert command.code(60) == 0, command
    document = json.loads(command.out)
    assert document["size"] == 3
    assert document["launcher"] == "Open MPI"
    assert [each["rank"] for each in document["ranks"]] == [0, 1, 2]
    assert len(document["hosts"]) == 1
    (facts,) = document["hosts"].values()
    assert "mpirun" in facts["launch"]["mpirun_version"]
    assert reds(document) == []
    command.all_gone(5)
    assert [path.name for path in home.folder.rglob("*doctor*")] == []


@pytest.mark.skipif(MPIRUN[0] is None, reason="no mpirun here: pip install 'hpcdask[mpi]'")
def test_a_failure_is_the_exit_code_of_mpirun(home):
    words = ("doctor", "--fast", "--interface", "hsn0")
    command = home.run(*MPIRUN, "-np", "2", "hpc-dask", *words, **ROOT)
    assert command.code(60) == 1
    assert command.out.count("no network interface 'hsn0'") == 1
    assert "\033[" not in command.out
    command.all_gone(5)
