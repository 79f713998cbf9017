"""From samples to a Markdown table, and the facts about the machine that belong beside it."""

import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from .figures import Figure, Medians, Row, Target
from .rows import ROWS
from .systems import SYSTEMS

HEADER = [
    "work", "unit", *SYSTEMS, "x distributed", "x tuned", "must", "met", "aim", "met"
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
    peers = ("distributed", "dask", "dask-jobqueue", "uvloop")
    for package in ("hpcdask", *peers, "tornado", "msgpack", "psutil"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def medians(
    reduce: Callable[[list[float]], float], series: str, samples: Iterable[dict[str, Any]]
) -> dict[str, float]:
    """Median over the rounds of a reduced series, for each system that has it."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        found = sample["series"].get(series)
        if found:
            values.setdefault(sample["system"], []).append(reduce(found))
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


def lines_of(row: Row, samples: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The cells of each figure, of the samples of this row."""
    of_row = {name: medians(median, name, samples) for f in row.figures for name in [f.series]}
    for figure in row.figures:
        found = medians(figure.reduce, figure.series, samples)
        if found:
            yield line(figure, {**figure.recorded, **found}, of_row, set(found))


def line(figure: Figure, own: dict[str, float], row: Medians, measured: set[str]) -> list[str]:
    def cell(system: str) -> str:
        is_recorded = system in own and system not in measured
        return number(own.get(system)) + (" (recorded)" if is_recorded else "")

    def verdict(targets: tuple[Target, ...]) -> list[str]:
        met = {True: "yes", False: "no", None: "-"}[figure.meets(targets, own, row)]
        return [", ".join(map(str, targets)) or "-", met]

    return [
        figure.label,
        figure.unit,
        *map(cell, SYSTEMS),
        ratio(figure, own, "distributed"),
        ratio(figure, own, "tuned"),
        *verdict(figure.must),
        *verdict(figure.aim),
    ]


def table(samples: list[dict[str, Any]], row_names: Iterable[str]) -> str:
    """The whole Markdown table, its columns aligned so that it reads in a terminal too."""
    lines = [HEADER]
    for name in row_names:
        lines += lines_of(ROWS[name], [s for s in samples if s["row"] == name])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def how_measured(result: dict[str, Any]) -> str:
    machine, packages = result["machine"], result["versions"]
    kept = ""
    if "kept" in result:
        names, when = ", ".join(result["kept"]["rows"]), result["kept"]["of"][:16]
        kept = f" Measured before, in a run of {when}: {names}."
    return (
        f"Measured {machine['date'][:10]} on {machine['cores']} cores of {machine['cpu']} with "
        f"{machine['memory_gb']} GB, {machine['kernel']}, Python {packages['python']}, distributed "
        f"{packages['distributed']}, uvloop {packages['uvloop']}, hpcdask {packages['hpcdask']}; "
        f"medians of {result['rounds']} round(s), in which the systems take turns. The columns *x* "
        "say how many times better hpcdask is; *must* is what it has to reach, *aim* what is "
        "worked towards. What each line measures is in `docs/performance.md`. Absolute figures "
        f"wander from run to run, ratios hold. Again with `python -m benchmarks`.{kept}"
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
