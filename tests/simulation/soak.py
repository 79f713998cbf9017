"""Live through as many seeds as the time allows: ``make soak``, for `SOAK_SECONDS` seconds.

Seeds begin at `SOAK_SEED`, or at the time of day, so that each soak tries others. It uses all
cores, or `SOAK_PROCESSES`.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import get_context

from calm import replace_the_scheduler
from queue_simulator import QueueSeedFailed
from queue_simulator import live_through as live_in_a_queue
from simulator import SeedFailed, live_through

#: Seeds that one process takes at a time.
_CHUNK = 20
#: Failures after which more would tell little.
_MAX_FAILURES = 10


def failures_among(seeds: range) -> list[str]:
    """Live through some seeds; return the reports of those that fail."""
    failed = []
    for seed in seeds:
        try:
            # Longer lives find what takes many things at once, shorter ones tell it plainly.
            live_through(seed, n_deeds=(30, 60, 120, 300)[seed % 4])
            replace_the_scheduler(seed, n_deeds=(10, 20, 40, 80)[seed // 4 % 4])
            live_in_a_queue(seed, n_deeds=(10, 25, 50, 100)[seed // 4 % 4])
        except (SeedFailed, QueueSeedFailed) as exc:
            failed.append(str(exc))
    return failed


def main() -> int:
    """Soak; 1 if a seed fails."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    first = int(os.environ.get("SOAK_SEED", int(time.time()) * 1000))
    n_processes = int(os.environ.get("SOAK_PROCESSES", len(os.sched_getaffinity(0))))
    start_time = time.monotonic()
    end = start_time + seconds
    n_seeds = n_failed = 0
    with get_context("spawn").Pool(n_processes) as pool:

        def chunks() -> list[range]:
            start = first + n_seeds
            return [
                range(s, s + _CHUNK) for s in range(start, start + _CHUNK * n_processes, _CHUNK)
            ]

        while time.monotonic() < end and n_failed < _MAX_FAILURES:
            for failed in pool.imap_unordered(failures_among, chunks()):
                n_seeds += _CHUNK
                n_failed += len(failed)
                print("\n\n".join(failed), end="\n\n" if failed else "", flush=True)
    rate = n_seeds / (time.monotonic() - start_time)
    print(f"{n_seeds} seeds from {first}, {rate:.1f} per second: {n_failed} failed")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
