"""Whether each host by itself would do."""

from __future__ import annotations

from collections.abc import Iterator

from hpcdask import descriptors
from hpcdask.doctor.checks.ranks import numbers_of_ranks
from hpcdask.doctor.facts import Examination, HostFacts, Limits, Scratch, TokenFacts
from hpcdask.doctor.findings import Finding, by_text, listing, together, what_and_cure
from hpcdask.host import format_bytes

#: Below the first a disk is full, below the second it soon will be; in bytes.
_FULL, _NEARLY_FULL = 64 * 2**20, 2 * 2**30
#: Files that can still be made in a folder that is not full.
_FEW_FILES = 100
#: Seconds to write a MiB, and to start Python and import hpcdask, that are worth a word.
_SLOW_WRITE, _SLOW_START = 1.0, 5.0
#: Processes and threads that a worker takes on its host: nanny and worker, and their helpers.
_TASKS_PER_WORKER = 16
#: Bytes that a worker needs to do anything.
_LEAST_MEMORY = 256 * 2**20

_OTHER_SCRATCH = "name another folder on a local disk with --local-directory, or set TMPDIR"
_ROOM_IN_SCRATCH = f"remove what is old in it, or {_OTHER_SCRATCH}"


def check(examination: Examination) -> Iterator[Finding]:
    """Findings about hosts."""
    hosts = examination["hosts"]
    numbers = numbers_of_ranks(examination)
    yield from together(
        {
            name: list(_host(facts, examination["nworkers"], max(numbers[name], 1)))
            for name, facts in hosts.items()
        }
    )
    yield from _slow_start(hosts)
    yield from _tokens_differ(hosts)


def _host(facts: HostFacts, nworkers: int, nranks: int) -> Iterator[Finding]:
    """Findings about one host, with "{on}" where its name belongs."""
    for subject, reason in facts.get("errors", {}).items():
        yield Finding(
            "red",
            subject,
            f"cannot find out about {subject} {{on}}: {reason}",
            "see whether file servers and drivers of that host answer (df, ls, nvidia-smi)",
        )
    if "software" in facts and (problem := facts["software"]["problem"]):
        yield Finding(
            "red",
            "software",
            f"{problem} {{on}}",
            "correct it where it is set; docs/configuration.md lists what there is",
        )
    for problem in facts["launch"]["batch_problems"] if "launch" in facts else ():
        yield Finding(
            "yellow",
            "launch",
            f"the batch system does not answer {{on}}: {problem}",
            "no job can be submitted from there, nor found, until it does; if it never does, ask "
            "the administrators where from to submit",
        )
    if "spawning" in facts and (problem := facts["spawning"]["problem"]):
        yield Finding(
            "red",
            "spawning",
            f"no process with a fresh Python can be started {{on}}: {problem}",
            "a nanny would fail alike: if the site forbids new processes, use --no-nanny; else see "
            "ulimit -u, and whether hpcdask can be imported",
        )
    if "limits" in facts:
        yield from _open_files(facts["limits"], nworkers)
        cpus = facts["grants"]["cpus"] if "grants" in facts else 1
        yield from _processes(facts["limits"], nranks, cpus)
    if "token" in facts:
        yield from _token(facts["token"])
    if "scratch" in facts:
        yield from _scratch(facts["scratch"])
    yield from _grants(facts, nranks)


# -- Limits ---------------------------------------------------------------------------------------


def _open_files(limits: Limits, nworkers: int) -> Iterator[Finding]:
    needed = descriptors.needed(nworkers)
    if 0 <= limits["open_files_hard"] < needed:  # up to that processes of hpcdask raise their own
        yield Finding(
            "red",
            "limits",
            f"a process may open {limits['open_files_hard']} files {{on}}, and {nworkers} "
            f"worker{'s' * (nworkers > 1)} need{'s' * (nworkers == 1)} {needed}",
            f"ask the administrators for {needed} open files (the hard limit, 'ulimit -Hn'), or "
            "start fewer workers with more threads each",
        )


def room_for_tasks(limits: Limits) -> int | None:
    """Processes and threads that may still be started; None if nothing limits them."""
    rooms = []
    if limits["processes"] >= 0 and not limits["is_root"]:
        rooms.append(limits["processes"] - limits["processes_used"])
    if limits["cgroup_tasks"] >= 0:
        rooms.append(limits["cgroup_tasks"] - limits["cgroup_tasks_used"])
    return min(rooms, default=None)


def _processes(limits: Limits, nworkers: int, cpus: int) -> Iterator[Finding]:
    room = room_for_tasks(limits)
    # Whoever starts several workers on a host shares its CPUs, and thereby threads, among them.
    needed = nworkers * _TASKS_PER_WORKER + cpus
    if room is not None and room < needed:
        yield Finding(
            "red",
            "limits",
            f"fewer than {needed} more processes and threads may be started {{on}}, which "
            f"{nworkers} worker{'s' * (nworkers > 1)} would need",
            "end what else you run there, raise 'ulimit -u', or start fewer workers",
        )


