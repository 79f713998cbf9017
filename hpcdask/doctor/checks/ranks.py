"""Whether all ranks are there, agree on what they run, and have CPUs to run on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from hpcdask.doctor.facts import Examination
from hpcdask.doctor.findings import Finding, by_text, listing

#: MPI implementations whose launchers and libraries do without each other's.
_OPEN_MPI, _MPICH_LIKE = "Open MPI", ("MPICH", "Intel MPI", "MVAPICH")


def check(examination: Examination) -> Iterator[Finding]:
    """Findings about the launch as a whole."""
    yield from _missing(examination)
    if examination["silent"]:
        yield Finding(
            "red",
            "ranks",
            f"{listing(examination['silent'])} reported, and then did not answer any more",
            "see whether the processes of hpc-dask are stopped there, or the network loses much",
            tuple(examination["silent"]),
        )
    yield from _versions(examination)
    yield from _mpi(examination)
    yield from _bound(examination)
    if examination["unfinished"]:
        yield Finding(
            "yellow",
            "ranks",
            f"there was no time for {listing(examination['unfinished'])}",
            "give a longer --timeout, or --fast to leave out the bandwidth",
        )


def numbers_of_ranks(examination: Examination) -> Counter[str]:
    """How many ranks each host has."""
    return Counter(rank["host"] for rank in examination["ranks"])


def _missing(examination: Examination) -> Iterator[Finding]:
    missing = examination["missing_ranks"]
    if not missing:
        return
    names = listing(number_ranges(missing), 8)
    what = f"{'rank' if len(missing) == 1 else 'ranks'} {names} never reported"
    if examination["missing_hosts"]:
        what += f"; nothing was heard of the job's {listing(examination['missing_hosts'], 8)}"
    if examination["unwritten"]:
        what += f"; rank 0 could not write its address to {'; '.join(examination['unwritten'])}"
    own = next(iter(examination["hosts"].values()))
    place = own["folder"]["path"] if "folder" in own else "the shared folder"
    yield Finding(
        "red",
        "ranks",
        what,
        "see whether those hosts are up, start hpc-dask, and see "
        f"{place} (name another with --shared-folder); what they print on stderr may tell more",
        tuple(examination["missing_hosts"]),
    )


def number_ranges(numbers: Sequence[int]) -> list[str]:
    """Numbers in short.

    Examples
    --------
    >>> number_ranges([1, 2, 3, 7])
    ['1-3', '7']
    """
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def _versions(examination: Examination) -> Iterator[Finding]:
    hosts = {
        name: facts["software"]
        for name, facts in examination["hosts"].items()
        if "software" in facts
    }
    columns = {
        "Python": {
            name: f"{software['implementation']} {software['python']}"
            for name, software in hosts.items()
        }
    }
    for package in sorted({each for software in hosts.values() for each in software["packages"]}):
        columns[package] = {
            name: software["packages"].get(package, "none") for name, software in hosts.items()
        }
    for package, versions in columns.items():
        groups = by_text(versions)
        if len(groups) > 1:
            found = "; ".join(f"{text} on {listing(names)}" for text, names in groups.items())
            odd = tuple(name for names in list(groups.values())[1:] for name in names)
            yield Finding(
                "red",
                "software",
                f"hosts have different versions of {package}: {found}",
                "use one environment on all hosts: activate it in the job script, or install it "
                "where all see it",
                odd,
            )


def _mpi(examination: Examination) -> Iterator[Finding]:
    launcher = examination["launcher"]
    for name, facts in examination["hosts"].items():
        if "launch" not in facts:
            continue
        launch = facts["launch"]
        if launch["mpi4py_problem"]:
            yield Finding(
                "yellow",
                "launch",
                f"mpi4py cannot be loaded on {name}: {launch['mpi4py_problem']}",
                "load the MPI module that mpi4py was installed with, or install it anew; hpc-dask "
                "does without",
                (name,),
            )
            return  # as a rule it is so on all of them
        library = launch["mpi_library"]
        if library and _are_strangers(launcher, library):
            yield Finding(
                "yellow",
                "launch",
                f"{launcher} has started the ranks and mpi4py is built with {library}: for MPI "
                "each of them would be alone",
                "use the mpirun of the MPI that mpi4py is built with, or install mpi4py with the "
                "MPI that is loaded (pip install --no-binary :all: mpi4py)",
            )
            return


def _are_strangers(launcher: str, library: str) -> bool:
    if launcher == _OPEN_MPI:
        return _OPEN_MPI not in library
    return launcher in _MPICH_LIKE and _OPEN_MPI in library


def _bound(examination: Examination) -> Iterator[Finding]:
    """Ranks that a launcher has bound to one core each, or to the same few."""
    few, shared = {}, {}
    for name, facts in examination["hosts"].items():
        ranks = [rank for rank in examination["ranks"] if rank["host"] == name]
        if len(examination["ranks"]) > 1:  # rank 0 has no worker then
            ranks = [rank for rank in ranks if rank["rank"] != 0]
        if "grants" not in facts or not ranks:
            continue
        cpus = facts["grants"]["job_cpus"]
        together = {cpu for rank in ranks for cpu in rank["affinity"]}
        if all(len(rank["affinity"]) == 1 for rank in ranks) and len(ranks) < cpus:
            few[name] = f"each worker may use one CPU, {len(ranks)} of the {cpus} that the job has"
        elif together and len(ranks) > len(together):
            shared[name] = f"{len(ranks)} workers share {len(together)} CPUs"
    for text, names in by_text(few).items():
        yield Finding(
            "yellow",
            "grants",
            f"on {listing(names)} {text}",
            "give mpirun --bind-to none, or srun --cpus-per-task",
            names,
        )
    for text, names in by_text(shared).items():
        yield Finding(
            "yellow",
            "grants",
            f"on {listing(names)} {text}",
            "start no more workers than there are CPUs, or fewer with several threads each",
            names,
        )
