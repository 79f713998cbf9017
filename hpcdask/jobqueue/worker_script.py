"""The script of a job that brings workers: pure text, as `job_script` for whole clusters."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpcdask.jobqueue.job_script import environment, joined
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import AWAIT_WORKERS, NOTE_SIGNALS, comment
from hpcdask.jobqueue.system import BatchSystem

#: The number that a process has among those of its launch, as its launcher says: Open MPI, PMIx,
#: MPICH and others with PMI, jsrun, aprun, srun.
_RANK = (
    "${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${JSM_NAMESPACE_RANK:-"
    "${ALPS_APP_PE:-$SLURM_PROCID}}}}}"
)

#: A token in the environment goes before that of a scheduler file. Part of the command, since login
#: shells of other nodes read profiles of their own.
_WITHOUT_TOKENS = "env -u HPCDASK_TOKEN -u HPCDASK_TOKEN_FILE"


@dataclass(frozen=True, kw_only=True)
class WorkerScript:
    """What the script of a job does, beside what its `JobSpec` asks for.

    Parameters
    ----------
    worker : sequence of str
        The command that starts the workers of a node, without ``--name``: words of shell, in lines.
    name : str, optional
        Of the workers, in place of the job's id.
    launcher : str
        Words of shell before that command; empty for the system's own way.
    epilogue : sequence of str
        Lines of the user's own for when the workers have ended.
    shebang : str
        The first line.
    title : str
        What it is, in a sentence.
    is_named : bool
        Whether what is started takes a ``--name``, as workers do and a scheduler does not.
    has_token : bool
        Whether the worker has the token from its scheduler file, and from nowhere else.
    """

    worker: Sequence[str]
    name: str | None = None
    launcher: str = ""
    epilogue: Sequence[str] = ()
    shebang: str
    title: str
    has_token: bool
    is_named: bool = True

    def text(self, system: BatchSystem, job: JobSpec, header: str) -> str:
        """The whole script; `header` is its directives."""
        return joined(
            [
                [self.shebang, *comment(self.title)],
                header.splitlines(),
                system.first_steps(job),
                environment(system, job),
                self._name(system),
                self._one_node() if job.nodes == 1 else self._all_nodes(system, job),
                *(self._ending() if job.nodes > 1 or self.epilogue else ()),
            ]
        )

    def _name(self, system: BatchSystem) -> Iterator[str]:
        if not self.is_named:
            return
        if self.name is not None:
            yield f"name={shlex.quote(self.name)}"
            return
        yield from comment("The workers are called as the job is in the queue.")
        yield f'name="{system.element_expression}"'

    def _one_node(self) -> Iterator[str]:
        first, *rest = self._command()
        name = ['--name "$name"'] if self.is_named else []
        words = " \\\n    ".join([f"{self.launcher} {first}".lstrip(), *name, *rest])
        if self.epilogue:
            yield from NOTE_SIGNALS
        yield from self._about_token()
        if self.epilogue:
            yield f"{words} &"
            yield "workers=($!)"
            return
        yield from comment(
            "exec: signals reach the workers, which hand over what only they hold before they end."
            if self.is_named
            else "exec: signals reach the scheduler."
        )
        yield f"exec {words}"

    def _command(self) -> list[str]:
        first, *rest = self.worker
        return [f"{_WITHOUT_TOKENS} {first}" if self.has_token else first, *rest]

    def _about_token(self) -> list[str]:
        about = "env: a token that a profile exports would go before the scheduler file's."
        return comment(about) if self.has_token else []

    def _all_nodes(self, system: BatchSystem, job: JobSpec) -> Iterator[str]:
        yield from self._about_token()
        yield "worker=("
        yield from (f"    {line}" for line in self._command())
        yield ")"
        yield from NOTE_SIGNALS
        yield "workers=()"
        if not self.launcher:
            yield from system.workers_on_each_node(job)
            return
        yield from comment("Each process is told its number by the launcher, whichever that is.")
        yield f"{self.launcher} \\"
        yield f"""    bash -c 'exec "$@" --name "$0.{_RANK}"' "$name" "${{worker[@]}}" &"""
        yield "workers+=($!)"

    def _ending(self) -> Iterator[Sequence[str]]:
        yield AWAIT_WORKERS
        yield self.epilogue
        yield ['exit "$code"']
