"""Packages for all workers: each environment is changed once, however many of them use it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import site
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hpcdask import network
from hpcdask.errors import InstallError
from hpcdask.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin
from hpcdask.threads import in_thread

if TYPE_CHECKING:
    from hpcdask.nanny import Nanny
    from hpcdask.scheduler import Scheduler
    from hpcdask.worker import Worker

log = logging.getLogger("hpcdask.plugins")

#: Beside the packages: which installations of clusters the environment has, the last ones. While
#: one is under way it is locked, for the other workers of this host, and for those of other hosts
#: where they share the folder.
_RECORD = ".hpcdask-installed"
_REMEMBERED = 50
#: Last lines of an installer that failed which are shown.
_LAST_LINES = 30
#: On NFS a lock keeps out other processes only.
_in_this_process = threading.Lock()


class InstallPlugin(SchedulerPlugin):
    """Calls a function once for each environment of the cluster, to install something.

    It runs on the scheduler's host and on workers; those that come later run no task before it has.
    Workers that share an environment, as those of one host do, or of all hosts where it lies on a
    shared file system, take turns, and only the first of them installs.

    Parameters
    ----------
    install_fn : callable
        Called without arguments.
    restart_workers : bool
        Whether it runs in nannies, before their workers start, and workers that run already are
        restarted. Those without a nanny do without it then.

    Examples
    --------
    >>> def build():
    ...     subprocess.run(["make", "-C", "/shared/model"], check=True)
    >>> plugin = InstallPlugin(build)
    >>> results = client.register_plugin(plugin)                            # doctest: +SKIP
    """

    idempotent = True

    def __init__(self, install_fn: Callable[[], Any], restart_workers: bool = False) -> None:
        self._install = install_fn
        self._id = secrets.token_hex(8)
        self.restart_workers = restart_workers
        self.name = f"{type(self).__name__}-{self._id}"

    @property
    def companion_kinds(self) -> tuple[str, ...]:
        """What it is registered for besides the scheduler."""
        return ("nanny",) if self.restart_workers else ("worker",)

    def companions(self) -> list[WorkerPlugin | NannyPlugin]:
        """What a client registers with it."""
        if self.restart_workers:
            return [_InNannies(self._install, self._id)]
        return [_OnWorkers(self._install, self._id)]

    async def start(self, scheduler: Scheduler) -> None:
        """Install on the scheduler's host."""
        await in_thread(install_once, self._install, self._id)


class _OnWorkers(WorkerPlugin):
    """The part of an `InstallPlugin` that workers run."""

    def __init__(self, install: Callable[[], Any], install_id: str) -> None:
        self._install, self._id = install, install_id

    def setup(self, worker: Worker) -> None:
        install_once(self._install, self._id)


class _InNannies(NannyPlugin):
    """The part of an `InstallPlugin` that nannies run, if workers are to start with it."""

    restart = True

    def __init__(self, install: Callable[[], Any], install_id: str) -> None:
        self._install, self._id = install, install_id

    def setup(self, nanny: Nanny) -> None:
        install_once(self._install, self._id)


class PipInstall(InstallPlugin):
    """Installs packages with pip, into the environment that scheduler and workers run in.

    Parameters
    ----------
    packages : list of str
        As on the command line of pip: names, names with versions, paths, URLs. Environment
        variables in them (``${TOKEN}``) are those of the host that installs.
    pip_options : list of str, optional
        Further options of ``pip install``.
    restart_workers : bool
        Whether to restart workers that run already, if they have a nanny, so that none goes on with
        an older version that it has imported.

    Raises
    ------
    InstallError
        From ``register_plugin``, if pip fails; with its words.

    Examples
    --------
    >>> plugin = PipInstall(["scikit-learn"], pip_options=["--upgrade"])
    >>> results = client.register_plugin(plugin)                            # doctest: +SKIP
    """

    def __init__(
        self,
        packages: Sequence[str],
        pip_options: Sequence[str] | None = None,
        restart_workers: bool = False,
    ) -> None:
        super().__init__(Pip(_several(packages), _several(pip_options)), restart_workers)


