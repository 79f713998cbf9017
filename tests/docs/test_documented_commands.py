"""The shell commands and Python programs of the documentation are run, as they stand.

They run on a small site: four hosts in network namespaces, with Slurm and an SSH server on each.
A page is read from top to bottom on the first host, in a home of its own with a `script.py`; the
pages at the same time.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from batch import slurm as slurm_bed
from batch.bed import Job
from batch.slurm import Slurm
from commands import Command, Home
from hosts import hosts, needs_hosts
from janitor import marked
from pages import PAGES, ROOT, Block, kind_of
from sshd import SSHServer, needs_sshd, ssh_server
from waiting import wait_until

# Not imported: that would make this very process a rank.
MPIRUN = importlib.util.find_spec("mpi4py") and shutil.which(
    "mpirun", path=Path(sys.executable).parent
)
pytestmark = [
    *needs_hosts,
    *needs_sshd,
    pytest.mark.skipif(bool(slurm_bed.WHY_NOT), reason=slurm_bed.WHY_NOT),
    pytest.mark.skipif(
        MPIRUN is None, reason="no mpirun or no mpi4py here: pip install 'hpcdask[mpi]'"
    ),
    pytest.mark.timeout(240),  # the first test waits for more than its own page
]
NODES = ("node1", "node2", "node3", "node4")
#: Seconds for one thing, on a machine where much else runs.
PATIENCE = 120.0

SCRIPT = """\
import sys
from hpcdask import Client

if __name__ == "__main__":
    with Client() as client:
        squares = client.map(pow, range(10), [2] * 10)
        print("squares", client.submit(sum, squares).result(timeout=60), *sys.argv[1:])
"""

#: Runs a task on a cluster, and shuts it down.
CLIENT = """\
import sys
from hpcdask import Client

[kind, place] = sys.argv[1:]
with Client(**{kind: place}, timeout=60) as client:
    print(client.submit(sum, [1, 2]).result(timeout=60))
    client.shutdown()
"""

#: How a user on this site makes the commands known, and has more ranks than cores, as root.
ACTIVATE = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}\n"
ENVIRON = {
    "PYTHONPATH": str(ROOT),
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}

#: Hosts of this site have no batch system but Slurm.
HIDE_OTHERS = "".join(
    f"mount --bind /dev/null {path}; " for name in ("qconf", "qsub") if (path := shutil.which(name))
)


@dataclass
class Site:
    """Hosts with Slurm, and an SSH server on each.

    Attributes
    ----------
    port : RLock
        That of node1 on which schedulers listen, unless they are told otherwise.
    """

    slurm: Slurm
    servers: list[SSHServer]
    port: threading.RLock

    def home(self, folder: Path) -> Home:
        """A user's home on all hosts."""
        home = Home(folder)
        home.env |= {**ENVIRON, self.slurm.variable: self.slurm.env[self.slurm.variable]}
        for server in self.servers:
            server.let_in(home)
        home.file("script.py", SCRIPT)
        home.file("client.py", CLIENT)
        home.file("hosts.txt", f"node1\n{getpass.getuser()}@node2\nnode3:22\n")
        for template in ROOT.glob("jobscripts/*.sbatch"):
            shutil.copy(template, folder)
        (folder / "hpcdask-venv/bin").mkdir(parents=True)
        home.file("hpcdask-venv/bin/activate", ACTIVATE)
        return home


