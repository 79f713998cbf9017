"""From facts of made-up hosts to findings."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import GIB, cut, examination

from hpcdask.doctor.checks import check
from hpcdask.doctor.facts import Examination
from hpcdask.doctor.findings import Finding, listing

MANY = tuple(f"n{number}" for number in range(1, 21))


def only(made: Examination) -> Finding:
    """The one finding that there is."""
    findings = check(made)
    assert len(findings) == 1, findings
    return findings[0]


def spoil(made: Examination, host: str, subject: str, **changes: Any) -> None:
    made["hosts"][host][subject].update(changes)  # type: ignore[literal-required]


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), MANY])
def test_sound_hosts_have_no_findings(names):
    assert check(examination(*names)) == []


# -- Ranks ----------------------------------------------------------------------------------------


def test_versions_that_differ_are_red_and_say_who_has_which():
    made = examination("a", "b", "c")
    spoil(made, "c", "software", packages={"hpcdask": "0.1.0", "msgpack": "1.0.2"})
    findings = check(made)
    assert [(f.severity, f.hosts) for f in findings] == [("red", ("c",)), ("red", ("c",))]
    assert [f.what for f in findings] == [
        "hosts have different versions of msgpack: 1.2.4 on a and b; 1.0.2 on c",
        "hosts have different versions of numpy: 2.4.6 on a and b; none on c",
    ]
    assert "one environment" in findings[0].cure


def test_another_python_is_red():
    made = examination("a", "b")
    spoil(made, "b", "software", python="3.12.1")
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what.endswith("of Python: CPython 3.11.7 on a; CPython 3.12.1 on b")


def test_ranks_that_never_reported_are_named_with_the_hosts_of_the_job_that_are_silent():
    made = examination("a", "b")
    made["size"], made["missing_ranks"], made["missing_hosts"] = 7, [2, 4, 5, 6], ["n3", "n4"]
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == (
        "ranks 2 and 4-6 never reported; nothing was heard of the job's n3 and n4"
    )
    assert "/home/u/run" in finding.cure


def test_a_rank_0_that_could_not_say_where_it_is_says_why():
    made = examination("a")
    made["size"], made["missing_ranks"], made["unwritten"] = 2, [1], ["/x: full", "/y: full"]
    assert only(made).what == (
        "rank 1 never reported; rank 0 could not write its address to /x: full; /y: full"
    )


def test_a_host_that_falls_silent_is_red():
    made = examination("a", "b", "c")
    made["silent"] = ["b", "c"]
    assert only(made).what == "b and c reported, and then did not answer any more"


@pytest.mark.parametrize(
    ("launcher", "library", "are_strangers"),
    [
        ("Open MPI", "Open MPI v5.0.8", False),
        ("Open MPI", "MPICH Version: 4.2.1", True),
        ("MPICH", "Open MPI v5.0.8", True),
        ("Intel MPI", "MPICH Version: 4.2.1", False),
        ("Slurm's srun", "MPICH Version: 4.2.1", False),
        ("Open MPI", "", False),
    ],
)
def test_an_mpirun_of_another_mpi_than_mpi4py_is_noted(launcher, library, are_strangers):
    made = examination("a", "b")
    made["launcher"] = launcher
    for name in ("a", "b"):
        spoil(made, name, "launch", mpi_library=library)
    assert [f.severity for f in check(made)] == ["yellow"] * are_strangers


def test_ranks_bound_to_one_core_each_are_noted():
    made = examination("a", "b", "c")  # the rank of the first has no worker
    for rank in made["ranks"]:
        rank["affinity"] = [3]
    finding = only(made)
    assert finding.severity == "yellow"
    assert finding.what == ("on b and c each worker may use one CPU, 1 of the 8 that the job has")
    assert "--bind-to none" in finding.cure


def test_more_ranks_than_cpus_are_noted():
    made = examination("a")
    made["ranks"] = [{**made["ranks"][0], "rank": n, "affinity": [0, 1]} for n in range(4)]
    assert only(made).what == "on a 3 workers share 2 CPUs"
    made["ranks"].pop()
    assert check(made) == []


# -- Connections ----------------------------------------------------------------------------------


def test_a_direction_that_fails_is_named_with_address_interface_and_reason():
    made = examination("a", "b", "c")
    cut(made, "a", "b", "no answer within 3 s")
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == "a cannot reach b at 10.1.0.2:40000 (ib0): no answer within 3 s"
    assert finding.hosts == ("a", "b")
    assert "firewall" in finding.cure


def test_the_cure_names_an_interface_by_which_all_reach_each_other():
    made = examination("a", "b", interfaces=("eth0", "docker0", "ib0"))
    cut(made, "a", "b", "Connection refused", "eth0")
    cut(made, "b", "a", "a answers there: several hosts have this address", "docker0")
    red, yellow = check(made)
    assert red.cure == "give --interface ib0, by which all hosts reach each other"
    assert (red.severity, yellow.severity) == ("red", "yellow")
    assert yellow.what.startswith("1 of 4 ways by docker0, which would not be used, fail, e.g. b")


def test_a_host_that_nobody_reaches_is_one_finding_and_not_one_for_each_pair():
    made = examination(*MANY)
    for name in MANY:
        if name != "n7":
            cut(made, name, "n7", "Connection refused")
    finding = only(made)
    assert finding.what == (
        "n1, n2, n3 and 16 more cannot reach n7 at 10.1.0.7:40000 (ib0): Connection refused"
    )
    assert "a firewall forbids it" in finding.cure


def test_a_host_that_reaches_nobody_is_one_finding():
    made = examination(*MANY)
    for name in MANY:
        if name != "n7":
            cut(made, "n7", name, "Network is unreachable")
    assert only(made).what == (
        "n7 cannot reach n1, n2, n3 and 16 more, e.g. at 10.1.0.8:40000 (ib0): "
        "Network is unreachable"
    ).replace("10.1.0.8", "10.1.0.1")


def test_a_path_that_drops_large_packets_is_red():
    made = examination("a", "b")
    made["carried"][0].update(bytes_per_second=None, reason="it connects, but 4 MiB do not arrive")
    finding = only(made)
    assert (finding.severity, finding.subject) == ("red", "bandwidth")


def test_a_faster_interface_is_recommended():
    made = examination("a", "b", interfaces=("eth0", "ib0"))
    for each in made["carried"]:
        each["bytes_per_second"] = 1e8 if each["interface"] == "eth0" else 2e9
    finding = only(made)
    assert finding.severity == "yellow"
    assert finding.what == "eth0 would be used, and ib0 is 20.0 times as fast"
    assert finding.cure == "give --interface ib0"


def test_a_host_without_the_interface_is_red_and_shows_what_it_has():
    made = examination("a", "b")
    problem = "no network interface 'hsn0' on b; it has lo (127.0.0.1). Name one of these"
    spoil(made, "b", "network", problem=problem, candidates=[], chosen=None)
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == "b: no network interface 'hsn0' on b; it has lo (127.0.0.1)"


def test_many_hosts_without_the_interface_are_put_together():
    made = examination(*MANY)
    made["interface"] = "hsn0"
    for name in MANY:
        problem = f"no network interface 'hsn0' on {name}; it has lo. Name one of these"
        spoil(made, name, "network", problem=problem, candidates=[], chosen=None)
    findings = check(made)
    assert len(findings) == 7
    assert findings[-1].what == (
        "14 more hosts have no usable interface 'hsn0': n7, n8, n9 and 11 more"
    )


def test_hosts_with_only_a_loopback_are_red_and_one_alone_is_noted():
    made = examination("a", "b")
    spoil(made, "b", "network", candidates=[], chosen=None)
    assert only(made).severity == "red"
    alone = examination("a")
    spoil(alone, "a", "network", candidates=[], chosen=None)
    assert only(alone).severity == "yellow"


def test_ports_that_are_taken_are_red():
    made = examination("a", "b")
    ports = made["hosts"]["b"]["network"]["ports"]
    ports.update(range="9000:9001", total=2, free=0, problem="port 9000: Address already in use")
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == "no port of 9000:9001 is free on b: port 9000: Address already in use"


def test_fewer_ports_than_ranks_are_red():
    made = examination("a")
    made["ranks"] = [{**made["ranks"][0], "rank": n} for n in range(3)]
    made["hosts"]["a"]["network"]["ports"].update(range="9000:9001", total=2, free=2)
    assert only(made).what.startswith("2 of the ports 9000:9001 are free on a, and its 3 ranks")


def test_a_taken_scheduler_port_matters_on_rank_0s_host_only():
    made = examination("a", "b")
    made["hosts"]["b"]["network"]["ports"]["scheduler_port_is_free"] = False
    assert check(made) == []
    made["hosts"]["a"]["network"]["ports"]["scheduler_port_is_free"] = False
    assert only(made).severity == "yellow"


# -- Files and clocks -----------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "severity"), [(True, "red"), (False, "yellow")])
def test_a_folder_that_cannot_be_written_is_red_if_it_was_named(asked, severity):
    made = examination("a")
    spoil(made, "a", "folder", asked=asked, problem="Read-only file system")
    finding = only(made)
    assert finding.severity == severity
    assert finding.what == (
        "a scheduler file cannot be written into /home/u/run on a: Read-only file system"
    )
    assert "--shared-folder" in finding.cure


def test_a_folder_that_others_can_read_whatever_the_mode_is_red():
    made = examination("a")
    spoil(made, "a", "folder", keeps_modes=False, filesystem="vfat")
    assert "does not keep the mode 0600" in only(made).what


def test_a_file_that_a_host_does_not_see_is_red():
    made = examination("a", "b", "c")
    seen = made["scheduler_file"]
    seen["seconds"]["c"], seen["problems"]["c"] = None, "does not exist"
    finding = only(made)
    assert (finding.severity, finding.hosts) == ("red", ("c",))
    assert "not seen on c: does not exist" in finding.what


def test_a_file_that_is_seen_late_is_noted():
    made = examination("a", "b")
    made["scheduler_file"]["seconds"]["b"] = 12.0
    finding = only(made)
    assert finding.severity == "yellow"
    assert "after 12 s only on b" in finding.what


@pytest.mark.parametrize(
    ("ahead", "severity", "words"),
    [
        (0.5, None, ""),
        (-30.0, "yellow", "the clock of b is 30.0 s behind that of a"),
        (4000.0, "red", "the clock of b is 4000.0 s ahead of that of a"),
    ],
)
def test_clock_skew(ahead, severity, words):
    made = examination("a", "b")
    made["clocks"]["b"]["ahead"] = ahead
    findings = check(made)
    assert [f.severity for f in findings] == [severity] * (severity is not None)
    assert words == "".join(f.what for f in findings)


def test_a_skew_that_is_no_more_than_the_network_is_slow_says_nothing():
    made = examination("a", "b")
    made["clocks"]["b"] = {"ahead": 2.0, "uncertainty": 1.5}
    assert check(made) == []


# -- Hosts ----------------------------------------------------------------------------------------


def test_too_few_open_files_are_red_where_the_limit_cannot_be_raised():
    made = examination(*MANY)
    made["nworkers"] = 1000
    for name in MANY[:2]:
        spoil(made, name, "limits", open_files=1024, open_files_hard=1024)
    spoil(made, "n9", "limits", open_files=1024, open_files_hard=4096)
    [low] = check(made)
    assert low.hosts == ("n1", "n2")
    assert low.severity == "red"
    assert low.what == "a process may open 1024 files on n1 and n2, and 1000 workers need 2256"
    assert low.cure.startswith("ask the administrators for 2256 open files")


def test_unlimited_open_files_are_enough():
    made = examination("a")
    spoil(made, "a", "limits", open_files=-1, open_files_hard=-1)
    assert check(made) == []


@pytest.mark.parametrize(
    "limits",
    [
        {"processes": 110},
        {"cgroup_tasks": 500, "cgroup_tasks_used": 490},
        {"cgroup_tasks": 500, "cgroup_tasks_used": 490, "is_root": True},
    ],
)
def test_too_few_processes_are_red(limits):
    made = examination("a")
    spoil(made, "a", "limits", **limits)
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == (
        "fewer than 24 more processes and threads may be started on a, which 1 worker would need"
    )


def test_root_has_as_many_processes_as_it_wants():
    made = examination("a")
    spoil(made, "a", "limits", processes=110, is_root=True)
    assert check(made) == []


def test_forbidden_processes_are_red_and_no_nanny_is_the_cure():
    made = examination("a", "b")
    for name in ("a", "b"):
        spoil(made, name, "spawning", problem="Operation not permitted")
    finding = only(made)
    assert finding.severity == "red"
    assert finding.hosts == ("a", "b")
    assert "--no-nanny" in finding.cure


def test_a_slow_start_is_noted():
    made = examination("a", "b")
    spoil(made, "b", "spawning", seconds=21.0)
    finding = only(made)
    assert finding.severity == "yellow"
    assert "takes 21 s on b" in finding.what


def test_a_token_file_that_others_can_read_is_red_with_its_own_cure():
    made = examination("a")
    problem = "the token file /t is open to other users (mode 0644). Run: chmod 600 /t"
    spoil(made, "a", "token", problem=problem)
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == "on a the token file /t is open to other users (mode 0644)"
    assert finding.cure == "run: chmod 600 /t"


def test_a_config_folder_that_others_can_write_to_is_red():
    made = examination("a")
    spoil(made, "a", "token", folder_mode="0770")
    finding = only(made)
    assert finding.severity == "red"
    assert finding.cure == "run: chmod 700 /home/u/.config/hpcdask"


def test_homes_that_are_not_shared_are_noted():
    made = examination("a", "b", "c")
    spoil(made, "b", "token", fingerprint="ffff")
    spoil(made, "c", "token", fingerprint="", exists=False)
    finding = only(made)
    assert finding.severity == "yellow"
    assert finding.hosts == ("b", "c")
    assert "ffff" not in str(finding)


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"problem": "No space left on device"}, "red", "No space left on device"),
        ({"free": 2**20}, "red", "is full on b: less than 64.00 MiB are left"),
        ({"free_files": 3}, "red", "is full on b: no more files"),
        ({"free": GIB}, "yellow", "has less than 2.00 GiB left on b"),
        ({"is_network": True, "filesystem": "lustre"}, "yellow", "network file system (lustre)"),
        ({"is_memory": True, "filesystem": "tmpfs"}, "yellow", "in memory (tmpfs) on b"),
        ({"write_seconds": 3.0}, "yellow", "a MiB takes more than 1 s"),
        ({"free_files": -1}, None, ""),
    ],
)
def test_scratch(changes, severity, words):
    made = examination("a", "b")
    spoil(made, "b", "scratch", **changes)
    findings = check(made)
    assert [f.severity for f in findings] == [severity] * (severity is not None)
    assert words in "".join(f.what for f in findings)


def test_a_probe_that_hangs_is_red():
    made = examination("a", "b")
    del made["hosts"]["b"]["scratch"]
    made["hosts"]["b"]["errors"]["scratch"] = "it did not end within 7 s"
    finding = only(made)
    assert finding.severity == "red"
    assert finding.what == "cannot find out about scratch on b: it did not end within 7 s"


def test_little_memory_and_a_broken_driver_are_noted():
    made = examination("a")
    spoil(
        made,
        "a",
        "grants",
        memory=2**26,
        memory_sources={"machine": GIB, "cgroup": 2**26},
        gpu_problem="no devices were found",
    )
    memory, driver = check(made)
    assert memory.what == "the memory granted on a is 64.00 MiB (cgroup) for 1 rank"
    assert driver.what == "nvidia-smi fails on a: no devices were found"


def test_a_batch_system_that_does_not_answer_is_noted():
    made = examination("a", "b")
    spoil(made, "a", "launch", batch_problems=["squeue: cannot contact the controller"])
    finding = only(made)
    assert finding.severity == "yellow"
    assert finding.what == (
        "the batch system does not answer on a: squeue: cannot contact the controller"
    )


def test_a_misspelt_setting_is_red():
    made = examination("a")
    spoil(made, "a", "software", problem="the environment sets HPCDASK_COMM_X")
    assert only(made).severity == "red"


def test_red_comes_before_yellow():
    made = examination("a", "b")
    spoil(made, "a", "scratch", is_memory=True)
    spoil(made, "b", "scratch", free=0)
    cut(made, "a", "b", "x")
    severities = [f.severity for f in check(made)]
    assert severities == ["red", "red", "yellow"]


def test_every_finding_says_what_to_do():
    made = examination("a", "b", interfaces=("eth0", "ib0"))
    cut(made, "a", "b", "x", "eth0")
    for subject in ("scratch", "token", "spawning", "folder"):
        spoil(made, "b", subject, problem="it is broken")
    made["missing_ranks"], made["unfinished"] = [3], ["the bandwidth"]
    findings = check(made)
    assert len(findings) >= 7
    for finding in findings:
        assert finding.cure
        assert not finding.what.endswith(".")
        assert not finding.cure.endswith(".")


def test_long_lists_of_hosts_are_cut_short():
    assert listing(["a"]) == "a"
    assert listing(MANY) == "n1, n2, n3 and 17 more"
