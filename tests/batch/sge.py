"""Grid Engine on one machine: a cell of its own, with a master, an execution host and a queue."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hosts import Hosts
from waiting import wait_until

from batch.bed import PATIENCE, Bed, Job, StrPath, free_ports, why_not

#: More than the machine has, whatever it has: tests need jobs side by side.
SLOTS = 64

#: Where Debian has what belongs to no cell.
_PROGRAMS = Path("/var/lib/gridengine")
_DEFAULTS = Path("/usr/share/gridengine")

# What differs from the defaults in Debian's package. Stock cells look for work every 15 s and write
# their books every 15 s, and refuse root's jobs.
_CONFIGURATION = {
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:05",
    "max_unheard": "00:00:30",
    "execd_params": "ENABLE_ADDGRP_KILL=true",
    "reporting_params": "accounting=true reporting=false accounting_flush_time=00:00:00 "
    "flush_time=00:00:01 joblog=false sharelog=00:00:00",
}

_SCHEDULER = """\
algorithm default
schedule_interval 0:0:1
maxujobs 0
queue_sort_method 0
job_load_adjustments NONE
load_adjustment_decay_time 0:7:30
load_formula np_load_avg
schedd_job_info true
flush_submit_sec 1
flush_finish_sec 1
params none
reprioritize_interval 0:0:0
halftime 168
usage_weight_list cpu=1.000000 mem=0.000000 io=0.000000
compensation_factor 5.000000
weight_user 0.250000
weight_project 0.250000
weight_department 0.250000
weight_job 0.250000
weight_tickets_functional 0
weight_tickets_share 0
weight_tickets_override 0
share_override_tickets TRUE
share_functional_shares TRUE
max_functional_jobs_to_schedule 200
report_pjob_tickets TRUE
max_pending_tasks_per_job 50
halflife_decay_list none
policy_hierarchy OFS
weight_ticket 0.500000
weight_waiting_time 0.278000
weight_deadline 3600000.000000
weight_urgency 0.500000
weight_priority 0.000000
max_reservation 0
default_duration INFINITY
"""

_ENVIRONMENT = """\
pe_name {name}
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule {rule}
control_slaves TRUE
job_is_first_task TRUE
urgency_slots min
accounting_summary TRUE
qsort_args NONE
"""

_HOST = """\
hostname {host}
load_scaling NONE
complex_values {values}
load_values NONE
processors 0
reschedule_unknown_list NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""

_QUEUE = """\
qname all.q
hostlist @allhosts
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list mpi smp
rerun TRUE
slots {slots}
tmpdir {tmp}
shell /bin/bash
prolog NONE
epilog NONE
shell_start_mode unix_behavior
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:10
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
"""

_LIMITS = ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem")

_INSTANCE = """\
qname all.q
hostname {host}
state 0
pending_signal 0
pending_signal_del 0
version 0
"""

#: Why there can be no Grid Engine here; empty if there can.
WHY_NOT = why_not("sge_qmaster", "sge_execd", "qconf")


