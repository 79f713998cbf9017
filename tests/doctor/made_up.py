"""Facts of hosts that do not exist: sound ones, to be spoilt by tests."""

from __future__ import annotations

import copy
from typing import Any

from hpcdask.doctor.facts import Examination, Reached

GIB = 2**30

SOUND: dict[str, Any] = {
    "software": {
        "python": "3.11.7",
        "implementation": "CPython",
        "executable": "/opt/env/bin/python",
        "packages": {"hpcdask": "0.1.0", "msgpack": "1.2.4", "numpy": "2.4.6"},
        "problem": "",
    },
    "launch": {
        "launcher": "Slurm's srun",
        "mpirun": "/usr/bin/mpirun",
        "mpirun_version": "mpirun (Open MPI) 5.0.8",
        "mpi_library": "Open MPI v5.0.8",
        "mpi4py_problem": "",
        "batch_systems": ["Slurm 23.11.4"],
        "batch_problems": [],
        "job": "slurm:123",
        "nodes": [],
    },
    "network": {
        "interfaces": [],
        "candidates": [],
        "chosen": None,
        "problem": "",
        "ports": {
            "range": "",
            "total": 0,
            "free": 0,
            "first_free": 0,
            "last_free": 0,
            "scheduler_port_is_free": True,
            "problem": "",
        },
    },
    "folder": {
        "path": "/home/u/run",
        "asked": True,
        "filesystem": "nfs4",
        "is_network": True,
        "keeps_modes": True,
        "problem": "",
    },
    "token": {
        "source": "/home/u/.config/hpcdask/token",
        "exists": True,
        "mode": "0600",
        "folder": "/home/u/.config/hpcdask",
        "folder_mode": "0700",
        "fingerprint": "12ab",
        "problem": "",
    },
    "scratch": {
        "path": "/scratch/hpcdask-1000",
        "filesystem": "xfs",
        "is_network": False,
        "is_memory": False,
        "total": 900 * GIB,
        "free": 800 * GIB,
        "free_files": 10**8,
        "write_seconds": 0.01,
        "problem": "",
    },
    "grants": {
        "cpus": 8,
        "cpu_sources": {"affinity": 8, "SLURM_CPUS_PER_TASK": 8},
        "affinity": list(range(8)),
        "job_cpus": 8,
        "host_cpus": 64,
        "memory": 32 * GIB,
        "memory_sources": {"machine": 256 * GIB, "SLURM_MEM_PER_NODE": 32 * GIB},
        "gpus": 0,
        "gpu_source": "",
        "gpu_names": [],
        "gpu_problem": "",
    },
    "limits": {
        "open_files": 4096,
        "open_files_hard": 65536,
        "processes": 100_000,
        "processes_hard": 100_000,
        "processes_used": 100,
        "cgroup_tasks": -1,
        "cgroup_tasks_used": 0,
        "is_root": False,
    },
    "spawning": {"seconds": 0.3, "problem": ""},
    "errors": {},
}


def examination(*names: str, interfaces: tuple[str, ...] = ("ib0",)) -> Examination:
    """Sound hosts of these names, one rank on each, that use the first of the interfaces."""
    hosts = {name: copy.deepcopy(SOUND) for name in names}
    for number, facts in enumerate(hosts.values(), 1):
        facts["network"]["candidates"] = [
            {"interface": name, "address": f"10.{n}.0.{number}"}
            for n, name in enumerate(interfaces, 1)
        ]
        facts["network"]["chosen"] = facts["network"]["candidates"][0]
    ranks = [
        {
            "rank": rank,
            "host": name,
            "pid": 1000 + rank,
            "cpus": 8,
            "affinity": list(range(8)),
            "python": "3.11.7",
        }
        for rank, name in enumerate(names)
    ]
    made: Any = {
        "version": "0.1.0",
        "seconds": 2.5,
        "size": len(names),
        "nworkers": max(len(names) - 1, 1),
        "launcher": "Slurm's srun",
        "hosts": hosts,
        "ranks": ranks,
        "missing_ranks": [],
        "missing_hosts": [],
        "by_letter": [],
        "silent": [],
        "unwritten": [],
        "interface": "",
        "reached": [],
        "carried": [],
        "scheduler_file": {
            "path": "/home/u/run",
            "writer": names[0],
            "problem": "",
            "seconds": dict.fromkeys(names[1:], 0.03),
            "problems": {},
        },
        "clocks": {name: {"ahead": 0.0, "uncertainty": 0.0001} for name in names},
        "unfinished": [],
    }
    for source in names:
        for target in names:
            for place in hosts[target]["network"]["candidates"]:
                made["reached"].append(
                    {
                        "source": source,
                        "target": target,
                        "interface": place["interface"],
                        "address": f"{place['address']}:40000",
                        "seconds": 0.0001,
                        "reason": "",
                    }
                )
    if len(names) > 1:
        made["carried"] = [
            {
                "source": source,
                "target": target,
                "interface": interface,
                "bytes_per_second": 1e9,
                "reason": "",
            }
            for source, target in zip(names, [*names[1:], names[0]], strict=True)
            for interface in interfaces
        ]
    return made  # type: ignore[no-any-return]


def way(made: Examination, source: str, target: str, interface: str = "ib0") -> Reached:
    """What came of one host dialling another."""
    return next(
        each
        for each in made["reached"]
        if (each["source"], each["target"], each["interface"]) == (source, target, interface)
    )


def cut(made: Examination, source: str, target: str, reason: str, interface: str = "ib0") -> None:
    """Let a direction fail."""
    way(made, source, target, interface).update(seconds=None, reason=reason)
