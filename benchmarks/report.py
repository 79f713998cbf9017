"""From samples to a Markdown table, and the facts about the machine that belong beside it."""

import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from .rows import ROWS, Figure, Row
from .systems import SYSTEMS

HEADER = [
    "work", "unit", *SYSTEMS, "x distributed", "x tuned", "target", "reached"
]  # fmt: skip
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def machine_facts() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("hpcdask", "distributed", "dask", "tornado", "uvloop", "msgpack", "psutil"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def medians(figure: Figure, row_name: str, samples: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Median over the rounds of the reduced figure, for each system that has it."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        series = sample["series"].get(figure.series)
        if sample["row"] == row_name and series:
            values.setdefault(sample["system"], []).append(figure.reduce(series))
    return {system: median(found) for system, found in values.items()}


def number(value: float | None) -> str:
    """Three digits, or all digits before the point: 0.0123, 1.23, 12,345."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(figure: Figure, found: dict[str, float], peer: str) -> str:
    """How many times better hpcdask is than `peer`."""
    ours, theirs = found.get("hpcdask"), found.get(peer)
    if not ours or not theirs:
        return "-"
    return number(ours / theirs if figure.is_more_better else theirs / ours)


def line(figure: Figure, row: Row, found: dict[str, float]) -> list[str]:
    targets = ", ".join(map(str, figure.targets))
    reached = {True: "yes", False: "no", None: "-"}[figure.is_met(found)]
    if row.is_later and reached != "yes":
        reached = "later target"
    return [
        figure.label,
        figure.unit,
        *(number(found.get(system)) for system in SYSTEMS),
        ratio(figure, found, "distributed"),
        ratio(figure, found, "tuned"),
        targets or "-",
        reached,
    ]


def table(samples: list[dict[str, Any]], row_names: Iterable[str]) -> str:
    """The whole Markdown table, its columns aligned so that it reads in a terminal too."""
    lines = [HEADER]
    for name in row_names:
        row = ROWS[name]
        lines += [line(f, row, medians(f, name, samples)) for f in row.figures]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def how_measured(result: dict[str, Any]) -> str:
    machine, packages = result["machine"], result["versions"]
    return (
        f"Measured {machine['date'][:10]} on {machine['cores']} cores of {machine['cpu']} with "
        f"{machine['memory_gb']} GB, {machine['kernel']}, Python {packages['python']}, distributed "
        f"{packages['distributed']}, hpcdask {packages['hpcdask']}; medians of {result['rounds']} "
        "round(s); the systems take turns, each measurement in a fresh process. Two workers "
        "of one thread each unless the row says otherwise, dashboards off, `pure=False`. *tuned* "
        f"is distributed with uvloop {packages['uvloop']}, `worker-saturation: inf`, and work "
        "stealing, worker profiler and GIL monitor off; the pool has `max_workers=2` and "
        "`chunksize=1`. The columns *x* say how many times better hpcdask is. Throughput counts "
        "from the first call to the last result in the client, after a warm-up, median of three "
        "runs with a second between them in which old results are released; *start* runs from "
        "constructing LocalCluster and Client until all workers have registered, imports excluded; "
        "*idle* is client, scheduler and all other processes over 10 s; *import* is a whole "
        '`python -c "import ..."` with warm caches, and its calls are those that name a file, '
        "counted by strace. Absolute figures wander from run to run, ratios hold. Again with "
        "`python -m benchmarks`."
    )


def write_readme(path: Path, text: str) -> None:
    """Put `text` between the two markers of a file.

    Raises
    ------
    ValueError
        If the file has not both markers, in order.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} needs the lines {BEGIN} and {END} around the place for the table")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