class GridEngine(Bed):
    """A running Grid Engine.

    Parameters
    ----------
    slots : int
        Of each host.
    """

    name, variable, value = "sge", "SGE_ROOT", "root"

    def __init__(self, hosts: Hosts | None = None, slots: int = SLOTS) -> None:
        super().__init__(hosts)
        self.slots = slots
        self.root = self.folder / "root"
        self.common, self.spool = self.root / "default/common", self.folder / "spool"
        master, execution = map(str, free_ports(2))
        self.env |= {
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": master,
            "SGE_EXECD_PORT": execution,
        }

    def start(self) -> None:
        """The daemons find all of their configuration as files, as if they had run before."""
        for folder in (self.common, self.spool / "qmaster", self.spool / "execd"):
            folder.mkdir(parents=True)
        for name in ("bin", "utilbin", "util", "lib"):
            (self.root / name).symlink_to(_PROGRAMS / name)
        (self.folder / "tmp").mkdir()
        (self.folder / "tmp").chmod(0o1777)
        self._write_common()
        self.daemon("/usr/lib/gridengine/spoolinit", "classic", "libspoolc", self._places, "init")
        self._write_spool()
        self.daemon("sge_qmaster")
        wait_until(self._answers, PATIENCE, f"Grid Engine answers; see {self.spool}")
        for name in self.names:
            self.daemon("sge_execd", on=name)
        wait_until(self._is_ready, PATIENCE, f"all.q is ready; see {self.spool}")

    @property
    def _places(self) -> str:
        return f"{self.common};{self.spool}/qmaster"

    def _write_common(self) -> None:
        bootstrap = {
            "admin_user": "none",
            "default_domain": "none",
            "ignore_fqdn": "false",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": self._places,
            "binary_path": "/usr/sbin",
            "qmaster_spool_dir": f"{self.spool}/qmaster",
            "security_mode": "none",
            "listener_threads": "2",
            "worker_threads": "2",
            "scheduler_threads": "1",
        }
        (self.common / "bootstrap").write_text(_lines(bootstrap))
        (self.common / "act_qmaster").write_text(f"{self.names[0]}\n")
        if self.hosts is None:  # it compares names, and here all of these are one host
            aliases = (self.names[0], "localhost", "localhost.localdomain", socket.getfqdn())
            text = " ".join(dict.fromkeys(aliases))
            (self.common / "host_aliases").write_text(f"{text}\n")
        # Processes of a job are killed by a group that only they have: no other cell may use it.
        gid = random.randrange(1_000_000, 2_000_000_000)
        changes = {
            **_CONFIGURATION,
            "execd_spool_dir": f"{self.spool}/execd",
            "gid_range": f"{gid}-{gid + 1000}",
        }
        text = (_DEFAULTS / "default-configuration").read_text()
        (self.common / "configuration").write_text(_changed(text, changes))
        (self.common / "sched_configuration").write_text(_SCHEDULER)

    def _write_spool(self) -> None:
        spool = self.spool / "qmaster"
        for kind in ("centry", "usersets"):
            for path in (_DEFAULTS / "util/resources" / kind).iterdir():
                (spool / kind / path.name).write_text(path.read_text())
        # A job that asks for none would get none of it, and be killed at once.
        h_vmem = spool / "centry/h_vmem"
        h_vmem.write_text(_changed(h_vmem.read_text(), {"consumable": "YES", "default": "1G"}))
        (spool / "managers").write_text("root\n")
        own = f"slots={self.slots},h_vmem=64G"
        for host, values in {
            "global": "NONE",
            "template": "NONE",
            **dict.fromkeys(self.names, own),
        }.items():
            (spool / "exec_hosts" / host).write_text(_HOST.format(host=host, values=values))
        for name, rule in (("mpi", "$fill_up"), ("smp", "$pe_slots")):
            (spool / "pe" / name).write_text(_ENVIRONMENT.format(name=name, rule=rule))
        group = f"group_name @allhosts\nhostlist {' '.join(self.names)}\n"
        (spool / "hostgroups/@allhosts").write_text(group)
        limits = "".join(f"{kind}_{what} INFINITY\n" for what in _LIMITS for kind in "sh")
        queue = _QUEUE.format(slots=self.slots, tmp=self.folder / "tmp")
        (spool / "cqueues/all.q").write_text(queue + limits)
        (spool / "qinstances/all.q").mkdir()
        for name in self.names:
            (spool / "qinstances/all.q" / name).write_text(_INSTANCE.format(host=name))
            for kind in ("admin_hosts", "submit_hosts"):
                (spool / kind / name).write_text(f"hostname {name}\n")

    def _answers(self) -> bool:
        return self.run("qconf", "-sh", check=False).returncode == 0

    def _is_ready(self) -> bool:
        """Whether the queue has the loads that hosts report, and no letters of alarm."""
        lines = self.run("qstat", "-f", check=False).stdout.splitlines()
        ready = [line for line in lines if line.startswith("all.q@") and len(line.split()) == 5]
        return len(ready) == len(self.names)

    def submit(
        self,
        script: StrPath,
        *words: StrPath,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        user: str = "",
    ) -> GridEngineJob:
        handed = [word for item in (variables or {}).items() for word in ("-v", "=".join(item))]
        return self.qsub(*handed, script, *words, cwd=cwd, user=user)

    def qsub(self, *words: StrPath, cwd: Path, **how: Any) -> GridEngineJob:
        """Submit a job from the folder `cwd`."""
        done = self.run("qsub", "-terse", *words, cwd=cwd, **how)
        return self.job(done.stdout.strip(), cwd)

    def job(self, id: str, folder: Path) -> GridEngineJob:
        number = id.partition(".")[0]
        pattern = rf"\.p?[oe]{number}(\.\d+)?$"
        return GridEngineJob(self, number, folder, pattern, (f"JOB_ID={number}",))

    def qdel(self, *words: str) -> None:
        """Delete jobs."""
        self.run("qdel", *words)

    def cancel(self, *jobs: Job) -> None:
        self.qdel(*(job.id for job in jobs))


class GridEngineJob(Job):
    """As qstat tells while it is there, and qacct afterwards."""

    @property
    def state(self) -> str:
        lines = self.bed.run("qstat", "-u", "*").stdout.splitlines()
        states = [line.split()[4] for line in lines if line.split()[:1] == [self.id]]
        return ",".join(states) or f"ended with {self.exit_code}"

    @property
    def exit_code(self) -> int | None:
        if self.bed.run("qstat", "-j", self.id, check=False).returncode == 0:
            return None
        books = self.bed.run("qacct", "-j", self.id, check=False).stdout
        return max(map(int, re.findall(r"^exit_status +(\d+)", books, re.MULTILINE)), default=None)


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def _changed(text: str, changes: Mapping[str, str]) -> str:
    """A file of names and values, with some of the values changed."""
    for name, value in changes.items():
        text, n = re.subn(rf"(?m)^{name}\s.*$", f"{name} {value}", text)
        assert n == 1, f"{n} lines with {name}"
    return text
