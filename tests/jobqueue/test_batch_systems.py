"""What batch systems print, as recorded, and what is read in it."""

from __future__ import annotations

import pytest

from hpcdask.errors import ConfigError
from hpcdask.host import parse_walltime
from hpcdask.jobqueue.amounts import format_walltime
from hpcdask.jobqueue.systems import SYSTEMS, detect, refuse_foreign_commands


@pytest.mark.parametrize(
    ("system", "output", "job_id"),
    [
        ("slurm", "2\n", "2"),
        ("slurm", "2;cluster\n", "2"),
        ("slurm", "sbatch: your project has 3 hours left\n17\n", "17"),
        ("slurm", "12 hours of your budget are left\n17;cluster\n", "17"),
        ("slurm", "Submitted batch job 17 on cluster c\n", "17"),
        ("pbs", "0.pbshost\n", "0.pbshost"),
        ("pbs", "19[].pbshost\n", "19[].pbshost"),
        ("pbs", "39\n", "39"),  # of Slurm's own qsub
        ("sge", "2\n", "2"),
        ("sge", "6.1-4:2\n", "6"),
    ],
)
def test_the_id_of_a_submitted_job_is_found(system, output, job_id):
    assert SYSTEMS[system].job_id(output) == job_id


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("output", ["", "\n", "done", "Your job 1 has been submitted"])
def test_an_answer_without_an_id_is_no_id(system, output):
    with pytest.raises(ValueError):
        SYSTEMS[system].job_id(output)


# -- Times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1:30:00", 5400),
        ("00:00:30", 30),
        ("100:00:00", 360_000),
        ("2-12:00:00", 60 * 3600),
        ("90min", 5400),
        ("1.5h", 5400),
        ("2 days", 2 * 86400),
        ("0.5s", 1),
    ],
)
def test_a_walltime_is_read(text, seconds):
    assert parse_walltime(text) == seconds
    assert parse_walltime(format_walltime(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("30", "means other things to other batch systems"),  # minutes, or seconds
        ("1:30", "means other things to other batch systems"),
        ("1:60:00", "means other things to other batch systems"),
        ("soon", "'soon' is not a duration"),
        ("0:00:00", "is no time for a job"),
        ("0s", "is no time for a job"),
    ],
)
def test_a_walltime_that_may_mean_two_things_is_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_walltime(text)
    assert words in str(caught.value)


# -- Which system is here -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "environ", "found"),
    [
        ({"sbatch"}, {}, "slurm"),
        ({"sbatch", "qsub"}, {}, "slurm"),  # Slurm has a qsub, too
        ({"qsub"}, {}, "pbs"),
        ({"qsub", "qconf"}, {}, "sge"),
        ({"qsub"}, {"SGE_ROOT": "/opt/sge"}, "sge"),
    ],
)
def test_a_system_is_known_by_its_commands(commands, environ, found):
    which = {command: f"/bin/{command}" for command in commands}.get
    assert detect(which, environ).name == found


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        (set(), "neither sbatch nor qsub in the PATH"),
        ({"sbatch", "qsub", "qconf"}, "more than one batch system is here: name slurm or sge"),
    ],
)
def test_who_cannot_tell_asks(commands, words):
    which = {command: f"/bin/{command}" for command in commands}.get
    with pytest.raises(ConfigError) as caught:
        detect(which, {})
    assert words in str(caught.value)


def test_a_script_for_pbs_is_not_handed_to_grid_engine(tmp_path):
    for folder in ("pbs", "sge"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sge/qconf").touch()

    def first_in_path(folder):
        return lambda command: str(tmp_path / folder / command)

    with pytest.raises(ConfigError, match="is that of Grid Engine, which would heed none"):
        refuse_foreign_commands(SYSTEMS["pbs"], first_in_path("sge"))
    refuse_foreign_commands(SYSTEMS["pbs"], first_in_path("pbs"))
    refuse_foreign_commands(SYSTEMS["sge"], first_in_path("sge"))
    refuse_foreign_commands(SYSTEMS["pbs"], lambda command: None)
