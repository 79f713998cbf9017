"""The jobs of a cluster as a table: rows, and their looks as text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hpcdask.jobqueue.amounts import format_walltime
from hpcdask.jobqueue.controller import Row

#: Letters of a reason that a table of text has room for.
_REASON = 40


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """What is known of a job.

    Attributes
    ----------
    id : str
        As the batch system calls it.
    pool : str
        Kind of job in the cluster.
    state : str
        "pending", "running", "retiring" (its workers hand over), "ending"; of a job that is over
        how it has ended, as in "completed", "failed", "walltime", "cancelled" or "node failure";
        "retired" if it was given back when its workers had handed over.
    reason : str
        Why it waits or how it has ended, in the batch system's own words.
    node : str
        Where it runs.
    elapsed, left : float or None
        Seconds that it has run, and until its walltime is over.
    workers : int
        Those that have registered, of
    n_workers : int
        that it brings.
    log : str
        Paths of what it has written, several with a blank between.
    is_live : bool
        Whether it may be in the queue.
    """

    id: str
    pool: str
    state: str
    reason: str
    node: str
    elapsed: float | None
    left: float | None
    workers: int
    n_workers: int
    log: str
    is_live: bool

    @classmethod
    def of(cls, row: Row, n_workers: int, logs: Sequence[str], is_live: bool) -> JobRow:
        """What the controller knows, with what it does not."""
        known = row._asdict()
        node = known.pop("nodes")
        return cls(**known, node=node, n_workers=n_workers, log=" ".join(logs), is_live=is_live)


class JobTable(tuple[JobRow, ...]):
    """Rows of jobs, which show as a table: as text, and in a notebook."""

    __slots__ = ()

    def _columns(self) -> list[str]:
        columns = ["id", "state", "node", "elapsed", "left", "workers", "reason", "log"]
        if len({each.pool for each in self}) > 1:
            columns.insert(1, "pool")
        return columns

    def __repr__(self) -> str:
        if not self:
            return "no jobs"
        columns = self._columns()
        lines = [columns, *([_cell(each, name) for name in columns] for each in self)]
        for line in lines:
            reason = columns.index("reason")
            if len(line[reason]) > _REASON:
                line[reason] = line[reason][: _REASON - 1] + "\N{HORIZONTAL ELLIPSIS}"
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
            for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)

    def _repr_html_(self) -> str:
        columns = self._columns()
        head = "".join(f"<th>{name}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(each, name))}</td>" for name in columns) + "</tr>"
            for each in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(each: JobRow, name: str) -> str:
    if name == "workers":
        return f"{each.workers}/{each.n_workers}"
    value = getattr(each, name)
    if name in ("elapsed", "left"):
        return "" if value is None else format_walltime(round(value))
    return " ".join(str(value).split())


def summary(rows: Sequence[JobRow | Row]) -> str:
    """How many jobs there are in which state, as in "2 running, 1 pending (Resources)"."""
    counts: dict[str, int] = {}
    reasons: dict[str, list[str]] = {}
    for each in rows:
        counts[each.state] = counts.get(each.state, 0) + 1
        told = reasons.setdefault(each.state, [])
        if each.reason and each.state != "running" and each.reason not in told:
            told.append(each.reason)
    return ", ".join(
        f"{n} {state}" + (f" ({'; '.join(reasons[state])})" if reasons[state] else "")
        for state, n in counts.items()
    )
