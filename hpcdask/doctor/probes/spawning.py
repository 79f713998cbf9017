"""Whether processes may be started, and how long one takes."""

from __future__ import annotations

import sys
import time

from hpcdask.doctor.facts import Spawning
from hpcdask.doctor.probes.programs import output


def look(timeout: float) -> Spawning:
    """Start a process as a nanny starts a worker: a fresh interpreter that imports hpcdask."""
    start = time.perf_counter()
    try:
        code, text = output(sys.executable, "-c", "import hpcdask.worker_process", timeout=timeout)
    except OSError as exc:
        code, text = 1, exc.strerror or str(exc)
    seconds = time.perf_counter() - start
    problem = (text.splitlines() or [f"exit code {code}"])[-1] if code else ""
    return {"seconds": seconds, "problem": problem}
