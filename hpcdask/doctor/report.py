"""The report for people, on one screen, and the document for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from hpcdask import descriptors
from hpcdask.doctor.checks.connections import typical_speed, used_interface
from hpcdask.doctor.checks.hosts import room_for_tasks
from hpcdask.doctor.checks.ranks import numbers_of_ranks
from hpcdask.doctor.facts import Examination, HostFacts, Reached
from hpcdask.doctor.findings import Finding, by_text, listing
from hpcdask.host import format_bytes

#: Findings of either kind that are shown; all are in the document.
_SHOWN = 10
#: Hosts up to which the matrix is drawn.
_DRAWN = 6
#: Groups of hosts of which something different is said in one row.
_GROUPS = 4
_LABEL = 13
_COLOURS = {"red": "\033[1;31m", "yellow": "\033[33m"}
_WORDS = {"red": "FAIL", "yellow": "WARN"}
_PLAIN = "\033[0m"


def document(examination: Examination, findings: Sequence[Finding]) -> str:
    """All facts and findings as JSON."""
    content = {
        "ok": not any(finding.severity == "red" for finding in findings),
        "findings": [finding._asdict() for finding in findings],
        **examination,
    }
    return json.dumps(content, indent=2)


def report(
    examination: Examination, findings: Sequence[Finding], width: int = 100, colours: bool = False
) -> str:
    """The report.

    Parameters
    ----------
    findings : sequence of Finding
        The worst first.
    width : int
        Columns of the screen.
    colours : bool
        Whether it shows colours.
    """
    lines = [_title(examination, findings), ""]
    for severity in ("red", "yellow"):
        those = [finding for finding in findings if finding.severity == severity]
        for finding, following in zip(those[:_SHOWN], [*those[1:_SHOWN], None], strict=False):
            # A cure of several findings is said once, behind the last of them.
            is_last = following is None or following.cure != finding.cure
            lines += _finding(finding, is_last, width, colours)
        if len(those) > _SHOWN:
            lines.append(f"{_WORDS[severity]}  and {len(those) - _SHOWN} more; see --json")
        if those:
            lines.append("")
    for label, text in facts_table(examination):
        lines += _row(label, text, width)
    return "\n".join(lines)


def _title(examination: Examination, findings: Sequence[Finding]) -> str:
    number = len(examination["hosts"])
    where = f"{number} host{'s' * (number > 1)}"
    if examination["size"] > 1:
        where += f", {len(examination['ranks'])} of {examination['size']} ranks"
    reds = sum(finding.severity == "red" for finding in findings)
    yellows = len(findings) - reds
    verdict = [f"{n} {word}" for n, word in ((reds, "would fail"), (yellows, "to note")) if n]
    what = ", ".join(verdict) or "all is well"
    return (
        f"hpc-dask {examination['version']} doctor, {where}, {examination['seconds']:.1f} s: {what}"
    )


def _finding(finding: Finding, with_cure: bool, width: int, colours: bool) -> Iterator[str]:
    word = _WORDS[finding.severity]
    indent = " " * (len(word) + 2)
    what, *rest = textwrap.wrap(
        f"{finding.what}.", width - len(indent), break_long_words=False, break_on_hyphens=False
    )
    shown = f"{_COLOURS[finding.severity]}{word}{_PLAIN}" if colours else word
    yield f"{shown}  {what}"
    yield from (indent + line for line in rest)
    if with_cure:
        yield from textwrap.wrap(
            f"{finding.cure}.",
            width,
            initial_indent=indent + "-> ",
            subsequent_indent=indent + "   ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _row(label: str, text: str, width: int) -> Iterator[str]:
    indent = " " * _LABEL
    first = f"{label:<{_LABEL}}"
    for line in text.splitlines():
        if line.startswith(" "):  # a table of its own
            yield first + line[1:]
        else:
            yield from textwrap.wrap(
                line,
                width,
                initial_indent=first,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        first = indent


# -- Facts ----------------------------------------------------------------------------------------


def facts_table(examination: Examination) -> Iterator[tuple[str, str]]:
    """Label and text of each row; several lines of text where there is a matrix in it."""
    hosts = examination["hosts"]
    yield "hosts", _hosts(examination)
    for label, subject, say in _ROWS:
        texts = {name: say(facts) for name, facts in hosts.items() if subject in facts}
        if text := _merged(texts):
            yield label, text
    yield from _network(examination)
    if text := _scheduler_file(examination):
        yield "file", text
    if text := _clocks(examination):
        yield "clocks", text
    yield from _measures(examination)


def _hosts(examination: Examination) -> str:
    names = list(examination["hosts"])
    if examination["size"] == 1:
        return listing(names, 8)
    numbers = numbers_of_ranks(examination)
    counts = {name: str(numbers[name]) for name in names}
    groups = [
        f"{listing(those, 8)} with {number} rank{'s' * (number != '1')}"
        for number, those in by_text(counts).items()
    ]
    return "; ".join(groups) + (
        f", started by {examination['launcher']}" if examination["launcher"] else ""
    )


def _merged(texts: Mapping[str, str]) -> str:
    """What is the same on all hosts once, else by groups of hosts."""
    groups = by_text({name: text for name, text in texts.items() if text})
    if len(groups) == 1 and len(texts) == len(next(iter(groups.values()))):
        return next(iter(groups))
    shown = [f"{text} ({listing(names)})" for text, names in groups.items()]
    if len(shown) > _GROUPS:
        shown[_GROUPS:] = [f"and {len(shown) - _GROUPS} other kinds"]
    return "; ".join(shown)


def _spread(numbers: Mapping[str, float], say: Callable[[float], str]) -> str:
    """The least and the most of numbers that differ from host to host, with the host of either."""
    least = min(numbers, key=numbers.__getitem__)
    most = max(numbers, key=numbers.__getitem__)
    low, high = say(numbers[least]), say(numbers[most])
    return low if low == high else f"{low} ({least}) to {high} ({most})"


def _python(facts: HostFacts) -> str:
    software = facts["software"]
    return f"{software['python']}, {software['executable']}"


def _packages(facts: HostFacts) -> str:
    return ", ".join(f"{n} {version}" for n, version in facts["software"]["packages"].items())


def _mpi(facts: HostFacts) -> str:
    launch = facts["launch"]
    mpirun = launch["mpirun_version"] or launch["mpirun"]
    library = launch["mpi_library"] and f"mpi4py with {launch['mpi_library']}"
    return ", ".join(filter(None, [mpirun or "no mpirun", library or "no mpi4py"]))


def _batch(facts: HostFacts) -> str:
    launch = facts["launch"]
    systems = ", ".join(launch["batch_systems"]) or "none found"
    return f"{systems}, in job {launch['job']}" if launch["job"] else systems


def _cpus(facts: HostFacts) -> str:
    grants = facts["grants"]
    return f"{grants['cpus']} of {grants['host_cpus']} ({_deciding(grants['cpu_sources'])})"


def _memory(facts: HostFacts) -> str:
    grants = facts["grants"]
    return f"{format_bytes(grants['memory'])} ({_deciding(grants['memory_sources'])})"


def _deciding(sources: Mapping[str, int]) -> str:
    """Who grants the least."""
    return min(sources, key=sources.__getitem__)


def _gpus(facts: HostFacts) -> str:
    grants = facts["grants"]
    if not grants["gpus"]:
        return f"none ({grants['gpu_source']})" if grants["gpu_source"] else "none"
    names = ", ".join(dict.fromkeys(grants["gpu_names"]))
    return f"{grants['gpus']} ({grants['gpu_source']}){': ' * bool(names)}{names}"


def _scratch(facts: HostFacts) -> str:
    scratch = facts["scratch"]
    if scratch["problem"]:
        return f"{scratch['path']} cannot be used"
    return f"{scratch['path']} ({scratch['filesystem'] or 'of unknown kind'})"


def _token(facts: HostFacts) -> str:
    token = facts["token"]
    if not token["exists"]:
        return f"{token['source']}, to be made when first used"
    return f"{token['source']} ({token['mode']})" if token["mode"] else token["source"]


#: Label, key of `HostFacts`, and what to say of it.
_ROWS: tuple[tuple[str, str, Callable[[HostFacts], str]], ...] = (
    ("Python", "software", _python),
    ("packages", "software", _packages),
    ("MPI", "launch", _mpi),
    ("batch", "launch", _batch),
    ("CPUs", "grants", _cpus),
    ("memory", "grants", _memory),
    ("GPUs", "grants", _gpus),
    ("scratch", "scratch", _scratch),
    ("token", "token", _token),
)


def _round(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


# -- Between hosts --------------------------------------------------------------------------------


def _network(examination: Examination) -> Iterator[tuple[str, str]]:
    used = used_interface(examination)
    interfaces = dict.fromkeys(
        place["interface"]
        for facts in examination["hosts"].values()
        if "network" in facts
        for place in facts["network"]["candidates"]
    )
    for interface in sorted(interfaces, key=lambda name: name != used):
        lines = [_interface(interface, interface == used, examination)]
        number = len(examination["hosts"])
        if 1 < number <= _DRAWN:
            lines += _matrix(interface, examination)
        yield interface, "\n".join(lines)
    ports = {
        name: f"{p['free']} of {p['total']} in {p['range']} are free"
        for name, facts in examination["hosts"].items()
        if "network" in facts and (p := facts["network"]["ports"])["range"]
    }
    if ports:
        yield "ports", _merged(ports)


def _interface(interface: str, is_used: bool, examination: Examination) -> str:
    addresses = [
        place["address"]
        for facts in examination["hosts"].values()
        if "network" in facts
        for place in facts["network"]["candidates"]
        if place["interface"] == interface
    ]
    parts = ["used" if is_used else "not used", listing(list(dict.fromkeys(addresses)))]
    ways = [each for each in examination["reached"] if each["interface"] == interface]
    between = [each for each in ways if each["source"] != each["target"]]
    failed = [each for each in ways if each["seconds"] is None]
    if ways:
        what = "all hosts reach each other" if between else "it reaches itself"
        parts.append(f"{len(failed)} of {len(ways)} ways fail" if failed else what)
    if latency := _latency(between or ways):
        parts.append(latency)
    if speed := typical_speed(examination["carried"], interface):
        parts.append(f"{format_bytes(speed)}/s" + _least(examination, interface, speed))
    return ", ".join(parts)


def _latency(ways: Sequence[Reached]) -> str:
    times = sorted((each["seconds"], each["source"], each["target"]) for each in _open(ways))
    if not times:
        return ""
    middle, (most, source, target) = times[len(times) // 2][0], times[-1]
    text = f"{_milliseconds(middle)} ms there and back"
    if most > 3 * middle and len(times) > 2:
        text += f" (most {_milliseconds(most)}, {source} to {target})"
    return text


def _open(ways: Sequence[Reached]) -> Iterator[Any]:
    return (each for each in ways if each["seconds"] is not None)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _least(examination: Examination, interface: str, typical: float) -> str:
    speeds = [
        (each["bytes_per_second"], each["source"], each["target"])
        for each in examination["carried"]
        if each["interface"] == interface and each["bytes_per_second"]
    ]
    least, source, target = min(speeds)
    return (
        f" (least {format_bytes(least)}/s, {source} to {target})" if least < 0.7 * typical else ""
    )


def _matrix(interface: str, examination: Examination) -> Iterator[str]:
    """Milliseconds there and back, from each host (row) to each host (column)."""
    names = list(examination["hosts"])
    cells: dict[tuple[str, str], str] = {}
    for each in examination["reached"]:
        if each["interface"] == interface:
            seconds, way = each["seconds"], (each["source"], each["target"])
            text = "fails" if seconds is None else _milliseconds(seconds)
            # Of several ports, one that fails is what matters.
            cells[way] = text if cells.get(way) != "fails" else "fails"
    head = max(len("ms"), *map(len, names)) + 2
    columns = [max(len(name), 6) + 2 for name in names]
    yield (
        " "
        + f"{'ms':<{head}}"
        + "".join(f"{name:>{column}}" for name, column in zip(names, columns, strict=True))
    )
    for source in names:
        row = [cells.get((source, target), "-") for target in names]
        yield (
            " "
            + f"{source:<{head}}"
            + "".join(f"{text:>{column}}" for text, column in zip(row, columns, strict=True))
        )


def _scheduler_file(examination: Examination) -> str:
    folders = {
        name: f"{facts['folder']['path']} ({facts['folder']['filesystem'] or 'of unknown kind'})"
        for name, facts in examination["hosts"].items()
        if "folder" in facts
    }
    text = _merged(folders)
    seen = examination["scheduler_file"]
    times = [s for s in seen["seconds"].values() if s is not None] if seen else []
    if times and seen is not None:
        blind = len(seen["seconds"]) - len(times)
        text += f", seen by the others after {_round(max(times))} s"
        text += f", but for {blind} of them" if blind else ""
    return text


def _clocks(examination: Examination) -> str:
    clocks = list(examination["clocks"].values())
    if len(clocks) < 2:
        return ""
    skew = max(abs(clock["ahead"]) for clock in clocks)
    known_to = max(clock["uncertainty"] for clock in clocks)
    return f"within {_milliseconds(max(skew, known_to))} ms of each other"


def _measures(examination: Examination) -> Iterator[tuple[str, str]]:
    """What is a number of its own on every host."""
    hosts = examination["hosts"]
    free = {
        name: float(scratch["free"])
        for name, facts in hosts.items()
        if "scratch" in facts and not (scratch := facts["scratch"])["problem"]
    }
    if free:
        yield "free scratch", _spread(free, format_bytes)
    starts = {
        name: spawning["seconds"]
        for name, facts in hosts.items()
        if "spawning" in facts and not (spawning := facts["spawning"])["problem"]
    }
    if starts:
        yield "start", "of Python with hpcdask: " + _spread(starts, lambda s: f"{_round(s)} s")
    limits = {name: facts["limits"] for name, facts in hosts.items() if "limits" in facts}
    if limits:
        n = examination["nworkers"]
        files = {name: _or_infinite(each["open_files_hard"]) for name, each in limits.items()}
        needed = f"{descriptors.needed(n)} needed for {n} worker{'s' * (n > 1)}"
        yield "open files", f"{_spread(files, _count)}, {needed}"
        rooms = {name: room_for_tasks(each) for name, each in limits.items()}
        tasks = {name: inf if room is None else float(room) for name, room in rooms.items()}
        yield "processes", f"{_spread(tasks, _count)} more with their threads"


def _or_infinite(limit: int) -> float:
    return inf if limit < 0 else float(limit)


def _count(number: float) -> str:
    return "unlimited" if number == inf else f"{number:.0f}"
