"""What is the standard library of this Python made of?

Reads every source file of it, parses each in a task of its own on the cluster, and adds the
findings up by a tree of tasks. A serial pass over the same files then checks the totals.

    mpirun -np 4 hpc-dask run examples/stdlib_census.py   # on the ranks that mpirun started
    python examples/stdlib_census.py                      # on a cluster on this machine
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hpcdask import Client, as_completed

#: How many results one merging task takes.
FAN_IN = 8
#: How many entries the lists in the table have.
TOP = 5
#: Seconds after which we do not believe any more that the cluster will answer.
DEADLINE = 600

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Each of these opens one more path through a function.
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)

#: A census is a dict of builtin types, so that its pickle is small and needs none of our classes:
#:
#: files, unparsed, lines, functions, classes : int
#: names      Counter: how often each variable is named
#: longest    (-lines, module, function) of the longest function, or None
#: complex    at most TOP (-highest, -sum, module, functions) of the cyclomatic complexities
#:            of a module's functions; the most complex module first
Census = dict[str, Any]


# --- What is computed: pure functions, the same on a worker and in the serial pass ---------------


def census_of(module: str, source: bytes) -> Census:
    """Count what is in one source file; one that is not valid Python counts as `unparsed`."""
    # Old code has invalid escapes; not catch_warnings, which is not thread-safe.
    warnings.simplefilter("ignore", SyntaxWarning)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the tests of the parser itself: bad on purpose
        return {**nothing(), "unparsed": 1}

    complexity: dict[ast.AST, int] = {}
    names: Counter[str] = Counter()
    classes = 0
    # With the function that a node is in; a nested function is counted apart from its outer one.
    todo: list[tuple[ast.AST, ast.AST | None]] = [(tree, None)]
    while todo:
        node, function = todo.pop()
        if isinstance(node, FUNCTIONS):
            function = node
            complexity[node] = 1
        elif function is not None:
            complexity[function] += extra_paths(node)
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.ClassDef):
            classes += 1
        todo.extend((child, function) for child in ast.iter_child_nodes(node))

    return {
        "files": 1,
        "unparsed": 0,
        "lines": len(source.splitlines()),
        "functions": len(complexity),
        "classes": classes,
        "names": names,
        "longest": min(
            ((f.lineno - f.end_lineno - 1, module, f.name) for f in complexity), default=None
        ),
        "complex": [(-max(complexity.values()), -sum(complexity.values()), module, len(complexity))]
        if complexity
        else [],
    }


def extra_paths(node: ast.AST) -> int:
    """How many paths through its function `node` adds: McCabe's count, with and/or and `if` of
    comprehensions counted as branches."""
    if isinstance(node, BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        return 1
    return 0


def nothing() -> Census:
    """The census of no file at all; merging it with another changes nothing."""
    return {
        "files": 0,
        "unparsed": 0,
        "lines": 0,
        "functions": 0,
        "classes": 0,
        "names": Counter(),
        "longest": None,
        "complex": [],
    }


def merge(parts: Iterable[Census]) -> Census:
    """Add up censuses of different files.

    The order and the grouping of the parts make no difference: sums have none, and the extremes
    are taken by an order in which no two modules are equal.
    """
    total = nothing()
    for part in parts:
        for what in ("files", "unparsed", "lines", "functions", "classes"):
            total[what] += part[what]
        total["names"].update(part["names"])
        longest = [census["longest"] for census in (total, part) if census["longest"]]
        total["longest"] = min(longest, default=None)
        total["complex"] = sorted(total["complex"] + part["complex"])[:TOP]
    return total


# --- Reading and showing -------------------------------------------------------------------------


def stdlib_sources() -> Iterator[tuple[str, bytes]]:
    """Name and content of every source file of the standard library, tests included."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not {"site-packages", "dist-packages"} & set(relative.parts) and path.is_file():
            yield relative.as_posix(), path.read_bytes()


class Progress:
    """One line on stderr: rewritten on a terminal, else printed at each quarter."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def step(self) -> None:
        before, self.done = self.done, self.done + 1
        text = f"parsed {self.done:,} of {self.total:,} files"
        if sys.stderr.isatty():
            # A hundred updates are smooth enough, and cost nothing.
            if self.done * 100 // self.total > before * 100 // self.total:
                end = "\n" if self.done == self.total else ""
                print(f"\r{text}", end=end, file=sys.stderr, flush=True)
        elif self.done * 4 // self.total > before * 4 // self.total:
            print(text, file=sys.stderr, flush=True)


def on_cluster(client: Client, sources: list[tuple[str, bytes]]) -> tuple[Census, int]:
    """The census of all `sources`, and how many tasks it took."""
    modules, contents = zip(*sources, strict=True)
    leaves = level = client.map(census_of, modules, contents)
    ntasks = len(leaves)
    while len(level) > 1:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = client.map(merge, groups)
        ntasks += len(level)

    progress = Progress(len(leaves))
    for _ in as_completed(leaves, timeout=DEADLINE):
        progress.step()
    return level[0].result(timeout=DEADLINE), ntasks


def table(census: Census) -> list[tuple[str, str]]:
    """The census as rows of (what, how much)."""
    rows = [(what, f"{census[what]:,}") for what in ("files", "lines", "functions", "classes")]
    rows.append(("not valid Python", f"{census['unparsed']:,} files, not counted above"))
    if census["longest"]:
        negative_lines, module, function = census["longest"]
        rows.append(("longest function", f"{function}, {module}, {-negative_lines:,} lines"))
    commonest = sorted(census["names"].items(), key=lambda item: (-item[1], item[0]))[:TOP]
    rows.append(("commonest names", ", ".join(f"{name} {count:,}" for name, count in commonest)))
    for i, (highest, total, module, functions) in enumerate(census["complex"]):
        values = f"max {-highest}, mean {-total / functions:.1f}"
        rows.append(("most complex modules" if i == 0 else "", f"{module}: {values}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Count what the standard library is made of.")
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N files")
    limit = parser.parse_args().limit

    sources = list(stdlib_sources())[:limit]
    if not sources:
        print(f"no source files in {sysconfig.get_path('stdlib')}", file=sys.stderr)
        return 1

    with Client(timeout=60) as client:
        client.wait_for_workers(1, timeout=60)
        nthreads = client.nthreads()
        started = time.perf_counter()
        census, ntasks = on_cluster(client, sources)
        cluster_time = time.perf_counter() - started

    started = time.perf_counter()
    expected = merge(census_of(module, source) for module, source in sources)
    serial_time = time.perf_counter() - started

    wrong = [what for what in expected if census[what] != expected[what]]
    for what in wrong:
        print(f"{what}: cluster {census[what]!r:.300}", file=sys.stderr)
        print(f"{' ' * len(what)}   serial {expected[what]!r:.300}", file=sys.stderr)
    if wrong:
        print(f"the cluster and the serial pass differ in {', '.join(wrong)}", file=sys.stderr)
        return 1

    rows = table(census)
    rows += [
        ("workers, threads", f"{len(nthreads)}, {sum(nthreads.values())}"),
        ("tasks", f"{ntasks:,}, {ntasks / cluster_time:,.0f} per second"),
        ("wall time, cluster", f"{cluster_time:.2f} s"),
        ("wall time, serial", f"{serial_time:.2f} s, same totals"),
    ]
    width = max(len(what) for what, _ in rows)
    print("\n".join(f"{what:<{width}}  {value}" for what, value in rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
