"""CPUs, memory and GPUs that this process may use, and who says so."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpcdask import host as hosts
from hpcdask.doctor.facts import Grants
from hpcdask.doctor.probes.programs import output

#: What names the GPUs that a process may use; the first that is set decides.
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def look(with_gpus: bool) -> Grants:
    """Grants of this process; asking the driver for the names of GPUs takes a second."""
    cpu_sources, memory_sources = hosts.cpu_grants(), hosts.memory_grants()
    names, problem = _gpu_names() if with_gpus else ([], "")
    gpus, source = count_gpus(os.environ, names, _gpu_devices())
    return {
        "cpus": hosts.cpu_count(),
        "cpu_sources": cpu_sources,
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "job_cpus": hosts.cpu_count_of_job(),
        "host_cpus": os.cpu_count() or 1,
        "memory": min(memory_sources.values()),
        "memory_sources": memory_sources,
        "gpus": gpus,
        "gpu_source": source,
        "gpu_names": names,
        "gpu_problem": problem,
    }


def _gpu_devices(root: Path = Path("/dev")) -> int:
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in root.glob("nvidia*"))


def _gpu_names() -> tuple[list[str], str]:
    """Names of the GPUs that the driver shows here, and why it shows none."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    try:
        code, text = output("nvidia-smi", "-L", timeout=10.0)
    except OSError as exc:
        return [], str(exc)
    if code:
        return [], text.splitlines()[-1] if text else f"exit code {code}"
    return parse_gpu_list(text), ""


def parse_gpu_list(text: str) -> list[str]:
    """Names in what ``nvidia-smi -L`` prints.

    Examples
    --------
    >>> parse_gpu_list("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c0b)")
    ['NVIDIA A100-SXM4-40GB']
    """
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID: .*)?$", text, re.MULTILINE)


def count_gpus(environ: Mapping[str, str], names: list[str], devices: int) -> tuple[int, str]:
    """GPUs for this process, and who says so.

    Parameters
    ----------
    names : list of str
        Of the GPUs that the driver shows.
    devices : int
        Device files.
    """
    for name in GPU_VARIABLES:
        if name in environ:
            visible = [each.strip() for each in environ[name].split(",")]
            # CUDA stops at the first entry that names none, such as -1 or NoDevFiles.
            is_none = [not each or each == "-1" or each == "NoDevFiles" for each in visible]
            return (is_none.index(True) if any(is_none) else len(visible)), name
    if names:
        return len(names), "nvidia-smi"
    return devices, "/dev/nvidia*" if devices else ""
