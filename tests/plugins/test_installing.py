"""Packages for all workers: installed once for each environment, and said well if they are not."""

from __future__ import annotations

import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcdask import Client, CondaInstall, InstallError, InstallPlugin, LocalCluster, PipInstall
from hpcdask.plugins import installing
from hpcdask.plugins.installing import install_once


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages of our own; the scheduler, workers and nannies of a cluster without
    processes have it, too."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(installing, "_package_folders", lambda: [str(folder)])
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**options) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The smallest package that pip takes."""
    path = tmp_path / "tinypackage-1.0-py3-none-any.whl"
    about = "tinypackage-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinypackage.py", "VALUE = 1\n")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tinypackage\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "tinypackage.py,,\n")
    return path


def test_of_all_who_come_at_the_same_time_one_installs() -> None:
    calls: list[int] = []
    barrier = threading.Barrier(8)

    def come() -> None:
        barrier.wait(10)
        install_once(lambda: calls.append(1), "an-id")

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert calls == [1]
    install_once(lambda: calls.append(2), "another-id")
    install_once(lambda: calls.append(3), "an-id")
    assert calls == [1, 2]


def test_one_that_failed_is_tried_again_by_the_next() -> None:
    with pytest.raises(ZeroDivisionError):
        install_once(lambda: 1 / 0, "an-id")
    calls: list[int] = []
    install_once(lambda: calls.append(1), "an-id")
    assert calls == [1]


def test_where_nothing_can_be_noted_it_is_installed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installing, "_package_folders", lambda: ["/proc/no-such-folder"])
    calls: list[int] = []
    install_once(lambda: calls.append(1), "an-id")
    assert calls == [1]


def test_only_so_many_installations_are_remembered(site: Path) -> None:
    for number in range(120):
        install_once(lambda: None, f"id-{number:012}")
    kept = (site / ".hpcdask-installed").read_text().split()
    assert len(kept) == 50
    assert kept[-1] == "id-000000000119"


def test_a_package_is_installed_once_for_scheduler_and_workers(
    client: Client, wheel: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    options = ["--no-index", "--no-deps", "--quiet", "--target", str(target)]
    plugin = PipInstall([str(wheel)], pip_options=options)
    result = client.register_plugin(plugin, timeout=60)
    assert len(result) == 3
    assert (target / "tinypackage.py").read_text() == "VALUE = 1\n"
    client.register_plugin(plugin, timeout=60)  # the same again: there is nothing to do
    assert (
        client.unregister_scheduler_plugin(plugin.name, timeout=20).keys()
        == client.nthreads().keys()
    )


def test_what_pip_says_reaches_who_asked(client: Client) -> None:
    plugin = PipInstall(["no-such-package"], pip_options=["--no-index"])
    with pytest.raises(
        InstallError,
        match=r"(?s)pip could not install no-such-package on .*exit "
        "code 1.*No matching distribution",
    ):
        client.register_plugin(plugin, timeout=60)


def test_a_function_of_ones_own_installs_too(client: Client, tmp_path: Path) -> None:
    def build() -> None:
        with open(tmp_path / "built", "a") as file:
            file.write("built\n")

    client.register_plugin(InstallPlugin(build), timeout=20)
    assert (tmp_path / "built").read_text() == "built\n"


def test_conda_is_called_with_the_environment_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conda = tmp_path / "conda"
    conda.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    conda.chmod(0o755)
    monkeypatch.setenv("CONDA_EXE", str(conda))
    CondaInstall("scikit-learn", ["--update-deps"])._install()
    expected = f"install --yes --prefix {sys.prefix} --update-deps scikit-learn\n"
    assert (tmp_path / "arguments").read_text() == expected

    conda.write_text("#!/bin/sh\necho PackagesNotFoundError >&2\nexit 3\n")
    with pytest.raises(InstallError, match=r"(?s)exit code 3.*PackagesNotFoundError"):
        CondaInstall(["scikit-learn"])._install()
    monkeypatch.delenv("CONDA_EXE")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(InstallError, match="neither conda nor mamba is on PATH"):
        CondaInstall(["scikit-learn"])._install()
