"""File descriptors: how many this process may open, and how many a cluster needs.

Shells have a soft limit of 1024 as a rule, for old programs' sake, and a hard limit up to which any
process may raise its own.
"""

from __future__ import annotations

#: Connections of a scheduler per worker: the worker's own and its nanny's.
PER_WORKER = 2
#: What it needs besides: listeners, clients, workers that are being dialled back, files.
SPARE = 256
#: More than this is never needed, and there are programs that go through all that are possible.
_MOST = 2**20


def limit() -> int:
    """How many file descriptors this process may have open."""
    return _limits()[0]


def raise_limit(to: int = _MOST) -> int:
    """Let this process open so many, or as many as it may; return how many these are."""
    import resource

    soft, hard = _limits()
    wanted = min(to, hard)
    if wanted > soft:
        try:
            _, true_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, true_hard))
        except (OSError, ValueError):  # macOS has a lower limit that it does not tell of
            return soft
    return max(wanted, soft)


def _limits() -> tuple[int, int]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = _MOST
    return (hard if soft == resource.RLIM_INFINITY else soft), hard


def needed(n_workers: int) -> int:
    """How many a scheduler of so many workers needs."""
    return PER_WORKER * n_workers + SPARE


def shortage(n_workers: int, available: int) -> str:
    """Say that a scheduler of so many workers has too few, if it has; else ""."""
    if needed(n_workers) <= available:
        return ""
    return (
        f"this process may have {available} files and connections open, and a scheduler of "
        f"{n_workers} workers needs about {needed(n_workers)}: raise the hard limit to that "
        "(ulimit -Hn, /etc/security/limits.conf), or have fewer workers of more threads each"
    )
