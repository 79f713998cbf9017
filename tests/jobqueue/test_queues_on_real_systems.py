"""Jobs of an array on real Slurm, Grid Engine, and PBS commands: listed, cancelled, and their ends.

All that is asked and said is what the batch system's class in hpcdask makes and reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from batch.bed import PATIENCE, Bed
from editing import calls, witness
from waiting import wait_until

from hpcdask.jobqueue.job_script import job_script
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.jobqueue.systems import SYSTEMS

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

#: What becomes of each of four jobs, in place of a worker.
SCRIPT = """\
case "$id" in
*2 | *'2]') exit 3 ;;
*3 | *'3]') exit 0 ;;
*) exec sleep 600 ;;
esac"""


@dataclass
class Queue:
    """A batch system, and a folder from which jobs are submitted to it."""

    bed: Bed
    system: BatchSystem
    folder: Path

    def ask(self, command: Iterable[str], **variables: str) -> Answer:
        done = self.bed.run(*command, cwd=self.folder, check=False, variables=variables)
        return Answer(done.returncode, done.stdout, done.stderr)

    def write(self, **changes: object) -> str:
        """A job script, as a file."""
        lines = (f'id="{self.system.element_expression}"', 'touch "started.$id"', SCRIPT)
        job = JobSpec(launch="workers", count=4, environment=lines)
        path = self.folder / "job"
        path.write_text(job_script(self.system, replace(job, **changes)))
        return str(path)

    def submit(self, path: str, count: int) -> list[str]:
        answer = self.ask([*self.system.submit_command, path])
        assert answer.code == 0, answer
        return self.system.elements(self.system.job_id(answer.out), count)

    def statuses(self, ids: list[str]) -> dict[str, JobStatus]:
        """Of these jobs, from the listing, and from the books for those that are not in it."""
        found = self.system.parse_status(self.ask(self.system.status_command(ids)))
        missing = [id for id in ids if id not in found]
        for command in self.system.end_commands(missing) if missing else ():
            answer = self.ask(command)
            if "accounting storage is disabled" not in answer.err:  # of the Slurm in these tests
                found |= {k: v for k, v in self.system.parse_ends(answer).items() if k in missing}
        return {id: found[id] for id in ids if id in found}

    def wait(
        self, ids: list[str], condition: Callable[..., object], what: str
    ) -> dict[str, JobStatus]:
        """Wait until a condition holds for all statuses; return these."""
        last: dict[str, JobStatus] = {}

        def holds() -> bool:
            last.clear()
            last.update(self.statuses(ids))
            return len(last) == len(ids) and all(map(condition, last.values()))

        try:
            wait_until(holds, PATIENCE, what)
        except AssertionError:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}: {last}") from None
        return last

    def cancel(self, ids: list[str]) -> None:
        for command in self.system.cancel_commands(ids):
            self.ask(command)

    def clear(self, ids: list[str]) -> None:
        """Cancel jobs, and wait until nothing of them is left.

        A job that is just being started may not hear of it: Slurm kills it half a minute later.
        """
        self.cancel(ids)

        def are_gone() -> bool:
            listed = self.system.parse_status(self.ask(self.system.status_command(ids)))
            return all(listed[id].phase is Phase.ENDED for id in ids if id in listed)

        wait_until(are_gone, PATIENCE, f"{len(ids)} jobs are gone")


@pytest.fixture(params=SYSTEMS)
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Queue:
    return Queue(request.getfixturevalue(request.param), SYSTEMS[request.param], tmp_path)


def has_ended(status: JobStatus) -> bool:
    return status.phase is Phase.ENDED


def runs(status: JobStatus) -> bool:
    return status.phase is Phase.RUNNING


def test_of_an_array_one_job_is_cancelled_and_all_ends_are_known(queue):
    path = queue.write()
    if trial := queue.system.trial_command(path):
        answer = queue.ask(trial)
        assert queue.system.refusal(answer) == "", answer
    ids = queue.submit(path, 4)
    first, failing, good, last = ids
    try:
        statuses = queue.wait([first, last], runs, "two jobs run")
        assert all(status.nodes for status in statuses.values())
        queue.wait([failing, good], has_ended, "two jobs have ended")
        # Within the job its id is what the listing calls it.
        wait_until(lambda: len(list(queue.folder.glob("started.*"))) == 4, PATIENCE, "all began")
        assert {path.name for path in queue.folder.glob("started.*")} == {
            f"started.{id}" for id in ids
        }

        queue.cancel([first])
        queue.wait([first], has_ended, "one job is cancelled")
        statuses = queue.statuses(ids)
        assert {id: status.end for id, status in statuses.items()} == {
            first: End.CANCELLED,
            failing: End.FAILED,
            good: End.COMPLETED,
            last: None,
        }
        assert statuses[failing].exit_code == 3
        assert runs(statuses[last])
    finally:
        queue.clear(ids)
    queue.wait(ids, has_ended, "all have ended")


def test_what_a_user_has_set_for_squeue_hides_no_job(slurm, tmp_path):
    queue = Queue(slurm, SYSTEMS["slurm"], tmp_path)
    [id] = queue.submit(queue.write(count=1), 1)
    try:
        names = ("ACCOUNT", "FORMAT", "LICENSES", "NAMES", "PARTITION", "QOS", "STATES", "USERS")
        settings = {f"SQUEUE_{name}": "short" for name in names} | {"SQUEUE_USERS": "daemon"}
        answer = queue.ask(queue.system.status_command([id]), **settings)
        assert list(queue.system.parse_status(answer)) == [id]
    finally:
        queue.clear([id])


def test_slurm_tells_how_large_an_array_may_be(slurm, tmp_path):
    queue = Queue(slurm, SYSTEMS["slurm"], tmp_path)
    command = queue.system.array_command()
    largest = queue.system.parse_array(queue.ask(command))
    assert largest == 1000, "which is what Slurm has where nobody has set another"
    path = queue.write(count=largest + 1)
    assert "array" in queue.ask([*queue.system.submit_command, path]).err
    queue.clear(queue.submit(queue.write(count=largest), largest))


def test_jobs_are_found_by_their_script(queue):
    command = queue.system.find_command()
    if command is None:
        pytest.skip(f"{queue.system.title} is not asked for the scripts of jobs")
    path = queue.write(count=2)
    assert queue.system.parse_found(queue.ask(command), path) == []
    ids = queue.submit(path, 2)
    try:
        assert sorted(queue.system.parse_found(queue.ask(command), path)) == ids
        assert queue.system.parse_found(queue.ask(command), f"{path}0") == []
    finally:
        queue.clear(ids)


#: What each says of a queue that it has not. PBS has no trial.
UNKNOWN_QUEUE = {
    "slurm": "invalid partition specified: nope",
    "sge": 'unknown queue "nope"',
}


@pytest.mark.parametrize("system", UNKNOWN_QUEUE)
def test_a_trial_tells_what_would_be_refused(request, tmp_path, system):
    queue = Queue(request.getfixturevalue(system), SYSTEMS[system], tmp_path)
    command = queue.system.trial_command(queue.write(queue="nope"))
    assert UNKNOWN_QUEUE[system] in queue.system.refusal(queue.ask(command))


#: What no queue of the tests will ever run, and what the system says of it.
NEVER = {
    "slurm": ("--nodes=9", "PartitionNodeLimit"),
    "pbs": ("-l select=9:ncpus=1", "Can Never Run: PartitionNodeLimit"),
    "sge": ("-wd /nonexistent", "can't chdir to /nonexistent"),
}


def test_a_job_that_can_never_run_is_known_by_its_reason(queue):
    directive, words = NEVER[queue.system.name]
    path = queue.write(count=1, directives=(directive,), skip=("-l select", "-cwd"))
    [id] = queue.submit(path, 1)
    try:
        status = queue.wait([id], queue.system.can_never_run, "it can never run")[id]
        assert status.phase is Phase.PENDING
        reasons = {id: status.reason}
        if command := queue.system.reason_command([id]):
            reasons = queue.system.parse_reasons(queue.ask(command))
        assert words in reasons[id]
    finally:
        queue.clear([id])


# -- Workers on several nodes ---------------------------------------------------------------------


@pytest.mark.parametrize("system", ["slurm", "pbs"])  # Grid Engine has one host here
def test_a_job_of_several_nodes_starts_one_group_of_workers_on_each(request, tmp_path, system):
    queue = Queue(request.getfixturevalue(system), SYSTEMS[system], tmp_path)
    shape = {"count": 1, "nodes": 2, "tasks_per_node": 3, "environment": (witness(tmp_path, 2),)}
    [id] = queue.submit(queue.write(scheduler_file="s", **shape), 1)
    try:
        assert queue.wait([id], has_ended, "it has ended")[id].end is End.COMPLETED
    finally:
        queue.clear([id])
    nodes, words = calls(tmp_path)
    worker = "worker --scheduler-file s --nworkers 3 --nthreads 1 --name"
    assert words == [f"{worker} {id}.0", f"{worker} {id}.1"]
    assert len(nodes) == 2
