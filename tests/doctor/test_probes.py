"""Looking at this host, and reading what its programs say."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from hpcdask.doctor.findings import Finding, together
from hpcdask.doctor.options import DoctorOptions, checked_options
from hpcdask.doctor.probes import gathering, grants, launch, limits, network, places, spawning
from hpcdask.errors import ConfigError
from hpcdask.network import Interface
from hpcdask.rendezvous import user_token


@pytest.mark.parametrize(
    ("command", "text", "system"),
    [
        ("sbatch", "slurm 22.05.8", "Slurm 22.05.8"),
        ("sbatch", "slurm-wlm 21.08.5", "Slurm 21.08.5"),
        ("qstat", "pbs_version = 20.0.1", "PBS 20.0.1"),
        ("qstat", "Version: 6.1.2\nCommit: 661e0", "PBS 6.1.2"),
        ("qstat", "SGE 8.1.9\nusage: qstat [options]", "Grid Engine 8.1.9"),
        ("qstat", "UGE 8.6.0\nusage", "Grid Engine 8.6.0"),
        ("bsub", "IBM Spectrum LSF Standard 10.1.0.12", "LSF 10.1.0.12"),
        ("sbatch", "sbatch did not end within 5 s", "Slurm (sbatch did not end within 5 s)"),
        (
            "sbatch",
            "sbatch: error: no such host 10.1.1.1\nsbatch: fatal: no configuration source",
            "Slurm (sbatch: fatal: no configuration source)",
        ),
        (
            "qstat",
            'error: unable to read qmaster name: "/var/act_qmaster" has zero length',
            'Grid Engine (error: unable to read qmaster name: "/var/act_qmaster" has zero length)',
        ),
    ],
)
def test_batch_systems_are_told_by_what_their_commands_say(command, text, system):
    assert launch.batch_system_of(command, text) == system


@pytest.mark.parametrize(
    ("squeue", "why"),
    [
        ("echo", ""),
        ("echo squeue: cannot contact the controller >&2; exit 1", "cannot contact the controller"),
        ("exit 3", "exit code 3"),
        ("exec sleep 60", "did not end within 0.3 s"),
        (None, ""),
    ],
)
def test_a_batch_system_that_does_not_answer_is_told(tmp_path, monkeypatch, squeue, why):
    for name, line in (("sbatch", "exit 0"), ("squeue", squeue)):
        if line is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if squeue else str(tmp_path))
    monkeypatch.setattr(launch, "_PATIENCE", 0.3)
    found = launch.why_silent("sbatch")
    assert found.startswith("squeue") == bool(why)
    assert why in found
    assert found.count("squeue") <= 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],x", ["n08", "n09", "n10", "n12", "x"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_slurms_short_lists_of_nodes_are_expanded(text, names):
    assert launch.expand_node_list(text) == names


@pytest.mark.parametrize(
    ("variable", "content"),
    [("PBS_NODEFILE", "n1\nn1\nn2\n"), ("PE_HOSTFILE", "n1 4 all.q@n1 <NULL>\nn2 4 all.q@n2 UN\n")],
)
def test_hosts_of_a_job_are_read_from_its_node_file(tmp_path, variable, content):
    (tmp_path / "nodes").write_text(content)
    assert launch.job_nodes({variable: str(tmp_path / "nodes")}) == ["n1", "n2"]
    assert launch.job_nodes({variable: str(tmp_path / "none")}) == []


@pytest.mark.parametrize(
    ("environ", "names", "devices", "expected"),
    [
        ({}, [], 0, (0, "")),
        ({}, [], 2, (2, "/dev/nvidia*")),
        ({}, ["A100"] * 4, 4, (4, "nvidia-smi")),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, ["A100"] * 4, 4, (2, "CUDA_VISIBLE_DEVICES")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["A100"] * 4, 4, (0, "CUDA_VISIBLE_DEVICES")),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["A100"], 1, (0, "CUDA_VISIBLE_DEVICES")),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ["A100"], 1, (1, "CUDA_VISIBLE_DEVICES")),
        ({"CUDA_VISIBLE_DEVICES": "MIG-5c,MIG-7a"}, [], 1, (2, "CUDA_VISIBLE_DEVICES")),
        ({"ROCR_VISIBLE_DEVICES": "0"}, [], 0, (1, "ROCR_VISIBLE_DEVICES")),
    ],
)
def test_gpus_are_counted_as_the_driver_does(environ, names, devices, expected):
    assert grants.count_gpus(environ, names, devices) == expected


def test_names_of_gpus_are_read():
    text = (
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c0b)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-7a1c)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-99aa)\n"
    )
    assert grants.parse_gpu_list(text) == ["NVIDIA A100-SXM4-40GB"] * 2


def test_every_source_of_a_grant_is_named():
    found = grants.look(with_gpus=False)
    assert found["cpus"] == min(found["cpu_sources"].values())
    assert found["cpu_sources"]["affinity"] == len(found["affinity"])
    assert found["memory"] == min(found["memory_sources"].values())


# -- Network --------------------------------------------------------------------------------------

HAVE = [
    Interface("lo", True, ("127.0.0.1", "::1")),
    Interface("eth0", True, ("fe80::1%eth0", "fd00::5", "192.168.0.5")),
    Interface("ib0", True, ("10.1.0.5",)),
    Interface("ib1", False, ("10.2.0.5",)),
    Interface("hsn0", True, ("fe80::2%hsn0",)),
]


def test_candidates_are_interfaces_that_are_up_with_an_address_for_more_than_one_link():
    places_found, problem = network.candidate_places("", HAVE)
    assert problem == ""
    assert [tuple(place.values()) for place in places_found] == [
        ("eth0", "192.168.0.5"),
        ("ib0", "10.1.0.5"),
    ]


def test_a_named_interface_is_the_only_candidate():
    assert network.candidate_places("ib*", HAVE) == (
        [{"interface": "ib0", "address": "10.1.0.5"}],
        "",
    )
    assert network.candidate_places("10.1.0.0/16", HAVE)[0][0]["interface"] == "ib0"


def test_a_host_without_the_named_interface_says_what_it_has():
    found, problem = network.candidate_places("mlx0", HAVE)
    assert found == []
    assert "no network interface 'mlx0'" in problem
    assert "ib0 (10.1.0.5)" in problem


def test_ports_in_use_are_not_free(free_ports):
    taken, first = free_ports
    found = network.look("", f"{first}:{first}")["ports"]
    assert (found["free"], found["first_free"], found["last_free"]) == (1, first, first)
    found = network.look("", f"{taken}:{taken}")["ports"]
    assert found["free"] == 0
    assert found["problem"] == f"port {taken}: Address already in use"


@pytest.fixture
def free_ports():
    import socket

    with socket.socket() as sock, socket.socket() as other:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        other.bind(("0.0.0.0", 0))
        port = other.getsockname()[1]
        other.close()
        yield sock.getsockname()[1], port


# -- Folders --------------------------------------------------------------------------------------


def test_a_folder_that_can_be_used_leaves_no_trace(tmp_path):
    found = places.look_at_folder(str(tmp_path), True)
    assert found["problem"] == ""
    assert found["keeps_modes"]
    assert found["filesystem"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_says_so(tmp_path):
    assert (
        places.look_at_folder(str(tmp_path / "x"), True)["problem"] == "No such file or directory"
    )


def environ_of(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}


def test_a_token_that_is_not_there_yet_is_not_made(tmp_path):
    found = places.look_at_token(environ_of(tmp_path))
    assert (found["exists"], found["problem"]) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_a_token_file_is_described_and_not_shown(tmp_path):
    path = tmp_path / "hpcdask" / "token"
    token = user_token(path)
    found = places.look_at_token(environ_of(tmp_path))
    assert (found["source"], found["mode"], found["folder_mode"]) == (str(path), "0600", "0700")
    assert token.hex()[:12] not in str(found)
    assert found == places.look_at_token(environ_of(tmp_path))


def test_a_token_file_that_others_can_read_comes_with_its_cure(tmp_path):
    path = tmp_path / "hpcdask" / "token"
    user_token(path)
    path.chmod(0o644)
    found = places.look_at_token(environ_of(tmp_path))
    assert found["mode"] == "0644"
    assert f"chmod 600 {path}" in found["problem"]


def test_a_named_token_file_has_to_be_there(tmp_path):
    environ = {"HPCDASK_TOKEN_FILE": str(tmp_path / "none")}
    assert "HPCDASK_TOKEN_FILE" in places.look_at_token(environ)["problem"]


def test_a_token_in_the_environment_has_no_file():
    found = places.look_at_token({"HPCDASK_TOKEN": "ab" * 32})
    assert (found["source"], found["mode"], found["problem"]) == ("HPCDASK_TOKEN", "", "")


def test_a_token_that_cannot_be_made_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    found = places.look_at_token({"XDG_CONFIG_HOME": str(tmp_path / "file")})
    assert "cannot read the token file" in found["problem"]
    (tmp_path / "closed").mkdir(0o500)
    found = places.look_at_token({"XDG_CONFIG_HOME": str(tmp_path / "closed")})
    # Root may write anywhere.
    assert ("cannot be made" in found["problem"]) == (os.geteuid() != 0)


def test_scratch_is_measured(tmp_path):
    found = places.look_at_scratch(str(tmp_path))
    assert found["problem"] == ""
    assert 0 < found["free"] <= found["total"]
    assert found["path"].startswith(str(tmp_path))
    assert list(Path(found["path"]).iterdir()) == []


def test_scratch_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    assert (
        "cannot make the scratch folder"
        in places.look_at_scratch(str(tmp_path / "file"))["problem"]
    )


# -- Processes and limits -------------------------------------------------------------------------


def test_a_process_is_started():
    found = spawning.look(30)
    assert found["problem"] == ""
    assert 0 < found["seconds"] < 30


def test_a_process_that_cannot_be_started_says_why(monkeypatch):
    monkeypatch.setattr(spawning.sys, "executable", "/nowhere/python")
    assert spawning.look(30)["problem"] == "No such file or directory"


def test_threads_count_as_tasks_of_the_user(tmp_path):
    (tmp_path / str(os.getpid())).symlink_to("/proc/self")  # a /proc with no process but this one
    meeting, release = threading.Barrier(6), threading.Event()

    def hold():
        meeting.wait(10)
        release.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        meeting.wait(10)
        # Other tests may have left threads that are about to end.
        process = psutil.Process()
        wait_until(lambda: limits.tasks_of_user(tmp_path) == process.num_threads())
        assert process.num_threads() >= 6
        assert limits.look()["processes_used"] >= 6
    finally:
        release.set()
        for thread in threads:
            thread.join()


# -- All together ---------------------------------------------------------------------------------


def test_a_probe_that_hangs_holds_up_nothing_else(monkeypatch, tmp_path):
    release = threading.Event()
    monkeypatch.setattr(places, "look_at_scratch", lambda spec: release.wait(60))
    for slow in (spawning, launch):  # which take their time where others compute, too
        monkeypatch.setattr(slow, "look", lambda *args: {})
    try:
        facts = asyncio.run(gathering.look_at_host(DoctorOptions(folder=str(tmp_path)), 1.0))
    finally:
        release.set()
    assert facts["errors"] == {"scratch": "it did not end within 1 s"}
    assert "scratch" not in facts
    assert facts["folder"]["problem"] == ""
    assert facts["grants"]["cpus"] >= 1


GIVEN = {
    "interface": None,
    "scheduler_file": None,
    "shared_folder": None,
    "port_range": None,
    "local_directory": None,
    "nworkers": 0,
    "timeout": "60s",
    "fast": False,
}


def test_options_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checked_options(**GIVEN) == DoctorOptions(folder=str(tmp_path))
    given = {**GIVEN, "scheduler_file": "sub/s.json", "timeout": "2 min"}
    found = checked_options(**given)
    assert (found.folder, found.is_folder_asked) == (str(tmp_path / "sub"), True)
    assert found.timeout == 120


@pytest.mark.parametrize(
    "wrong",
    [
        {"scheduler_file": "s.json", "shared_folder": "."},
        {"timeout": "0.5s"},
        {"timeout": "soon"},
        {"port_range": "9:1"},
        {"port_range": "0"},
        {"interface": "10.1.0.0/99"},
        {"interface": ","},
    ],
)
def test_options_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        checked_options(**{**GIVEN, **wrong})


def test_an_interface_that_this_host_lacks_is_no_wrong_option():
    assert checked_options(**{**GIVEN, "interface": "hsn*"}).interface == "hsn*"


def test_equal_words_about_several_hosts_are_one_finding():
    x, y = (Finding("red", "scratch", f"{word} {{on}}", "cure") for word in ("x", "y {not}"))
    found = list(together({"a": [x], "b": [], "c": [x], "d": [y]}))
    assert [(f.what, f.hosts) for f in found] == [
        ("x on a and c", ("a", "c")),
        ("y {not} on d", ("d",)),
    ]
