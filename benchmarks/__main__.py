"""Measure every system on every row, in turns; print the table and write the samples as JSON."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from . import report
from .rows import ROWS
from .systems import ROOT, SYSTEMS, System, chosen

DEADLINE = 600.0  # seconds for one measurement; the slowest here needs about 200


class MeasurementError(RuntimeError):
    """A measurement ended without a result."""


def measure(system: System, row: str) -> dict[str, list[float]]:
    """Raw series of one measurement, taken in a fresh process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.one", system.name, row],
        cwd=ROOT, env=system.environ(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"no result within {DEADLINE:.0f} s") from None
    finally:
        if process.poll() is None:
            end_tree(process)
    if process.returncode:
        sys.stderr.write(err)
        reason = err.strip().splitlines() or ["no error message"]
        raise MeasurementError(f"exit code {process.returncode}: {reason[-1]}")
    try:
        series: dict[str, list[float]] = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise MeasurementError(f"printed no JSON but {out[-200:]!r}") from None
    return series


def end_tree(process: subprocess.Popen[str]) -> None:
    """Kill a measurement with its workers, which may lead sessions of their own."""
    root = psutil.Process(process.pid)
    for member in [*root.children(recursive=True), root]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def measure_all(
    row_names: list[str], system_names: list[str], rounds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All samples and all errors. What failed once is not tried again in later rounds."""
    samples: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for row in row_names:
        systems = [name for name in system_names if ROWS[row].measure_for(name)]
        for turn in range(min(rounds, ROWS[row].rounds or rounds)):
            for system in list(systems):
                where = {"row": row, "system": system, "round": turn}
                print(f"{row}, round {turn + 1} of {rounds}: {system}", file=sys.stderr)
                try:
                    samples.append(where | {"series": measure(SYSTEMS[system], row)})
                except MeasurementError as exc:
                    print(f"FAILED {row} on {system}: {exc}", file=sys.stderr)
                    errors.append(where | {"error": str(exc)})
                    systems.remove(system)
    return samples, errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", metavar="A,B", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--systems", metavar="A,B", help=f"of {', '.join(SYSTEMS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="what the JSON file has of other rows goes into the table",
    )
    parser.add_argument("--readme", type=Path, help="file to put the table into")
    arguments = parser.parse_args()
    try:
        arguments.rows = list(chosen(arguments.rows, ROWS))
        arguments.systems = list(chosen(arguments.systems, SYSTEMS))
    except ValueError as exc:
        parser.error(str(exc))
    return arguments


def main() -> int:
    arguments = parse_arguments()
    result: dict[str, Any] = {
        "machine": report.machine_facts(),
        "versions": report.versions(),
        "rounds": arguments.rounds,
        "settings": {name: system.settings for name, system in SYSTEMS.items()},
    }
    if arguments.keep and not arguments.json.is_file():
        sys.exit(f"--keep: there is no {arguments.json}; measure all rows first")
    if result["machine"]["load_before"] > 0.5:
        print("The machine is busy (load above 0.5): figures will be off.", file=sys.stderr)
    before = json.loads(arguments.json.read_text()) if arguments.keep else None
    samples, errors = measure_all(arguments.rows, arguments.systems, arguments.rounds)
    if before is not None:
        measured = {(row, system) for row in arguments.rows for system in arguments.systems}
        kept = [s for s in before["samples"] if (s["row"], s["system"]) not in measured]
        samples += kept
        errors += [e for e in before["errors"] if (e["row"], e["system"]) not in measured]
        result["kept"] = {"of": before["machine"]["date"], "rows": sorted({s["row"] for s in kept})}
    has_any = {each["row"] for each in (*samples, *errors)}
    rows = [row for row in ROWS if row in has_any]
    result |= {"samples": samples, "errors": errors}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = report.table(samples, rows)
    print(f"{table}\n\n{report.how_measured(result)}")
    for error in errors:
        print("FAILED {row} on {system}, round {round}: {error}".format_map(error))
    if arguments.readme:
        report.write_readme(arguments.readme, f"{table}\n\n{report.how_measured(result)}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
