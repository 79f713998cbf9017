"""Live through one seed again: ``python tests/simulation/replay_queue.py SEED [--trace]``."""

from __future__ import annotations

import argparse
import sys
import traceback

from queue_simulator import N_DEEDS, QueueSimulation


def main(arguments: list[str] | None = None) -> int:
    """Replay a seed; 1 if it fails."""
    parser = argparse.ArgumentParser(description="Live through one seed again.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", action="store_true", help="show all that happens")
    parser.add_argument("--deeds", type=int, default=N_DEEDS, help="what is done to the cluster")
    options = parser.parse_args(arguments)
    simulation = QueueSimulation(options.seed)
    failure: BaseException | None = None
    try:
        simulation.run(options.deeds)
    except Exception as exc:
        failure = exc
    if options.trace:
        print("\n".join(simulation.trace.lines()))
    if failure is None:
        print(f"seed {options.seed} is well after {simulation.clock.n_events} events")
        return 0
    traceback.print_exception(failure)
    return 1


if __name__ == "__main__":
    sys.exit(main())
