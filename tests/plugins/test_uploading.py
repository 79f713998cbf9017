"""Files and folders that workers and scheduler get from a client."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcdask import Client, LocalCluster, UploadDirectory, UploadFile
from hpcdask.plugins.uploading import put_file, put_folder


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    """The scheduler runs in this process: what it gets can be imported here."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("up_"):
            del sys.modules[name]
    importlib.invalidate_caches()


def value_of(name: str, attribute: str = "VALUE") -> int:
    return int(getattr(importlib.import_module(name), attribute))


def test_a_module_is_loaded_again_when_it_is_put_again(tmp_path: Path) -> None:
    put_file(str(tmp_path), "up_again.py", b"VALUE = 1\n", True)
    assert value_of("up_again") == 1
    put_file(str(tmp_path), "up_again.py", b"VALUE = 2\n", True)  # within the same second
    assert value_of("up_again") == 2
    put_file(str(tmp_path), "up_again.py", b"VALUE = 3\n", False)
    assert value_of("up_again") == 2  # as asked


def test_archives_are_put_on_the_path_and_read_anew(tmp_path: Path) -> None:
    for value in (1, 2):
        source = tmp_path / f"source-{value}.egg"
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("up_egg.py", f"VALUE = {value}\n" + "# longer\n" * value)
            archive.writestr("up_pkg/__init__.py", f"VALUE = {value + 10}\n")
            archive.writestr("up_pkg/data.txt", "no module")
        put_file(str(tmp_path), "up.egg", source.read_bytes(), True)
        assert value_of("up_egg") == value
        assert value_of("up_pkg") == value + 10
    assert sys.path.count(str(tmp_path / "up.egg")) == 1


def test_other_files_are_only_put_there(tmp_path: Path) -> None:
    before = list(sys.path)
    put_file(str(tmp_path), "table.csv", b"a,b\n", True)
    assert (tmp_path / "table.csv").read_bytes() == b"a,b\n"
    assert sys.path == before


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "up_folder"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("VALUE = 1\n")
    (folder / "old.py").write_text("")
    (folder / "tests" / "test_it.py").write_text("")
    (folder / "some.pyc").write_text("")
    there = tmp_path / "there"
    first = UploadDirectory(folder)
    put_folder(str(there), first.path, first.data, False)
    files = sorted(path.name for path in there.rglob("*"))
    assert files == ["__init__.py", "old.py", "up_folder"]

    (folder / "old.py").unlink()
    second = UploadDirectory(folder, skip_words=())
    put_folder(str(there), second.path, second.data, True)
    files = sorted(path.name for path in there.rglob("*"))
    assert files == ["__init__.py", "test_it.py", "tests", "up_folder"]
    assert sys.path[:2] == [str(there / "up_folder"), str(there)]
    assert value_of("up_folder") == 1


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="no folder"):
        UploadDirectory(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        UploadFile(tmp_path / "none.py")
    with pytest.raises(ValueError, match="mode must be"):
        UploadDirectory(tmp_path, mode="clients")


def test_tasks_use_an_uploaded_module_and_then_its_next_version(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "up_module.py"
    path.write_text("def value():\n    return 1\n")
    result = client.upload_file(path, timeout=20)
    assert result.keys() == {cluster.scheduler.address, *client.nthreads()}
    value = importlib.import_module("up_module").value  # the scheduler is in this process
    assert client.submit(value, pure=False).result(timeout=10) == 1
    assert Path(cluster.scheduler.local_directory, "up_module.py").exists()

    path.write_text("def value():\n    return 2\n")
    client.upload_file(path, timeout=20)
    # The pickle of the function says no more than its name, and is the same as before.
    assert client.gather(client.map(lambda _: value(), range(8)), timeout=10) == [2] * 8
    assert client.submit(value, pure=False).result(timeout=10) == 2

    cluster.scale(3)
    try:
        client.wait_for_workers(3, timeout=20)
        there = client.submit(value, workers="2", pure=False)
        assert there.result(timeout=10) == 2
    finally:
        cluster.scale(2)
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        client.upload_file(path, timeout=20)


def test_a_folder_is_there_for_workers_that_were_restarted_for_it(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "up_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("VALUE = 5\n")
    (folder / "up_inner.py").write_text("VALUE = 6\n")
    plugin = UploadDirectory(folder, restart_workers=True, update_path=True)
    client.register_plugin(plugin, timeout=40)
    assert set(client.run(value_of, "up_package").values()) == {5}
    assert client.submit(value_of, "up_inner").result(timeout=10) == 6
    client.unregister_scheduler_plugin("upload-directory-up_package", timeout=20)
    assert not any(client.run(lambda dask_worker: list(dask_worker.plugins)).values())

    client.register_plugin(UploadDirectory(folder, mode="scheduler"), timeout=20)
    assert Path(cluster.scheduler.local_directory, "up_package", "up_inner.py").exists()
    assert not any(client.run(lambda dask_worker: list(dask_worker.plugins)).values())