class CondaInstall(InstallPlugin):
    """Installs packages with conda, into the environment that scheduler and workers run in.

    Parameters
    ----------
    packages : list of str
        As on the command line of conda.
    conda_options : list of str, optional
        Further options of ``conda install``.
    restart_workers : bool
        As of `PipInstall`.

    Raises
    ------
    InstallError
        From ``register_plugin``, if there is no conda, or it fails; with its words.

    Examples
    --------
    >>> plugin = CondaInstall(["scikit-learn"], conda_options=["--update-deps"])
    >>> results = client.register_plugin(plugin)                            # doctest: +SKIP
    """

    def __init__(
        self,
        packages: Sequence[str],
        conda_options: Sequence[str] | None = None,
        restart_workers: bool = False,
    ) -> None:
        super().__init__(Conda(_several(packages), _several(conda_options)), restart_workers)


class Pip:
    """``pip install``."""

    def __init__(self, packages: list[str], options: list[str]) -> None:
        self.packages, self.options = packages, options

    def __call__(self) -> None:
        packages = [os.path.expandvars(package) for package in self.packages]
        python = [sys.executable, "-m", "pip", "install"]
        _run("pip", self.packages, [*python, *self.options, *packages])


class Conda:
    """``conda install``."""

    def __init__(self, packages: list[str], options: list[str]) -> None:
        self.packages, self.options = packages, options

    def __call__(self) -> None:
        # CONDA_EXE is set where an environment was activated, although conda itself is not on PATH.
        conda = os.environ.get("CONDA_EXE") or shutil.which("conda") or shutil.which("mamba")
        if not conda:
            raise InstallError(
                f"conda cannot install {' '.join(self.packages)} on {network.hostname()}: neither "
                "conda nor mamba is on PATH there, and CONDA_EXE is not set"
            )
        command = [conda, "install", "--yes", "--prefix", sys.prefix]
        _run("conda", self.packages, [*command, *self.options, *self.packages])


def _several(given: Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _run(what: str, packages: list[str], command: list[str]) -> None:
    log.info("%s installs %s", what, " ".join(packages))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # it must not ask for a password, nor read what is for us
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said, code = done.stdout, done.returncode
    except OSError as exc:
        said, code = str(exc), -1
    if code:
        last = "\n".join(said.strip().splitlines()[-_LAST_LINES:])
        raise InstallError(
            f"{what} could not install {' '.join(packages)} on {network.hostname()} (exit code "
            f"{code}); it said:\n{last}"
        )


# -- Once for each environment ---------------------------------------------------------------------


def install_once(install: Callable[[], Any], install_id: str) -> None:
    """Install, unless somebody else has into this environment.

    Parameters
    ----------
    install_id : str
        Tells this installation from others.
    """
    with _record() as record:
        ids = record.read().split() if record is not None else []
        if install_id not in ids:
            install()
            if record is not None:
                record.rewrite([*ids, install_id][-_REMEMBERED:])
    importlib.invalidate_caches()


class _Record:
    """The open file that tells which installations an environment has."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> str:
        """Return what it holds."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.read(self._descriptor, 64 * (_REMEMBERED + 1)).decode("ascii", "replace")

    def rewrite(self, ids: list[str]) -> None:
        """Replace what it holds."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, "\n".join(ids).encode())


@contextlib.contextmanager
def _record() -> Iterator[_Record | None]:
    """The record of this environment, locked; None where none can be written, or locked."""
    descriptor = _open_record()
    if descriptor is None:
        yield None
        return
    try:
        with _in_this_process:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # on NFS it counts for other hosts, too
            except OSError as exc:
                text = "cannot lock %s, so workers may install at the same time: %s"
                log.warning(text, _RECORD, exc)
            yield _Record(descriptor)
    finally:
        os.close(descriptor)


def _open_record() -> int | None:
    """Open the record where pip puts packages: the environment, else the user's own folder."""
    for folder in _package_folders():
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            return os.open(os.path.join(folder, _RECORD), flags, 0o666)
    return None


def _package_folders() -> list[str]:
    return [sysconfig.get_path("purelib"), site.getusersitepackages()]