def _slow_start(hosts: dict[str, HostFacts]) -> Iterator[Finding]:
    slow = {
        name: facts["spawning"]["seconds"]
        for name, facts in hosts.items()
        if "spawning" in facts
        and not facts["spawning"]["problem"]
        and facts["spawning"]["seconds"] > _SLOW_START
    }
    if slow:
        yield Finding(
            "yellow",
            "spawning",
            f"to start Python and import hpcdask takes {max(slow.values()):.0f} s on "
            f"{listing(tuple(slow))}, and longer when all ranks do it at once",
            "put the environment on a faster or node-local file system, and give workers a longer "
            "--death-timeout",
            tuple(slow),
        )


# -- Token ----------------------------------------------------------------------------------------


def _token(token: TokenFacts) -> Iterator[Finding]:
    if token["problem"]:
        what, cure = what_and_cure(
            token["problem"], "name a token file of yours with HPCDASK_TOKEN_FILE"
        )
        yield Finding("red", "token", f"{{on}} {what}", cure)
    if token["folder_mode"] and int(token["folder_mode"], 8) & 0o022:
        yield Finding(
            "red",
            "token",
            f"others may write to {token['folder']} {{on}} (mode {token['folder_mode']}), and "
            "could put their own token there",
            f"run: chmod 700 {token['folder']}",
        )


def _tokens_differ(hosts: dict[str, HostFacts]) -> Iterator[Finding]:
    groups = by_text(
        {
            name: facts["token"]["fingerprint"] or "none"
            for name, facts in hosts.items()
            if "token" in facts and not facts["token"]["problem"]
        }
    )
    if len(groups) > 1:
        found = "; ".join(
            f"{'none yet' if text == 'none' else 'one'} on {listing(names)}"
            for text, names in groups.items()
        )
        yield Finding(
            "yellow",
            "token",
            f"hosts have different cluster tokens ({found}): who is started by hand on one would "
            "be refused on another",
            "share the home folder, give all the same --token-file, or start workers with the "
            "scheduler's --scheduler-file, which has its token",
            tuple(name for names in list(groups.values())[1:] for name in names),
        )


# -- Scratch --------------------------------------------------------------------------------------


def _scratch(scratch: Scratch) -> Iterator[Finding]:
    where = f"scratch in {scratch['path']}"
    if scratch["problem"]:
        what, _ = what_and_cure(scratch["problem"], "")
        yield Finding("red", "scratch", f"scratch cannot be used {{on}}: {what}", _OTHER_SCRATCH)
        return
    if scratch["free"] < _FULL:
        less = format_bytes(_FULL)
        what = f"{where} is full {{on}}: less than {less} are left"
        yield Finding("red", "scratch", what, _ROOM_IN_SCRATCH)
        return
    if 0 <= scratch["free_files"] < _FEW_FILES:
        what = f"{where} is full {{on}}: no more files can be made"
        yield Finding("red", "scratch", what, _ROOM_IN_SCRATCH)
        return
    if scratch["is_network"]:
        what = f"{where} is on a network file system ({scratch['filesystem']}) {{on}}"
        what += ": spilling is slow there, and slows down others"
        yield Finding("yellow", "scratch", what, _OTHER_SCRATCH)
    if scratch["is_memory"]:
        what = f"{where} is in memory ({scratch['filesystem']}) {{on}}"
        what += ": what is spilled there still counts as memory of the job"
        yield Finding("yellow", "scratch", what, _OTHER_SCRATCH)
    if scratch["free"] < _NEARLY_FULL:
        what = f"{where} has less than {format_bytes(_NEARLY_FULL)} left {{on}}"
        yield Finding("yellow", "scratch", what, _ROOM_IN_SCRATCH)
    if scratch["write_seconds"] > _SLOW_WRITE:
        what = f"{where} is slow {{on}}: a MiB takes more than {_SLOW_WRITE:g} s"
        yield Finding("yellow", "scratch", what, _OTHER_SCRATCH)


# -- Grants ---------------------------------------------------------------------------------------


def _grants(facts: HostFacts, nranks: int) -> Iterator[Finding]:
    if "grants" not in facts:
        return
    grants = facts["grants"]
    if grants["memory"] < nranks * _LEAST_MEMORY:
        source = min(grants["memory_sources"], key=grants["memory_sources"].__getitem__)
        yield Finding(
            "yellow",
            "grants",
            f"the memory granted {{on}} is {format_bytes(grants['memory'])} ({source}) for "
            f"{nranks} rank{'s' * (nranks > 1)}",
            "ask the batch system for more (--mem, -l mem)",
        )
    if grants["gpu_problem"]:
        yield Finding(
            "yellow",
            "grants",
            f"nvidia-smi fails {{on}}: {grants['gpu_problem']}",
            "tasks will find no GPU there; tell the administrators",
        )
