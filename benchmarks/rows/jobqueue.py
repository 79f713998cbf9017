"""Jobs of a batch system: from asking for workers until they have registered."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from benchmarks.clusters import TIMEOUT
from benchmarks.figures import PEERS, Figure, Measure, Row, Series, Target
from benchmarks.measuring import seconds, wait_until
from benchmarks.systems import POOL, ROOT

#: Whose clusters of jobs go with which module.
CLUSTERS = {"hpcdask": "hpcdask.jobqueue", "distributed": "dask_jobqueue"}
#: dask-jobqueue is distributed's; tuning distributed does not concern its jobs.
WITHOUT = PEERS if importlib.util.find_spec("dask_jobqueue") is None else ("tuned",)

#: In place of sbatch: notes its arguments, then is sbatch.
_NOTING = """\
#!/bin/sh
echo "$*" >>'{notes}'
exec {sbatch} "$@"
"""


def measure_jobs(njobs: int) -> Measure:
    def measure(module: ModuleType) -> Series:
        with TemporaryDirectory() as directory, real_slurm() as is_here:
            if not is_here:
                return {}
            notes = note_submits(Path(directory))
            slurm_cluster = importlib.import_module(CLUSTERS[module.__name__]).SLURMCluster
            with (
                slurm_cluster(cores=1, memory="1GB", log_directory=directory) as cluster,
                module.Client(cluster) as client,
            ):
                start = time.perf_counter()
                cluster.scale(jobs=njobs)
                client.wait_for_workers(njobs, timeout=TIMEOUT)
                ready = time.perf_counter() - start
                submits = [s for s in notes.read_text().splitlines() if "--test-only" not in s]
            bare = seconds(partial(start_bare, njobs, Path(directory)))
        return {"ready_s": [ready], "submits": [len(submits)], "bare_s": [bare]}

    return measure


def start_bare(njobs: int, folder: Path) -> None:
    """Submit an array of jobs that do nothing, and wait until all have: what Slurm itself takes."""
    options = (f"--array=1-{njobs}", "--output=/dev/null", f"--chdir={folder}")
    subprocess.run(
        ["sbatch", "--quiet", *options, "--wrap", "touch done-$SLURM_ARRAY_TASK_ID"], check=True
    )
    wait_until(lambda: len(list(folder.glob("done-*"))) == njobs)


@contextmanager
def real_slurm() -> Iterator[bool]:
    """The Slurm of the tests, whose commands are those of this process; whether it can be here."""
    sys.path.append(str(ROOT / "tests"))
    from batch import slurm  # type: ignore[import-not-found]

    if slurm.WHY_NOT:
        print(f"no Slurm: {slurm.WHY_NOT}", file=sys.stderr)
        yield False
        return
    bed = slurm.Slurm()
    try:
        bed.start()
        os.environ.update(bed.env)
        yield True
    finally:
        bed.close()


def note_submits(folder: Path) -> Path:
    """Let a file have a line for each call of sbatch from now on."""
    notes, command = folder / "submits", folder / "bin" / "sbatch"
    command.parent.mkdir()
    command.write_text(_NOTING.format(notes=notes, sbatch=shutil.which("sbatch")))
    command.chmod(0o755)
    os.environ["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    return notes


def jobs_row(njobs: int) -> Row:
    label = f"Slurm, `scale(jobs={njobs})`"
    return Row(
        (
            Figure(
                f"{label} to {njobs} workers", "ready_s", "s",
                must=(Target(1, ("distributed",)),), aim=(Target(1 / 2, ("distributed",)),),
            ),
            Figure(f"{label}: calls of sbatch", "submits", "calls", must=(Target(1),)),
            Figure(f"Slurm, an array of {njobs} jobs that do nothing", "bare_s", "s"),
        ),
        measure_jobs(njobs),
        without=(*WITHOUT, POOL),
    )  # fmt: skip


ROWS = {"slurm8": jobs_row(8)}
