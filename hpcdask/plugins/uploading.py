"""Files and folders of a client's host, put where workers and scheduler can import them."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin
from hpcdask.threads import in_thread

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler
    from hpcdask.worker import Worker

log = logging.getLogger("hpcdask.plugins")

#: Names that end so are put on the path, or hold modules themselves.
_ARCHIVES = (".zip", ".egg", ".pyz")


class UploadFile(WorkerPlugin):
    """Puts a file into the local directory of each worker, from where it can be imported.

    It is read when this is made. `Client.upload_file` does the same, and has the scheduler get the
    file, too.

    Parameters
    ----------
    filepath : str
        A ``.py``, ``.zip``, ``.egg`` or ``.pyz`` file, or any other.
    load : bool
        Whether to import what it holds, again if there is a module of that name already.

    Raises
    ------
    OSError
        If it cannot be read.
    """

    name = "upload_file"

    def __init__(self, filepath: str | os.PathLike[str], load: bool = True) -> None:
        path = os.path.expanduser(os.fspath(filepath))
        self.filename = os.path.basename(path)
        self.name = f"upload_file-{self.filename}"
        self.load = load
        with open(path, "rb") as file:
            self.data = file.read()

    async def setup(self, worker: Worker) -> None:
        """Write it, and import it."""
        await in_thread(put_file, worker.local_directory, self.filename, self.data, self.load)
        worker.forget_functions()


class SchedulerFile(SchedulerPlugin):
    """Puts the file of an `UploadFile` onto the scheduler as well; they come and go together."""

    companion_kinds = ("worker",)

    def __init__(self, of_workers: UploadFile) -> None:
        self._of_workers = of_workers
        self.name = of_workers.name
        self.filename, self.data, self.load = (
            of_workers.filename,
            of_workers.data,
            of_workers.load,
        )

    def companions(self) -> list[WorkerPlugin | NannyPlugin]:
        """What a client registers with it."""
        return [self._of_workers]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_of_workers"}

    async def start(self, scheduler: Scheduler) -> None:
        """Write it, and import it; in a process that is not the scheduler's alone with care."""
        folder, is_guest = scheduler.local_directory, not scheduler.own_process
        await in_thread(put_file, folder, self.filename, self.data, self.load, is_guest)


