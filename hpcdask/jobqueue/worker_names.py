"""Names of workers in batch jobs, and whose they are.

A name is the job's id; then, if the job was put back into the queue, ``r`` and how often; then, if
it has several nodes, ``.`` and the node; then, if there are several processes, ``-`` and a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = re.compile(r"(?P<id>\d+(?:_\d+|\[\d+\])?)(?P<task>\.\d+)?(?:r(?P<life>\d+))?(?=[.-]|$)")
_PROCESS = re.compile(r"-\d+$")


def job_of(worker: str) -> str:
    """The id of the job in a worker's name.

    ``5.2`` may be task 2 of Grid Engine's job 5, or node 2 of another system's job 5; this is the
    former, and `candidates` has both.

    Examples
    --------
    >>> [job_of(name) for name in ("5", "5-2", "5_1r1-0", "5_1.3-2", "6.2-0", "19[2]-1")]
    ['5', '5', '5_1', '5_1', '6.2', '19[2]']
    """
    return next(candidates(worker))[0]


def candidates(worker: str) -> Iterator[tuple[str, int]]:
    """Jobs that a worker may be of, the likeliest first, each with the number of its restarts."""
    match = _NAME.match(worker)
    if match is None:
        yield _PROCESS.sub("", worker), 0
        return
    id, task, life = match["id"], match["task"] or "", int(match["life"] or 0)
    if task and id.isdigit():  # of other systems the array's task is in the id
        yield id + task, life
    yield id, life


def life_of(worker: str, job: str) -> int:
    """The number of restarts in the name of a worker of a job; -1 if it is not of this job."""
    return dict(candidates(worker)).get(job, -1)
