"""Slurm on one machine: a controller, and several nodes with a slurmd each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from hosts import Hosts
from waiting import wait_until

from batch.bed import PATIENCE, Bed, Job, StrPath, free_ports, why_not

#: Nodes, and what each claims to have, whatever the machine has: tests need jobs side by side.
NODES, CPUS, MEMORY = 4, 32, 64 * 1024

_CONF = Template("""\
ClusterName=testbed
SlurmctldHost=$host($address)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
MpiDefault=none
PlugStackConfig=$folder/plugstack.conf
TaskProlog=$folder/task-prolog

SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
# PMIx makes a folder here for each step, which nodes must not share.
TmpFS=$folder/%n/tmp
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
JobCompType=jobcomp/none

# Without cgroups: processes are found by their parents, memory limits held by looking.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill

SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
# As Slurm has it by itself: what a loaded machine hands over in this time is handed over.
KillWait=30
MinJobAge=300
ReturnToService=2
# Longer than a loaded machine may keep a slurmd from answering.
SlurmdTimeout=300

# Believe this file, not the machine.
SlurmdParameters=config_overrides
$nodes
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=short Nodes=ALL MaxTime=60 DefaultTime=1 State=UP
""")

#: Why there can be no Slurm here; empty if there can. PMIx is for ``srun --mpi=pmix``.
WHY_NOT = why_not("munged", "slurmctld", "slurmd", "sbatch")


class Slurm(Bed):
    """A running Slurm.

    Debian's Open MPI 4 takes ranks of two nodes for one another where these are one machine, in its
    shared memory: set ``OMPI_MCA_btl=^vader`` for it.

    Attributes
    ----------
    nodes : list of str
        Four on this machine, or the hosts.
    """

    name, variable, value = "slurm", "SLURM_CONF", "slurm.conf"

    def __init__(self, hosts: Hosts | None = None) -> None:
        super().__init__(hosts)
        self.nodes = list(hosts.names) if hosts else [f"node{n}" for n in range(1, NODES + 1)]

    def start(self) -> None:
        self._write_configuration()
        self.daemon(
            *("munged", f"--key-file={self.folder}/munge.key"),
            *(f"--{kind}-file={self.folder}/munged.{kind}" for kind in ("pid", "log", "seed")),
            f"--socket={self.folder}/munge.socket",
        )
        self.daemon("slurmctld", "-c")
        for node in self.nodes:
            self.daemon("slurmd", "-N", node, on=node)
        wait_until(self._is_ready, PATIENCE, f"nodes of Slurm are idle; see {self.folder}")

    def _write_configuration(self) -> None:
        port, *ports = free_ports(1 + len(self.nodes))
        nodes = []
        for node, own_port in zip(self.nodes, ports, strict=True):
            where = f"NodeHostname={self._host(node)} NodeAddr={self._address(node)}"
            has = f"CPUs={CPUS} RealMemory={MEMORY}"
            nodes.append(f"NodeName={node} {where} Port={own_port} {has} State=UNKNOWN")
        text = _CONF.substitute(
            host=self.names[0],
            address=self._address(self.names[0]),
            port=port,
            folder=self.folder,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)
        # slurmd 22.05 wants a cgroup plugin even where nothing uses it; that of v1 starts without
        # a mounted /sys/fs/cgroup.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # Gives jobs PBS_JOBID and its like, for the PBS front end.
        (self.folder / "plugstack.conf").write_text("optional spank_pbs.so\n")
        prolog = self.folder / "task-prolog"
        prolog.write_text((Path(__file__).parent / "pbs_commands/task-prolog").read_text())
        prolog.chmod(0o755)
        for name in ("nodefiles", "tmp"):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o1777)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "state").mkdir()
        for node in self.nodes:
            tmp = self.folder / node / "tmp"
            tmp.mkdir(parents=True)
            tmp.chmod(0o1777)

    def _host(self, node: str) -> str:
        return node if self.hosts else self.names[0]

    def _address(self, node: str) -> str:
        return self.hosts.addresses[node] if self.hosts else "127.0.0.1"

    def _is_ready(self) -> bool:
        idle = self.run("sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N", check=False)
        return len(idle.stdout.split()) == len(self.nodes)

    def submit(
        self,
        script: StrPath,
        *words: StrPath,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        user: str = "",
    ) -> SlurmJob:
        return self.sbatch(script, *words, cwd=cwd, variables=variables, user=user)

    def sbatch(self, *words: StrPath, cwd: Path, **how: Any) -> SlurmJob:
        """Submit a job from the folder `cwd`; its environment is that of this process."""
        done = self.run("sbatch", "--parsable", *words, cwd=cwd, **how)
        return self.job(done.stdout.strip(), cwd)

    def job(self, id: str, folder: Path) -> SlurmJob:
        marks = (f"SLURM_JOB_ID={id}", f"SLURM_ARRAY_JOB_ID={id}")
        return SlurmJob(self, id, folder, rf"-{id}(_\d+)?\.\w+$", marks)

    def squeue(self, *words: str) -> list[list[str]]:
        """Id, name, state and reason of all jobs in the queue, those of arrays one by one."""
        done = self.run("squeue", "-h", "-r", "-o", "%i|%j|%T|%r", *words)
        return [line.split("|") for line in done.stdout.splitlines()]

    def srun(self, *words: StrPath, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a job and wait for it."""
        return self.run("srun", *words, **how)

    def scancel(self, *words: str) -> None:
        """Cancel jobs."""
        self.run("scancel", *words)

    def cancel(self, *jobs: Job) -> None:
        self.scancel(*(job.id for job in jobs))


class SlurmJob(Job):
    """As ``scontrol show job`` tells, for five minutes after the end."""

    def _fields(self) -> list[dict[str, str]]:
        done = self.bed.run("scontrol", "-o", "show", "job", self.id)
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines()]

    @property
    def state(self) -> str:
        return ",".join(fields["JobState"] for fields in self._fields())

    @property
    def exit_code(self) -> int | None:
        codes = []
        for fields in self._fields():
            if fields["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return None
            code, signal = map(int, fields["ExitCode"].split(":"))
            codes.append(code or (signal and 128 + signal))
        return max(codes)
