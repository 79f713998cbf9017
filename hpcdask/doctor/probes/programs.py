"""Asking other programs for their version and the like."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from hpcdask.nanny import MPI_VARIABLES

#: Seconds that a program has to answer.
PATIENCE = 5.0


def output(*argv: str, timeout: float = PATIENCE) -> tuple[int, str]:
    """Exit code of a program and what it printed, stderr behind stdout.

    It knows nothing of MPI: as a child of a rank it could else take itself for that rank.

    Raises
    ------
    OSError
        If it cannot be started, or does not end in time.
    """
    try:
        run = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=without_mpi(os.environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{argv[0]} did not end within {timeout:g} s") from None
    text = run.stdout.decode(errors="replace") + run.stderr.decode(errors="replace")
    return run.returncode, text.strip()


def without_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that a worker gets."""
    return {name: text for name, text in environ.items() if not name.startswith(MPI_VARIABLES)}
