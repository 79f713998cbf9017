"""What a host and an allocation grant, from fake /proc and /sys trees and given environments."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_trees import CGROUP2, GIB, fake_root, mount

from hpcdask import grants, host
from hpcdask.grants import Grant

cpus, memory = host.cpu_count, host.memory_limit


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "machine_cpus", lambda: Grant(64, "the machine"))
    monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset(range(64)))
    monkeypatch.setattr(grants, "_machine_memory", lambda: 256 * GIB)
    monkeypatch.setattr(grants, "_memory_rlimits", lambda: iter(()))


# ---------------------------------------------------------------- CPUs


@pytest.mark.usefixtures("big_machine")
class TestCpuCount:
    def test_without_any_limit_is_the_affinity_mask(self, tmp_path: Path) -> None:
        assert cpus(environ={}, root=tmp_path) == 64

    def test_obeys_its_own_cgroup_v2_quota_rounded_up(self, tmp_path: Path) -> None:
        quota = {"sys/fs/cgroup/slurm/job_1/step_0/cpu.max": "250000 100000\n"}
        assert cpus(environ={}, root=fake_root(tmp_path, CGROUP2 | quota)) == 3

    def test_obeys_the_quota_of_a_parent(self, tmp_path: Path) -> None:
        quotas = {
            "sys/fs/cgroup/slurm/job_1/step_0/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "800000 100000\n",
        }
        assert cpus(environ={}, root=fake_root(tmp_path, CGROUP2 | quotas)) == 8

    def test_obeys_a_cgroup_v1_quota(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "4:cpu,cpuacct:/batch\n3:memory:/\n",
            "proc/self/mountinfo": mount("/", "/cg/cpu", "cgroup", "rw,cpu,cpuacct"),
            "cg/cpu/batch/cpu.cfs_quota_us": "150000\n",
            "cg/cpu/batch/cpu.cfs_period_us": "100000\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
        }
        assert cpus(environ={}, root=fake_root(tmp_path, files)) == 2

    @pytest.mark.parametrize("name", ["cpuset.cpus.effective", "cpuset.effective_cpus"])
    @pytest.mark.parametrize(("listed", "count"), [("0-3,8\n", 5), ("7\n", 1), ("\n", 64)])
    def test_obeys_the_cpus_of_the_nearest_cgroup(
        self, name: str, listed: str, count: int, tmp_path: Path
    ) -> None:
        # A rank that is bound to some of them shares them with the other ranks of its cgroup.
        tree = {f"sys/fs/cgroup/slurm/job_1/{name}": listed, f"sys/fs/cgroup/slurm/{name}": ""}
        assert cpus(environ={}, root=fake_root(tmp_path, CGROUP2 | tree)) == count

    def test_finds_the_usual_mounts_when_mountinfo_is_hidden(self, tmp_path: Path) -> None:
        files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "100000 100000"}
        assert cpus(environ={}, root=fake_root(tmp_path, files)) == 1

    @pytest.mark.parametrize("name", [*grants.CPU_VARIABLES, "NSLOTS", "SLURM_JOB_CPUS_PER_NODE"])
    def test_obeys_the_batch_system(self, name: str, tmp_path: Path) -> None:
        assert cpus(environ={name: "5"}, root=tmp_path) == 5

    def test_counts_those_of_its_own_node(self, tmp_path: Path) -> None:
        environ = {"SLURM_JOB_CPUS_PER_NODE": "8(x2),3", "SLURM_NODEID": "2"}
        assert cpus(environ=environ, root=tmp_path) == 3
        assert cpus(environ=environ | {"SLURM_NODEID": "1"}, root=tmp_path) == 8
        del environ["SLURM_NODEID"]
        assert cpus(environ=environ, root=tmp_path) == 64, "nobody knows which node this is"

    def test_counts_the_slots_of_its_own_host(self, tmp_path: Path) -> None:
        me = socket.gethostname().partition(".")[0]
        hosts = f"other 6 all.q@other UNDEFINED\n{me}.example 2 all.q@{me} UNDEFINED\n"
        root = fake_root(tmp_path, {"spool/pe_hostfile": hosts})
        environ = {"NSLOTS": "8", "NHOSTS": "2", "PE_HOSTFILE": "/spool/pe_hostfile"}
        assert cpus(environ=environ, root=root) == 2
        assert cpus(environ={"NSLOTS": "8", "NHOSTS": "2"}, root=root) == 4

    @pytest.mark.parametrize("text", ["", "0", "4(x2)", "-3", "many"])
    def test_ignores_what_is_no_positive_number(self, text: str, tmp_path: Path) -> None:
        assert cpus(environ={"NSLOTS": text}, root=tmp_path) == 64

    def test_is_the_smallest_of_all(self, tmp_path: Path) -> None:
        quota = {"sys/fs/cgroup/cpu.max": "400000 100000"}
        root = fake_root(tmp_path, CGROUP2 | quota)
        assert cpus(environ={"NCPUS": "7"}, root=root) == 4
        assert cpus(environ={"NCPUS": "2"}, root=root) == 2


def test_the_real_machine_grants_at_least_one_cpu_and_some_memory() -> None:
    assert cpus() >= 1
    assert memory() > 2**20


# ---------------------------------------------------------------- memory


@pytest.mark.usefixtures("big_machine")
class TestMemoryLimit:
    def test_without_any_limit_is_the_machines(self, tmp_path: Path) -> None:
        assert memory(environ={}, root=tmp_path) == 256 * GIB

    @pytest.mark.parametrize("where", ["slurm/job_1/step_0", "slurm/job_1", "."])
    @pytest.mark.parametrize("name", ["memory.max", "memory.high"])
    def test_obeys_cgroup_v2_and_every_parent(self, where: str, name: str, tmp_path: Path) -> None:
        limit = {f"sys/fs/cgroup/{where}/{name}": f"{3 * GIB}\n"}
        root = fake_root(tmp_path, CGROUP2 | limit)
        assert memory(environ={}, root=root) == 3 * GIB

    def test_takes_max_for_no_limit(self, tmp_path: Path) -> None:
        root = fake_root(tmp_path, CGROUP2 | {"sys/fs/cgroup/slurm/memory.max": "max\n"})
        assert memory(environ={}, root=root) == 256 * GIB

    def test_obeys_cgroup_v1(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "9:memory:/a/b\n0::/\n",
            "proc/self/mountinfo": mount("/", "/cg/memory", "cgroup", "rw,memory"),
            "cg/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory/a/memory.limit_in_bytes": f"{GIB}\n",
        }
        assert memory(environ={}, root=fake_root(tmp_path, files)) == GIB

    def test_a_container_that_sees_the_hosts_path_uses_its_own_mount(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "9:memory:/docker/abc\n",
            "proc/self/mountinfo": mount("/docker/abc", "/cg/memory", "cgroup", "rw,memory"),
            "cg/memory/memory.limit_in_bytes": f"{GIB}\n",
        }
        assert memory(environ={}, root=fake_root(tmp_path, files)) == GIB

    def test_a_path_outside_the_namespace_uses_the_top(self, tmp_path: Path) -> None:
        files = CGROUP2 | {
            "proc/self/cgroup": "0::/../../other\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
        }
        assert memory(environ={}, root=fake_root(tmp_path, files)) == GIB

    def test_obeys_slurm_in_mebibytes(self, tmp_path: Path) -> None:
        assert memory(environ={"SLURM_MEM_PER_NODE": "2048"}, root=tmp_path) == 2 * GIB

    def test_zero_of_slurm_means_the_whole_node(self, tmp_path: Path) -> None:
        environ = {"SLURM_MEM_PER_NODE": "0"}
        assert memory(environ=environ, root=tmp_path) == 256 * GIB

    def test_memory_per_cpu_counts_the_cpus_on_this_node(self, tmp_path: Path) -> None:
        environ = {"SLURM_MEM_PER_CPU": "1024", "SLURM_JOB_CPUS_PER_NODE": "2(x3)"}
        assert memory(environ=environ, root=tmp_path) == 2 * GIB
        environ["SLURM_CPUS_ON_NODE"] = "1"
        assert memory(environ=environ, root=tmp_path) == GIB

    def test_a_task_that_is_bound_to_some_cpus_still_counts_all_of_the_job(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset({3}))
        environ = {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "8"}
        assert memory(environ=environ, root=tmp_path) == 8 * GIB

    def test_obeys_rlimits(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(grants, "_memory_rlimits", lambda: iter([Grant(GIB, "RLIMIT_AS")]))
        assert memory(environ={}, root=tmp_path) == GIB


@pytest.mark.parametrize("which", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_real_rlimit_is_seen(which: str) -> None:
    code = (
        f"import resource as r; r.setrlimit(r.{which}, (1500 * 2**20, r.RLIM_INFINITY));"
        "from hpcdask.grants import _memory_rlimits, smallest; print(*smallest(_memory_rlimits()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert out.stdout.decode().split() == [str(1500 * 2**20), which]


# ---------------------------------------------------------------- who says so


@pytest.mark.usefixtures("big_machine")
class TestSources:
    @pytest.mark.parametrize(
        ("files", "source"),
        [
            ({"slurm/job_1/step_0/memory.max": "max", "memory.max": f"{GIB}"}, "cgroup /"),
            ({"slurm/job_1/memory.high": f"{GIB}"}, "cgroup /slurm/job_1"),
            ({}, "the machine"),
        ],
    )
    def test_a_memory_grant_names_the_cgroup(
        self, files: dict[str, str], source: str, tmp_path: Path
    ) -> None:
        tree = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        found = grants.memory_grants({}, fake_root(tmp_path, CGROUP2 | tree))
        assert grants.smallest(found).source == source

    def test_the_first_of_equals_is_named(self, tmp_path: Path) -> None:
        tree = {"sys/fs/cgroup/slurm/memory.max": f"{GIB}"}
        root = fake_root(tmp_path, CGROUP2 | tree)
        found = grants.memory_grants({"SLURM_MEM_PER_NODE": "1024"}, root)
        assert grants.smallest(found) == Grant(GIB, "cgroup /slurm")

    def test_a_mask_of_all_cpus_is_the_machines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert grants.affinity() == Grant(64, "the machine")
        monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset({1, 2}))
        assert grants.affinity() == Grant(2, "affinity")
        monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset())  # macOS
        assert grants.affinity() == Grant(64, "the machine")

    def test_each_grant_is_known_with_who_gives_it(self, tmp_path: Path) -> None:
        limits = {
            "sys/fs/cgroup/cpu.max": "400000 100000",
            "sys/fs/cgroup/slurm/cpu.max": "800000 100000",
            "sys/fs/cgroup/memory.max": f"{3 * GIB}\n",
        }
        root = fake_root(tmp_path, CGROUP2 | limits)
        environ = {"NSLOTS": "7", "SLURM_MEM_PER_NODE": "2048", "SLURM_CPUS_PER_TASK": "5"}
        assert host.cpu_grants(environ=environ, root=root) == {
            "affinity": 64,
            "cgroup /": 4,
            "cgroup /slurm": 8,
            "NSLOTS": 7,
            "SLURM_CPUS_PER_TASK": 5,
        }
        assert host.memory_grants(environ=environ, root=root) == {
            "the machine": 256 * GIB,
            "cgroup /": 3 * GIB,
            "SLURM_MEM_PER_NODE": 2 * GIB,
        }

    def test_a_limit_of_cgroups_v1_that_is_none_is_no_grant(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "9:memory:/a\n",
            "proc/self/mountinfo": mount("/", "/cg/memory", "cgroup", "rw,memory"),
            "cg/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        }
        root = fake_root(tmp_path, files)
        assert host.memory_grants(environ={}, root=root) == {"the machine": 256 * GIB}

    def test_the_ranks_of_a_job_have_more_than_each_of_them(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        masks = {0: frozenset({3}), 1: frozenset(range(8))}
        monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: masks[pid])
        assert host.cpu_count(environ={}, root=tmp_path) == 1
        assert host.cpu_count_of_job(environ={}, root=tmp_path, parent=1) == 8
        environ = {"SLURM_CPUS_ON_NODE": "4"}
        assert host.cpu_count_of_job(environ=environ, root=tmp_path, parent=1) == 4


def test_the_cgroup_with_the_least_room_limits_tasks(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/slurm/job_1/pids.max": "1000\n",
        "sys/fs/cgroup/slurm/job_1/pids.current": "10\n",
        "sys/fs/cgroup/slurm/pids.max": "2000\n",
        "sys/fs/cgroup/slurm/pids.current": "1900\n",
        "sys/fs/cgroup/slurm/job_1/step_0/pids.max": "max\n",
        "sys/fs/cgroup/slurm/job_1/step_0/pids.current": "5\n",
    }
    assert grants.cgroup_tasks(fake_root(tmp_path, CGROUP2 | files)) == (2000, 1900)
    assert grants.cgroup_tasks(tmp_path / "nothing") is None
