"""The pages of the documentation, cut into what a reader can run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: What is not run here, each with the reason. Keep it short.
NOT_RUN = {
    r"make \w+": "needs the network for an environment of its own; the tests come with one",
    r"pip install .*": "needs the network; the tests have what it would install",
    r"qsub .*\.(pbs|sge).*": "tests/jobqueue runs each template on PBS commands and Grid Engine",
}

_RANKS = r"((mpirun -np|srun -n) \d+ (--(bind-to|map-by) \S+ )*|srun )?"
#: Ways to run a command, each for those that match. The first that fits counts.
KINDS = {
    # It ends by itself, with code 0.
    "ends": rf"{_RANKS}(hpc-dask (run|doctor|jobscript|ps|attach|clean)\b.*|hpc-dask --dry-run"
    r"|python (-m hpcdask )?\S+\.py)",
    # It prints the id of a job: with a script, of a cluster, or with workers for another cluster.
    "submits": r"(hpc-dask submit|sbatch) .*",
    # It runs until the cluster that it belongs to is shut down.
    "joins": rf"{_RANKS}hpc-dask (worker|--no-scheduler)\b.*",
    # It keeps up a cluster that takes clients.
    "serves": rf"{_RANKS}hpc-dask (scheduler|ssh|--scheduler-file)\b.*",
}


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes
    ----------
    where : str
        Page and line.
    language, text : str
    shown : str
        The output that the page shows for it.
    """

    where: str
    language: str
    text: str
    shown: str

    @property
    def lines(self) -> Iterator[tuple[str, str]]:
        """Each command of a shell block that is run here, and the comment behind it."""
        text = self.text.replace("\\\n", " ") if self.language == "shell" else ""
        for line in text.splitlines():
            command, _, comment = line.partition("#")
            command = " ".join(command.split())
            if command and not any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
                yield command, comment.strip()

    @property
    def is_of_ranks(self) -> bool:
        """Whether it is a program that a command behind it starts on ranks."""
        return bool(re.search(r"\b\w+Runner\(", self.text))

    @property
    def system(self) -> str:
        """The batch system that a program needs; empty for none, or that of the tests' site."""
        match = re.search(r"\b(PBS|SGE)Cluster\(", self.text)
        return match[1].lower() if match else ""

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block that are run here."""
        return [command for command, _ in self.lines]

    @property
    def outputs(self) -> list[str]:
        """A pattern for each line of output. Numbers, homes and what is left out may differ."""
        comments = [comment for _, comment in self.lines]
        printed = [c.removeprefix("prints: ") for c in comments if c.startswith("prints: ")]
        return [
            re.sub(r"\d+", r"\\d+", line.replace("/home/me", r"\S+").replace(r"\.\.\.", ".*"))
            for line in map(re.escape, [*self.shown.splitlines(), *printed])
        ]


def kind_of(command: str) -> str:
    """How a command is run here."""
    for kind, pattern in KINDS.items():
        if re.fullmatch(pattern, command):
            return kind
    raise AssertionError(
        f"this test does not know how to run {command!r}: give it a kind in KINDS of {__file__}, "
        "or a reason in NOT_RUN; if it is a synopsis, mark the block ```text"
    )


def blocks(page: Path) -> Iterator[Block]:
    """Shell commands and Python programs of a page, in their order.

    Output that is shown for commands stands right behind them, or behind one paragraph.
    """
    text = page.read_text()
    found = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S))
    for block, following in zip_longest(found, found[1:]):
        if block[1] in ("shell", "python"):
            shown = ""
            if following and following[1] == "text":
                between = text[block.end() : following.start()].strip()
                shown = following[2] if "\n\n" not in between else ""
            line = text.count("\n", 0, block.start()) + 1
            yield Block(f"{page.relative_to(ROOT)}:{line}", block[1], block[2], shown)


#: Pages with something to run.
PAGES = {
    str(page.relative_to(ROOT)): found
    for page in [ROOT / "README.md", ROOT / "jobscripts/README.md", *ROOT.glob("docs/*.md")]
    if (found := list(blocks(page)))
}
