"""Figures as HTML that needs nothing else: what tasks spent their time with, and where they ran."""

from __future__ import annotations

import html
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from zlib import crc32

#: Calls that are narrower than this share of the whole are left out, and runs beyond so many.
_NARROW, _MAX_RUNS = 0.001, 20_000
_COLOURS = ("#8dd3c7", "#fdb462", "#80b1d3", "#fb8072", "#b3de69", "#bebada", "#fccde5", "#ffed6f")
_STYLE = """
body { font: 13px sans-serif }
.lane { position: relative; height: 18px; margin-bottom: 1px; background: #f4f4f4 }
.lane div, .row div { position: absolute; height: 16px; overflow: hidden; white-space: nowrap;
  font-size: 11px; line-height: 16px; border-right: 1px solid #fff; box-sizing: border-box }
.row { position: relative; height: 17px }
"""


class Figure:
    """A figure. Notebooks show it; `save` writes it to a file.

    Attributes
    ----------
    body : str
        HTML.
    """

    def __init__(self, title: str, body: str) -> None:
        self.title, self.body = title, body

    def _repr_html_(self) -> str:
        return f"<style>{_STYLE}</style>{self.body}"

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write it as a page of its own."""
        title = html.escape(self.title)
        page = f"<!doctype html><meta charset='utf-8'><title>{title}</title>{self._repr_html_()}"
        with open(filename, "w", encoding="utf-8") as file:
            file.write(page)


def flame_graphs(trees: Mapping[str, dict[str, Any]]) -> Figure:
    """One graph for each tree of `Client.profile`: callers above, calls below, widths by time."""
    parts = []
    for name, tree in trees.items():
        heading = f"{name}: {tree['count']} looks" if name else f"{tree['count']} looks"
        rows = "".join(f"<div class='row'>{row}</div>" for row in _rows(tree))
        parts.append(f"<h3>{html.escape(heading)}</h3>{rows}")
    return Figure("What tasks spent their time with", "".join(parts))


def _rows(tree: dict[str, Any]) -> Iterator[str]:
    """Boxes of each depth, the outermost first."""
    whole = max(tree["count"], 1)
    level: list[tuple[float, dict[str, Any]]] = [(0.0, tree)]
    while True:
        below: list[tuple[float, dict[str, Any]]] = []
        for left, node in level:
            for child in sorted(node["children"].values(), key=lambda c: -c["count"]):
                if child["count"] / whole >= _NARROW:
                    below.append((left, child))
                left += child["count"] / whole
        if not below:
            return
        yield "".join(_call(left, node, whole) for left, node in below)
        level = below


def _call(left: float, node: dict[str, Any], whole: int) -> str:
    about, share = node["description"], node["count"] / whole
    text = f"{about['name']} ({about['filename']}, line {about['line_number']}): {share:.1%}"
    return _box(left, share, about["name"], about["name"], text)


def task_stream(runs: Iterable[dict[str, Any]]) -> Figure:
    """What `Client.get_task_stream` gives, as boxes along the time, in lanes of each worker."""
    runs = list(runs)[-_MAX_RUNS:]
    times = [(run["startstops"][0]["start"], run["startstops"][0]["stop"]) for run in runs]
    first = min((start for start, _ in times), default=0.0)
    length = max((stop for _, stop in times), default=0.0) - first or 1.0
    by_worker: defaultdict[str, list[tuple[float, float, dict[str, Any]]]] = defaultdict(list)
    for (start, stop), run in zip(times, runs, strict=True):
        by_worker[run["worker"]].append(((start - first) / length, (stop - first) / length, run))
    parts = [f"<h3>{len(runs)} tasks within {length:.3g} s</h3>"]
    for worker in sorted(by_worker):
        boxes = (
            "".join(_ran(*each, length) for each in lane) for lane in _lanes(by_worker[worker])
        )
        parts.append(f"<p>{html.escape(worker)}</p>")
        parts += [f"<div class='lane'>{lane}</div>" for lane in boxes]
    return Figure("Which tasks ran where and when", "".join(parts))


def _lanes(
    runs: list[tuple[float, float, dict[str, Any]]],
) -> list[list[tuple[float, float, dict[str, Any]]]]:
    """Runs that do not overlap, as those of one thread; as few lanes as possible."""
    lanes: list[list[tuple[float, float, dict[str, Any]]]] = []
    for run in sorted(runs, key=lambda run: run[:2]):
        for lane in lanes:
            if lane[-1][1] <= run[0] + 1e-6:
                lane.append(run)
                break
        else:
            lanes.append([run])
    return lanes


def _ran(start: float, stop: float, run: dict[str, Any], length: float) -> str:
    seconds = (stop - start) * length
    failed = ", failed" if run["status"] == "error" else ""
    text = f"{run['key']}: {seconds:.3g} s, {run['nbytes']} bytes{failed}"
    return _box(start, stop - start, run["name"], run["name"], text)


def _box(left: float, width: float, kind: str, label: str, text: str) -> str:
    colour = _COLOURS[crc32(kind.encode()) % len(_COLOURS)]
    style = f"left:{left:.4%};width:max({width:.4%},1px);background:{colour}"
    return f"<div style='{style}' title='{html.escape(text)}'>{html.escape(label)}</div>"
