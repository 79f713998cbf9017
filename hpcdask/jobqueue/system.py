"""What a batch system is to hpcdask: text out (directives, commands) and text in (its answers).

One small file per system fills this in; nothing here runs a command or touches a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from hpcdask.errors import ConfigError
from hpcdask.jobqueue import job_spec
from hpcdask.jobqueue.amounts import counted
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.status import Answer, JobStatus

#: Ids that one command gets at most: of some systems each is a request of its own.
CHUNK = 100

#: Fields of a job that only one system has, and what the others say.
_OWN_FIELDS = {
    "parallel_environment": (
        "sge",
        "parallel environments are Grid Engine's; {} needs none: drop --pe",
    ),
    "disk": ("htcondor", "only HTCondor is asked for room on a disk; {} is not: leave it out"),
}


class BatchSystem(ABC):
    """What one batch system calls things.

    What is abstract every system has to say; all else has an answer that fits most of them.
    """

    #: As in the command line, and as in prose.
    name: ClassVar[str]
    title: ClassVar[str]
    #: What begins a directive, and the ending of a job script's name.
    prefix: ClassVar[str]
    suffix: ClassVar[str]
    #: Words before the path of a job script, and before the ids of jobs.
    submit_command: tuple[str, ...]
    cancel_command: str
    #: What a user types to submit, if it is not the first of those words.
    submit_usage: ClassVar[str] = ""

    def check(self, job: JobSpec) -> None:
        """Refuse what this system, or no system, can do.

        Raises
        ------
        ConfigError
            With what to do instead.
        """
        job_spec.check(job)
        for field, (owner, words) in _OWN_FIELDS.items():
            if getattr(job, field) and self.name != owner:
                raise ConfigError(words.format(self.title))

    # -- Job scripts ------------------------------------------------------------------------------

    #: Starts processes on the nodes of a job.
    launcher: ClassVar[str] = ""
    #: The job's id within the job, as an expression of the shell; that of all jobs of an array.
    job_id_expression: ClassVar[str] = ""
    #: Whether a job script gets the words behind its name where it is submitted.
    takes_arguments: ClassVar[bool] = True
    #: Whether one of the tasks is the scheduler where MPI is not used, too; else it comes besides.
    scheduler_is_a_task: ClassVar[bool] = True

    @abstractmethod
    def directives(self, job: JobSpec) -> Iterator[str]:
        """Lines that ask for the job's resources, with comments where a reader may wonder."""

    def template(self, launch: str) -> JobSpec:
        """The job of the templates in jobscripts/, which everything else departs from."""
        nodes, count = (1, 4) if launch == "workers" else (2, 1)
        return JobSpec(
            launch=launch,
            count=count,
            nodes=nodes,
            tasks_per_node=4,
            cpus_per_task=4,
            memory=32 * 2**30,
        )

    def template_name(self, launch: str) -> str:
        """Name of the template's file."""
        return f"{self.name}-{self.launcher if launch == 'native' else launch}{self.suffix}"

    def shape(self, job: JobSpec) -> str:
        """The size of a job, in words, as far as it is granted."""
        return f"{counted(job.nodes, 'node')} with {counted(job.tasks_per_node, 'process')} each"

    def suggestions(self, job: JobSpec) -> Iterator[str]:
        """Directives that a site may want too, for what the job does not name, with comments.

        They are made comments themselves, by one # more.
        """
        yield from ()

    def first_steps(self, job: JobSpec) -> Iterator[str]:
        """Lines of shell before all others."""
        yield from ()

    def launch(self, job: JobSpec) -> Iterator[str]:
        """Lines of shell that start a cluster; the last one takes the place of the shell.

        They find in ``options`` what all processes of the cluster are told, in ``$@`` the script,
        and where `needs_environment` the function ``environment``.
        """
        raise ConfigError(
            f"hpcdask starts no cluster within a job of {self.title}, but workers: use --launch "
            "workers, or mpirun with `hpc-dask run` in a job script of your own"
        )

    def workers_on_each_node(self, job: JobSpec) -> Iterator[str]:
        """Lines of shell that run a command once on each node, in the background.

        They find in the array ``worker`` the command, in ``name`` the `element_expression`, and
        where `needs_environment` the function ``environment``. What runs on node N of the job,
        from 0, is told ``--name $name.N`` besides. They add to the array ``workers`` the processes
        that are to be waited for.
        """
        raise ConfigError(
            f"jobs of {self.title} have one node each here: ask for more jobs in place of nodes"
        )

    def needs_environment(self, job: JobSpec) -> bool:
        """Whether the environment has to be made anew on other nodes, by a function."""
        return False

    # -- Submitting -------------------------------------------------------------------------------

    #: Whether one submission can bring several jobs.
    has_arrays: ClassVar[bool] = True

    def array_command(self) -> list[str] | None:
        """A command that tells how many jobs one submission may bring; None if there is none."""
        return None

    def parse_array(self, answer: Answer) -> int | None:
        """Those; None if the system sets no limit, or does not say."""
        return None

    def trial_command(self, path: str) -> list[str] | None:
        """A command that asks whether a job script would be taken, and submits nothing."""
        return None

    def refusal(self, trial: Answer) -> str:
        """What the system has against a job, in its own words; empty if nothing that would last."""
        return "" if trial.code == 0 else trial.err.strip() or trial.out.strip()

    @abstractmethod
    def job_id(self, submit_output: str) -> str:
        """The id in what the submit command printed.

        Raises
        ------
        ValueError
            If there is none.
        """

    def file_id(self, job_id: str) -> str:
        """The part of an id that `job_id_expression` stands for."""
        return job_id

    # -- The queue: commands out, answers in ------------------------------------------------------

    #: The id of a job within the job, one of an array too, as an expression of the shell for use
    #: in double quotes. It gives what `elements` says of the job; in a life after a requeue with
    #: ``rN`` behind it, of which some systems know the number, some that it is not the first, and
    #: some nothing.
    element_expression: ClassVar[str]

    @abstractmethod
    def elements(self, job_id: str, count: int) -> list[str]:
        """Ids of the jobs of a submission, one by one, as all else here calls them."""

    def cancel_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Commands that cancel exactly these, each short enough for a command line."""
        return [[*self.cancel_command.split(), *some] for some in chunks(ids)]

    @abstractmethod
    def status_command(self, ids: Sequence[str]) -> list[str]:
        """One command that tells of all these jobs, as far as they are in the queue."""

    @abstractmethod
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        """Jobs by id, others of the user's too; `end_commands` may tell of those that are missing.

        Raises
        ------
        StatusError
            If this is no complete answer, so that nothing follows from what is missing.
        """

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        """Commands that tell of jobs that are no longer in the queue; none if nobody can."""
        return []

    def parse_ends(self, answer: Answer) -> dict[str, JobStatus]:
        """Jobs of which the system knows the end (or that are there after all), by id.

        Raises
        ------
        StatusError
            If this is no answer.
        """
        return self.parse_status(answer)

    def reason_command(self, ids: Sequence[str]) -> list[str] | None:
        """A command that tells why jobs wait, where the listing does not."""
        return None

    def parse_reasons(self, answer: Answer) -> dict[str, str]:
        """Why jobs wait, by id, as far as the system tells."""
        return {}

    def find_command(self) -> list[str] | None:
        """A command that lists this user's jobs with their scripts; None if there is none."""
        return None

    def parse_found(self, answer: Answer, path: str) -> list[str]:
        """Ids of the jobs that were submitted with the script of this path.

        Raises
        ------
        StatusError
            If this is no complete answer.
        """
        return []

    def can_never_run(self, status: JobStatus) -> bool:
        """Whether the reason for which a job waits will not go away by itself."""
        return False


def chunks(ids: Iterable[str], size: int = CHUNK) -> list[list[str]]:
    """`ids` in lists of at most `size`."""
    items = list(ids)
    return [items[start : start + size] for start in range(0, len(items), size)]
