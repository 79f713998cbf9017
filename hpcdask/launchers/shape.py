"""How many workers a host gets, and of how many threads each."""

from __future__ import annotations

from typing import SupportsIndex

from hpcdask import sizing
from hpcdask.errors import ConfigError


def default_shape(
    n_workers: int | None, nthreads: int | None, cpus: int | None = None
) -> tuple[int, int]:
    """Numbers of workers and of threads of each, for `cpus`: by default those of this process."""
    for what, number in (("workers", n_workers), ("threads for each worker", nthreads)):
        if number is not None and not isinstance(number, SupportsIndex):
            raise TypeError(f"the number of {what} is a whole one or None, not {number!r}")
        if number is not None and number < 0:
            raise ConfigError(f"a cluster cannot have {number} {what}")
    cpus = cpus or sizing.cpus_here()
    if n_workers is None and nthreads is None:
        # About the square root, so that neither the GIL nor copies between processes dominate.
        n_workers = cpus if cpus <= 4 else max(n for n in range(1, cpus + 1) if n * n <= cpus)
        return n_workers, max(cpus // n_workers, 1)
    if n_workers is None:
        assert nthreads is not None
        return max(cpus // nthreads, 1), nthreads
    return n_workers, nthreads or max(cpus // max(n_workers, 1), 1)


def parse_nworkers(text: str | int) -> int | None:
    """Read a number of workers; None for "auto".

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--nworkers {text!r} is neither a number nor 'auto'") from None


def shape_of_host(
    nworkers: str | int, nthreads: int | None, cpus: int | None = None
) -> tuple[int, int]:
    """Numbers of workers and of threads of each, as a user asks for them on one host.

    Parameters
    ----------
    nworkers : str or int
        A number; a negative one is CPUs + 1 + it; or "auto", chosen with the threads.
    nthreads : int, optional
        Threads of each worker; by default the CPUs are shared.
    cpus : int, optional
        Of the host; by default those of this process.

    Raises
    ------
    ConfigError
        If that gives no worker.
    """
    cpus = cpus or sizing.cpus_here()
    given = parse_nworkers(nworkers)
    n = cpus + 1 + given if given is not None and given < 0 else given
    if n is not None and n < 1:
        raise ConfigError(f"--nworkers {nworkers} gives {n} workers on {cpus} CPUs")
    return default_shape(n, nthreads or None, cpus)