class UploadDirectory(SchedulerPlugin):
    """Puts a folder into the local directory of each worker.

    That directory is on the path from which modules are imported, so a folder that is a package can
    be imported by its name. It is read when this is made.

    Parameters
    ----------
    path : str
        The folder.
    restart_workers : bool
        Whether to restart workers that run already, so that no older modules are in use. Those
        without a nanny cannot be.
    update_path : bool
        Whether to put the folder itself on that path, for modules directly in it.
    skip_words : iterable of str
        Names of files and folders to leave out.
    skip : iterable of callables
        Called with the path of each file; those for which one is true are left out.
    mode : {"workers", "scheduler", "all"}
        Who gets it.

    Raises
    ------
    NotADirectoryError
        If there is no such folder.
    ValueError
        If `mode` is none of the three.

    Examples
    --------
    >>> plugin = UploadDirectory("~/projects/waves", update_path=True)      # doctest: +SKIP
    >>> results = client.register_plugin(plugin)                            # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        restart_workers: bool = False,
        update_path: bool = False,
        skip_words: Iterable[str] = (".git", ".github", ".pytest_cache", "tests", "docs"),
        skip: Iterable[Callable[[str], bool]] = (lambda name: name.endswith(".pyc"),),
        mode: str = "workers",
    ) -> None:
        if mode not in ("workers", "scheduler", "all"):
            raise ValueError(f"mode must be 'workers', 'scheduler' or 'all', not {mode!r}")
        folder = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"there is no folder {folder} to upload")
        self.path = os.path.basename(folder)
        self.name = f"upload-directory-{self.path}"
        self.restart_workers, self.update_path, self.mode = restart_workers, update_path, mode
        self.data = _packed(folder, set(skip_words), list(skip))

    @property
    def companion_kinds(self) -> tuple[str, ...]:
        """What it is registered for besides the scheduler."""
        if self.mode == "scheduler":
            return ()
        return ("worker", "nanny") if self.restart_workers else ("worker",)

    def companions(self) -> list[WorkerPlugin | NannyPlugin]:
        """What a client registers with it."""
        found: list[WorkerPlugin | NannyPlugin] = []
        if "worker" in self.companion_kinds:
            found.append(_WorkersFolder(self.path, self.data, self.update_path))
        if "nanny" in self.companion_kinds:
            found.append(RestartOnce())
        return found

    def __getstate__(self) -> dict[str, Any]:
        data = self.data if self.mode != "workers" else b""  # the scheduler needs none of it
        return {**self.__dict__, "data": data}

    async def start(self, scheduler: Scheduler) -> None:
        """Unpack it on the scheduler, if that is to have it."""
        if self.mode != "workers":
            folder = scheduler.local_directory
            is_guest = not scheduler.own_process
            await in_thread(put_folder, folder, self.path, self.data, self.update_path, is_guest)


class _WorkersFolder(WorkerPlugin):
    """The part of an `UploadDirectory` that workers run."""

    def __init__(self, path: str, data: bytes, update_path: bool) -> None:
        self.path, self.data, self.update_path = path, data, update_path

    async def setup(self, worker: Worker) -> None:
        await in_thread(put_folder, worker.local_directory, self.path, self.data, self.update_path)
        worker.forget_functions()


class RestartOnce(NannyPlugin):
    """Has workers that run already restarted, after what was registered before it."""

    restart = True


def put_file(
    directory: str, filename: str, data: bytes, load: bool, is_guest: bool = False
) -> None:
    """Write a file, and import what it holds.

    Parameters
    ----------
    is_guest : bool
        Whether the process is a user's program, in which his own modules come first and none is
        replaced.
    """
    path = os.path.join(directory, filename)
    # Under another name first: who imports it in this moment gets the old one or the new.
    with open(f"{path}.part", "wb") as file:
        file.write(data)
    os.replace(f"{path}.part", path)
    stem, extension = os.path.splitext(filename)
    if extension == ".py":
        _put_on_path(directory, is_guest)
        names = [stem]
        cache = importlib.util.cache_from_source(path)
        if os.path.exists(cache):  # its time stamp may be that of the new file
            os.remove(cache)
    elif extension in _ARCHIVES:
        _put_on_path(path, is_guest)
        names = _modules_in(data)
    else:
        return
    importlib.invalidate_caches()  # of archives, too
    if load:
        for name in names:
            _import_anew(name, is_guest)


def put_folder(
    directory: str, name: str, data: bytes, update_path: bool, is_guest: bool = False
) -> None:
    """Unpack a folder in the place of the one of its name; `is_guest` as for `put_file`."""
    path = os.path.join(directory, name)
    shutil.rmtree(path, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(directory)
    os.makedirs(path, exist_ok=True)  # it may be empty
    _put_on_path(directory, is_guest)
    if update_path:
        _put_on_path(path, is_guest)
    importlib.invalidate_caches()


def _put_on_path(folder: str, at_end: bool) -> None:
    if folder not in sys.path:
        sys.path.insert(len(sys.path) if at_end else 0, folder)


def _modules_in(data: bytes) -> list[str]:
    """Names of the modules and packages at the top of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [name.split("/") for name in archive.namelist()]
    modules = [p[0][:-3] for p in parts if len(p) == 1 and p[0].endswith(".py")]
    packages = [p[0] for p in parts if len(p) == 2 and p[1] == "__init__.py"]
    return [name for name in dict.fromkeys(modules + packages) if name.isidentifier()]


def _import_anew(name: str, is_guest: bool) -> None:
    module = sys.modules.get(name)
    if module is None:
        importlib.import_module(name)
    elif not is_guest:
        log.info("module %r is loaded again, from an uploaded file", name)
        importlib.reload(module)


def _packed(folder: str, skip_words: set[str], skip: list[Callable[[str], bool]]) -> bytes:
    """A folder as a zip archive, in which all names begin with its own."""
    above = os.path.dirname(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for parent, folders, files in os.walk(folder):
            folders[:] = sorted(set(folders) - skip_words)
            for file in sorted(set(files) - skip_words):
                path = os.path.join(parent, file)
                if not any(leaves_out(path) for leaves_out in skip):
                    archive.write(path, os.path.relpath(path, above))
    return packed.getvalue()