class Reader:
    """Does what a page says, on the first host."""

    def __init__(self, site: Site, home: Home) -> None:
        self.site, self.home = site, home
        self.jobs: list[Job] = []
        self.scripts: list[Job] = []
        # What runs until the cluster is shut down, how a client finds that, and what it holds.
        self.up: list[Command | Job] = []
        self.place: tuple[str, str] | None = None
        self.held = contextlib.ExitStack()

    def read(self, page: list[Block]) -> None:
        """Run all blocks. A cluster stays up for the programs behind its block."""
        where = ""
        try:
            for block in page:
                where = block.where
                if block.language == "shell":
                    self.shut_down()
                    self.run_all(block)
                elif not block.system:  # else test_programs_on_other_systems runs it
                    self.home.file("program.py", self.here(block.text))
                    if not block.is_of_ranks:
                        self.run_program(block.text)
            self.shut_down()
            for job in self.scripts:
                wait_until(lambda job=job: "squares 285" in job.log, PATIENCE, f"end of {job}")
                assert job.wait() == 0
            own = f"HOME={self.home.folder}"
            wait_until(lambda: not list(marked(own)), PATIENCE, "the end of all processes")
        except AssertionError as error:
            last = "\n".join(map(str, [*self.home.commands[-3:], *self.jobs[-1:]]))
            raise AssertionError(f"{where}: {error}\n{last}") from error
        finally:
            for command in reversed(self.home.commands):
                if command.process.poll() is None:
                    command.clean_up()
            self.held.close()

    def run_program(self, text: str) -> None:
        self.ends("python program.py")
        if "client.shutdown()" in text:
            self.place = None

    def run_all(self, block: Block) -> None:
        """Run the commands of a block, and find what is shown for them."""
        started = [getattr(self, kind_of(line))(self.here(line)) for line in block.commands]
        for pattern in block.outputs:
            # Of those that keep running it may yet come.
            *ended, last = sorted(started, key=lambda each: each.process.poll() is None)
            if not any(re.search(pattern, each.out + each.err) for each in ended):
                last.line(pattern, PATIENCE)

    def here(self, text: str) -> str:
        """What a page says, with names of this site and the id of the last job."""
        text = text.replace("/home/me", str(self.home.folder))
        text = text.replace('"ann"', f'"{getpass.getuser()}"')
        return text.replace("-123.", f"-{self.jobs[-1].id}.") if self.jobs else text

    def start(self, line: str) -> Command:
        """Start a line for the shell; srun is meant for use in a job."""
        words = ["bash", "-c", f"{HIDE_OTHERS}{line.removesuffix(' &')}"]
        if line.startswith("srun "):
            words = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2", *words]
        return self.home.run(*self.site.slurm.on(NODES[0], *words))

    def ends(self, line: str) -> Command:
        command = self.start(line)
        assert command.code(PATIENCE) == 0, f"{line!r} has failed"
        if match := re.search(r" (?:run|-m hpcdask) script\.py(.*)", line):
            assert f"squares 285{match[1]}\n" in command.out
        return command

    def serves(self, line: str) -> Command:
        self.shut_down()  # an alternative to this one
        if re.search("hpc-dask (ssh|scheduler)", line):
            self.held.enter_context(self.site.port)
        command = self.start(line)
        address = command.line(r"Scheduler at: (tcp://\S+)", PATIENCE)
        file = re.search(r"--scheduler-file (\S+)", line)
        if "hpc-dask ssh" in line:
            command.line("the cluster is up", PATIENCE)
        self.place = ("scheduler_file", file[1]) if file else ("address", address)
        self.up.append(command)
        return command

    def joins(self, line: str) -> Command:
        command = self.start(line)
        command.line("Registered to: ", PATIENCE)
        self.up.append(command)
        return command

    def submits(self, line: str) -> Command:
        command = self.start(line)
        assert command.code(PATIENCE) == 0, f"{line!r} has failed"
        job = self.site.slurm.job(re.findall(r"\d+", command.out)[0], self.home.folder)
        self.jobs.append(job)
        if "cluster" in line:
            self.place = ("scheduler_file", f"hpcdask-{job.id}.json")
            self.up.append(job)
        elif "workers" in line:  # those that still wait in the queue, too
            self.held.callback(self.site.slurm.cancel, job)
        else:
            self.scripts.append(job)
        return command

    def shut_down(self) -> None:
        """Run a task on the cluster that is up, and end it, if a program of the page has not."""
        if self.place is not None:
            assert self.ends(f"python client.py {' '.join(self.place)}").out == "3\n"
        for each in self.up:
            code = each.code(PATIENCE) if isinstance(each, Command) else each.wait(PATIENCE)
            assert code == 0, f"exit code {code} of {each}"
        self.up, self.place = [], None
        self.held.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("sshd")
    with hosts(*NODES) as made, contextlib.ExitStack() as stack:
        slurm = Slurm(made)
        stack.callback(slurm.close)
        slurm.start()
        servers: list[SSHServer] = []
        for name, address in made.addresses.items():
            key = servers[0].key if servers else None
            server = ssh_server(folder / name, address, on=slurm.on(name), key=key)
            servers.append(stack.enter_context(server))
        yield Site(slurm, servers, threading.RLock())


@pytest.fixture(scope="module")
def readings(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """Readers of all pages, at the same time."""
    folder = tmp_path_factory.mktemp("pages")
    with ThreadPoolExecutor(len(PAGES)) as pool:
        yield {
            page: pool.submit(Reader(site, site.home(folder / page.replace("/", "-"))).read, found)
            for page, found in PAGES.items()
        }


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page, readings):
    readings[page].result()
