"""Live through one seed again: ``python tests/simulation/replay.py SEED [--trace]``."""

from __future__ import annotations

import argparse
import sys
import traceback

from simulator import N_DEEDS, Simulation, how_to_replay, report


def main(arguments: list[str] | None = None) -> int:
    """Replay a seed; 1 if it fails."""
    parser = argparse.ArgumentParser(description="Live through one seed again.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", action="store_true", help="show all that happens")
    parser.add_argument("--keys", nargs="+", default=[], help="only what names one of these")
    parser.add_argument("--deeds", type=int, default=N_DEEDS, help="what is done to the cluster")
    options = parser.parse_args(arguments)
    simulation = Simulation(options.seed)
    failure: BaseException | None = None
    try:
        simulation.run(options.deeds)
    except Exception as exc:
        failure = exc
    if options.trace or options.keys:
        everything = simulation.trace.lines()
        lines = everything
        if options.keys:
            lines = simulation.trace.relevant(options.keys, len(everything))
        print("\n".join(lines))
    if failure is None:
        print(f"seed {options.seed} is well after {simulation.clock.n_events} events")
        return 0
    traceback.print_exception(failure)
    print(report(simulation, how_to_replay(options.seed, options.deeds), failure))
    return 1


if __name__ == "__main__":
    sys.exit(main())
