"""Sizes and durations, interfaces, scratch and the batch job, as a host has them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from fake_trees import GIB, fake_root, mount

from hpcdask import host, network
from hpcdask.errors import ConfigError, InterfaceNotFoundError
from hpcdask.network import Interface

# ---------------------------------------------------------------- sizes and durations


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2GiB", 2 * GIB),
        ("2 gi", 2 * GIB),
        ("500 MB", 500_000_000),
        ("1.5k", 1500),
        (".5 kB", 500),
        ("1e9", 10**9),
        ("1e3 KiB", 1024000),
        ("2e", 2 * 10**18),
        ("7B", 7),
        ("0", 0),
        (1000, 1000),
        (1e3, 1000),
        (2**63 + 1, 2**63 + 1),
    ],
)
def test_sizes_are_read(text: str | float, nbytes: int) -> None:
    assert host.parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1 XB", "1.2.3", "nan", "1e999", "1 GiB 2", True, None, -1, b"1"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size.*Give bytes as a number"):
        host.parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (2 * GIB, "2.00 GiB"),
        (2**60, "1024.00 PiB"),
    ],
)
def test_sizes_are_written(nbytes: int, text: str) -> None:
    assert host.format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5 min", 300),
        (3, 3),
        ("3", 3),
        ("1h", 3600),
        ("200ms", 0.2),
        ("1.5 hours", 5400),
        ("2 days", 172800),
        ("0", 0),
        (timedelta(minutes=2), 120),
    ],
)
def test_durations_are_read(text: str | float | timedelta, seconds: float) -> None:
    assert host.parse_timedelta(text) == pytest.approx(seconds)


def test_a_bare_duration_has_the_default_unit() -> None:
    assert host.parse_timedelta("5", default="ms") == pytest.approx(0.005)
    assert host.parse_timedelta(timedelta(seconds=5), default="ms") == 5


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5 fortnights", "1h30m", float("inf"), None])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        host.parse_timedelta(text)


# ---------------------------------------------------------------- interfaces

LO = Interface("lo", True, ("127.0.0.1", "::1"))
ETH0 = Interface("eth0", True, ("192.168.0.5", "fe80::5%eth0"))
IB0 = Interface("ib0", True, ("fe80::7%ib0", "10.1.0.7"))
IB1 = Interface("ib1", False, ("10.1.1.7",))
IB10 = Interface("ib10", True, ("10.1.10.7",))
HSN0 = Interface("hsn0", True, ("fe80::9%hsn0", "fd00:1::9"))
BARE = Interface("bond0", True, ())
ALL = [LO, ETH0, IB10, IB1, IB0, HSN0, BARE]


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("ib0", "10.1.0.7"),
        ("eth0", "192.168.0.5"),
        ("hsn0", "fd00:1::9"),
        ("ib9,hsn0", "fd00:1::9"),
        ("hsn0,ib0", "fd00:1::9"),
        (" ib0 , hsn0", "10.1.0.7"),
        ("ib*", "10.1.0.7"),
        ("ib1*", "10.1.10.7"),
        ("ib[!0]*", "10.1.10.7"),
        ("bond0,ib1,eth0", "192.168.0.5"),
        ("10.1.0.0/16", "10.1.0.7"),
        ("10.1.10.0/24", "10.1.10.7"),
        ("192.168.0.5", "192.168.0.5"),
        ("fd00:1::/32", "fd00:1::9"),
        ("fe80::/64,lo", "fe80::5%eth0"),
    ],
)
def test_an_interface_spec_gives_an_address(spec: str, address: str) -> None:
    assert network.choose_address(spec, ALL) == address


def test_a_link_local_address_is_the_last_choice_and_has_its_scope() -> None:
    only = Interface("ib0", True, ("fe80::7%ib0",))
    assert network.choose_address("ib0", [only]) == "fe80::7%ib0"
    assert network.choose_address("ib*", [only, IB10]) == "10.1.10.7"


def test_a_family_can_be_demanded() -> None:
    assert network.choose_address("lo", ALL, "ipv6") == "::1"
    assert network.choose_address("hsn0,ib0", ALL, "ipv4") == "10.1.0.7"
    with pytest.raises(InterfaceNotFoundError, match=r"'hsn0' on .* has no ipv4 address"):
        network.choose_address("hsn0", ALL, "ipv4")


def test_an_unknown_interface_lists_what_the_host_has() -> None:
    with pytest.raises(InterfaceNotFoundError) as caught:
        network.choose_address("ib7", [LO, IB1, BARE])
    text = str(caught.value)
    assert text.startswith(f"no network interface 'ib7' on {network.hostname()}; it has ")
    assert "bond0 (no address), ib1 (10.1.1.7, down), lo (127.0.0.1, ::1)." in text
    assert text.endswith(
        "Name one of these with --interface, or leave it out to use the default route."
    )


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("ib1", "network interface 'ib1' on .* is down"),
        ("bond0", "network interface 'bond0' on .* has no address"),
        ("172.16.0.0/12", "no network interface that is up has an address in '172.16.0.0/12'"),
        ("ib7,ib1", "no network interface 'ib7' on .*; network interface 'ib1' on .* is down"),
    ],
)
def test_an_interface_that_cannot_serve_says_why(spec: str, reason: str) -> None:
    with pytest.raises(InterfaceNotFoundError, match=reason):
        network.choose_address(spec, ALL)


@pytest.mark.parametrize("spec", ["", " , ", "10.1.0.0/99", "ib0/24"])
def test_a_malformed_interface_spec_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="subnet"):
        network.choose_address(spec, ALL)


def test_the_real_loopback_interface_is_found() -> None:
    assert network.interface_address("127.0.0.0/8") == "127.0.0.1"


def test_the_way_to_loopback_is_loopback() -> None:
    assert network.address_towards("127.0.0.1", 8786) == "127.0.0.1"


def test_the_way_to_an_ipv6_address_is_found() -> None:
    if not any("::1" in interface.addresses for interface in network.interfaces()):
        pytest.skip("this host has no IPv6")
    assert network.address_towards("::1", 8786) == "::1"


def test_the_way_to_an_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(InterfaceNotFoundError, match=r"cannot reach host 'no-such\.invalid'"):
        network.address_towards("no-such.invalid", 8786)


def test_this_machine_is_local_by_any_of_its_names() -> None:
    names = ["localhost", "127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", network.hostname()]
    own = [address for each in network.interfaces() for address in each.addresses]
    assert all(network.is_local(name) for name in [*names, *own])


@pytest.mark.parametrize("name", ["203.0.113.7", "2001:db8::7", "no-such.invalid", "a" * 80])
def test_others_are_not_local(name: str) -> None:
    assert not network.is_local(name)


# ---------------------------------------------------------------- scratch


def test_scratch_is_a_folder_of_the_user_alone(tmp_path: Path) -> None:
    path = host.local_directory(str(tmp_path / "new" / "deep"))
    assert path == str(tmp_path / "new" / "deep" / f"hpcdask-{os.geteuid()}")
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert host.local_directory(str(tmp_path / "new" / "deep")) == path


def test_scratch_that_was_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / f"hpcdask-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    host.local_directory(str(tmp_path))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_scratch_goes_to_the_first_folder_of_the_batch_system_that_exists(tmp_path: Path) -> None:
    (tmp_path / "jobfs").mkdir()
    environ = {
        "SLURM_TMPDIR": str(tmp_path / "missing"),
        "TMPDIR": "",
        "PBS_JOBFS": str(tmp_path / "jobfs"),
    }
    assert host.local_directory(environ=environ).startswith(str(tmp_path / "jobfs"))


def test_scratch_falls_back_on_the_systems_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert host.local_directory(environ={}).startswith(str(tmp_path))


def test_scratch_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / f"hpcdask-{os.geteuid()}"
    place.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"symbolic link.*--local-directory"):
        host.local_directory(str(tmp_path))
    place.unlink()
    place.write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        host.local_directory(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_scratch_of_another_user_is_refused(tmp_path: Path) -> None:
    place = tmp_path / f"hpcdask-{os.geteuid()}"
    place.mkdir()
    os.chown(place, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345 and we are user 0"):
        host.local_directory(str(tmp_path))


def test_scratch_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Name a writable folder .* --local-directory"):
        host.local_directory(str(tmp_path / "file" / "x"))


def test_a_network_file_system_is_recognised_by_its_innermost_mount(tmp_path: Path) -> None:
    mounts = (
        mount("/", "/", "ext4") + mount("/", "/home", "nfs4") + mount("/", "/home/x/t", "tmpfs")
    )
    root = fake_root(tmp_path, {"proc/self/mountinfo": mounts})
    assert host.network_filesystem("/home/x", root=root) == "nfs4"
    assert host.network_filesystem("/home/x/t/y", root=root) == ""
    assert host.filesystem("/home/x/t/y", root=root) == "tmpfs"
    assert host.filesystem("/x", root=root) == "ext4"
    assert host.network_filesystem("/homely", root=root) == ""
    assert host.network_filesystem("/x", root=tmp_path / "nothing") == ""


def test_a_later_mount_covers_an_earlier_one(tmp_path: Path) -> None:
    mounts = mount("/", "/home", "autofs") + mount("/", "/home", "nfs")
    root = fake_root(tmp_path, {"proc/self/mountinfo": mounts})
    assert host.network_filesystem("/home/x", root=root) == "nfs"


# ---------------------------------------------------------------- the job


def test_each_task_thread_gets_one_thread_of_its_libraries() -> None:
    assert host.thread_environment(4, {}) == {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "BLIS_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "VECLIB_MAXIMUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "4",
    }


def test_what_the_user_set_stays() -> None:
    chosen = host.thread_environment(4, {"MKL_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "2"})
    assert "MKL_NUM_THREADS" not in chosen
    assert "NUMBA_NUM_THREADS" not in chosen
    assert chosen["OMP_NUM_THREADS"] == "1"


def test_the_users_omp_setting_rules_the_libraries_that_follow_it() -> None:
    chosen = host.thread_environment(2, {"OMP_NUM_THREADS": "8"})
    assert chosen == {"VECLIB_MAXIMUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}


def test_a_job_without_an_omp_setting_has_none_from_pbs() -> None:
    assert not host.omp_is_from_pbs({"PBS_JOBID": "1.server"})
    assert host.thread_environment(4, {"PBS_JOBID": "1.server"})["OMP_NUM_THREADS"] == "1"


def test_the_omp_setting_of_pbs_is_nobodys_wish() -> None:
    environ = {"PBS_JOBID": "1.server", "NCPUS": "36", "OMP_NUM_THREADS": "36"}
    assert host.thread_environment(36, environ)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in host.thread_environment(36, environ | {"OMP_NUM_THREADS": "2"})


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "123"}, "slurm:123"),
        ({"PBS_JOBID": "1.server"}, "pbs:1.server"),
        ({"JOB_ID": "55", "SGE_ROOT": "/sge", "SGE_TASK_ID": "undefined"}, "sge:55"),
        ({"JOB_ID": "55", "SGE_ROOT": "/sge", "SGE_TASK_ID": "3"}, "sge:55.3"),
        ({"JOB_ID": "55"}, ""),
    ],
)
def test_the_batch_job_is_named(environ: dict[str, str], job: str) -> None:
    assert host.batch_job(environ) == job


@pytest.mark.parametrize("module", ["host", "rendezvous"])
def test_importing_it_is_light(module: str) -> None:
    heavy = {"psutil", "click", "tornado", "ctypes", "numpy"}
    heavy |= {"asyncio", "tempfile"} if module == "host" else set()
    code = f"import sys, hpcdask.{module}; print(*sorted(set(sys.modules) & {heavy}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert out.stdout.decode().strip() == ""
