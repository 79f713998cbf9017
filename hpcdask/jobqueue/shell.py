"""Lines of shell that the scripts of several batch systems have in common."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from hpcdask.jobqueue.job_spec import JobSpec

#: How wide comments are set.
_WIDTH = 100


def comment(text: str) -> list[str]:
    """A paragraph as lines of comment; a `command` in it stays on one line."""
    unbroken = re.sub(
        "`[^`]+`", lambda command: command[0].replace(" ", "\N{NO-BREAK SPACE}"), text
    )
    lines = textwrap.wrap(unbroken, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def command(job: JobSpec) -> str:
    """What every process of the cluster runs, as words of shell."""
    return 'hpc-dask run "${options[@]}" "$@"' if job.has_script else 'hpc-dask "${options[@]}"'


BIND_TO_NONE = comment(
    "--bind-to none: a worker has threads, and Open MPI would bind it to one core."
)


def run_by_mpi(job: JobSpec, title: str) -> Iterator[str]:
    """Lines of shell in which mpirun takes the place of the shell.

    They find in ``hosts`` a line for each, with its number of ranks. An mpirun that knows the batch
    system (`title`) could do without.
    """
    yield from comment(
        f"These numbers for an mpirun that was not built for {title}, in the form of Open MPI, or "
        "in that of MPICH and Intel MPI."
    )
    yield "sign=':'"
    yield "if mpirun --version | grep -Eq '(Open MPI|OpenRTE)'; then sign=' slots='; fi"
    yield 'echo "${hosts// /$sign}" >"$TMPDIR/hosts"'
    yield "nranks=$(awk '{ n += $2 } END { print n }' <<<\"$hosts\")"
    yield ""
    yield from BIND_TO_NONE
    yield 'exec mpirun -np "$nranks" -machinefile "$TMPDIR/hosts" --bind-to none \\'
    yield f"    {command(job)}"


#: What is made anew where nothing of this shell is handed on, within double quotes.
_ANEW = ('cd $(printf %q "$PWD")', "$(declare -f environment)", "environment")


def become_ranks(job: JobSpec, size: str, job_id: str, start: str) -> Iterator[str]:
    """Lines of shell that start the other ranks, and make the job script rank 0.

    Parameters
    ----------
    size : str
        The number of ranks, as an expression of the shell.
    job_id : str
        The job's id, likewise.
    start : str
        What starts rank ``$rank`` with the commands in ``$there``. It hands nothing of this shell
        on, so they make folder, environment and numbers anew.
    """
    run, arguments = (" run", ' "$@"') if job.has_script else ("", "")
    yield f"HPCDASK_SIZE={size}"
    yield f'export HPCDASK_RANK=0 HPCDASK_SIZE HPCDASK_LAUNCH_ID="{job_id}-$$"'
    yield 'there="export HPCDASK_SIZE=$HPCDASK_SIZE HPCDASK_LAUNCH_ID=$HPCDASK_LAUNCH_ID'
    yield from _ANEW
    yield f'exec hpc-dask{run}$(printf \' %q\' "${{options[@]}}"{arguments})"'
    yield "for ((rank = 1; rank < HPCDASK_SIZE; rank++)); do"
    yield f"    {start} &"
    yield "done"
    yield f"exec {command(job)}"


def start_workers(size: str, start: str) -> Iterator[str]:
    """Lines of shell that start the workers of all nodes, of which node 0 is this one.

    Parameters
    ----------
    size : str
        The number of nodes, as an expression of the shell.
    start : str
        What runs the commands in ``$there``, and ``--name $name.$node`` behind them, on node
        ``$node``. It hands nothing of this shell on.
    """
    yield f'there="{_ANEW[0]}'
    yield from _ANEW[1:]
    yield 'exec$(printf \' %q\' "${worker[@]}")"'
    yield '"${worker[@]}" --name "$name.0" &'
    yield "workers+=($!)"
    yield f"for ((node = 1; node < {size}; node++)); do"
    yield f"    {start} &"
    yield "    workers+=($!)"
    yield "done"


_HANDED_ON = ("TERM", "USR1", "USR2")

#: Before workers are started: what `AWAIT_WORKERS` hands on once all have been.
NOTE_SIGNALS = [
    *comment("A signal that comes while the workers are started is kept until they are."),
    "early=''",
    *(f"trap early={signal} {signal}" for signal in _HANDED_ON),
]

#: Wait for all processes in the array ``workers``; ``code`` is then their highest exit code.
AWAIT_WORKERS = [
    *comment("A signal goes on to the workers, and interrupts nothing but the waiting for them."),
    "hand_on() {",
    "    signal=$1",
    '    kill -s "$1" "${workers[@]}" 2>/dev/null || true',
    "}",
    *(f"trap 'hand_on {signal}' {signal}" for signal in _HANDED_ON),
    '[[ ! $early ]] || hand_on "$early"',
    "code=0",
    'for process in "${workers[@]}"; do',
    "    signal=none",
    "    while [[ $signal ]]; do",
    "        signal='' status=0",
    '        wait "$process" || status=$?',
    "    done",
    "    ((status <= code)) || code=$status",
    "done",
]
