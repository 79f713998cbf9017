"""Which value counts, where it comes from, and what was meant by what is no setting."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from hpcdask.config.kinds import AMOUNTS, VARIABLES
from hpcdask.config.schema import ALIASES, BY_KEY, RIVALS, SCHEMA, SECTIONS
from hpcdask.config.settling import Layer, Leaf, Settings, from_program, layer_of, settle
from hpcdask.errors import ConfigError

TTL = "scheduler.worker-ttl"


def in_file(name: str, values: dict[str, Any]) -> Layer:
    """A file with a value in each line."""
    leaves = [
        Leaf(tuple(key.split(".")), raw, f"{name}:{line}")
        for line, (key, raw) in enumerate(values.items(), 1)
    ]
    return layer_of(leaves)


def settled(
    program: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    *files: Layer,
) -> Settings:
    return settle(from_program(program or {}), environ or {}, files)


def refusal(*args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settled(*args)
    return str(caught.value)


# -- Precedence -----------------------------------------------------------------------------------


def test_each_place_goes_before_those_behind_it() -> None:
    site, user = in_file("site", {TTL: "1s"}), in_file("user", {TTL: "2s"})
    environ, program = {"HPCDASK_SCHEDULER__WORKER_TTL": "3s"}, {TTL: "4s"}
    places: list[tuple[Settings, float, str]] = [
        (settled(), 30.0, "default"),
        (settled({}, {}, site), 1.0, "site:1"),
        (settled({}, {}, user, site), 2.0, "user:1"),
        (settled({}, environ, user, site), 3.0, "HPCDASK_SCHEDULER__WORKER_TTL"),
        (settled(program, environ, user, site), 4.0, "hpcdask.config.set"),
    ]
    for settings, value, source in places:
        assert (settings[TTL], settings.source(TTL)) == (value, source)
        assert settings.value(TTL, "5s") == 5.0  # an argument goes before all


def test_what_one_file_does_not_say_another_one_may() -> None:
    user, site = in_file("user", {TTL: "2s"}), in_file("site", {"worker.interface": "ib0"})
    settings = settled({}, {}, user, site)
    assert (settings[TTL], settings["worker.interface"]) == (2.0, "ib0")


def test_null_is_a_value_where_the_default_is_none() -> None:
    site = in_file("site", {"worker.lifetime.duration": "1h"})
    user = in_file("user", {"worker.lifetime.duration": None})
    assert settled({}, {}, user, site)["worker.lifetime.duration"] is None
    for text in ("", "none", "null", "None"):
        environ = {"HPCDASK_WORKER__LIFETIME__DURATION": text}
        assert settled({}, environ, site)["worker.lifetime.duration"] is None


def test_null_switches_off_what_can_be_switched_off_and_nothing_else() -> None:
    off = {TTL: None, "comm.compression": None, "scheduler.preload": None}
    settings = settled({}, {}, in_file("f", off))
    assert [settings[key] for key in off] == [0.0, None, ()]
    text = refusal({}, {"HPCDASK_SCHEDULER__ALLOWED_FAILURES": "none"})
    assert "HPCDASK_SCHEDULER__ALLOWED_FAILURES: 'none' is nothing, and it needs a number" in text


def test_a_table_is_put_together_entry_by_entry() -> None:
    key = "nanny.environ"
    site = in_file("site", {f"{key}.A": "1", f"{key}.B": "1", f"{key}.C": "1"})
    user = in_file("user", {f"{key}.B": "2", f"{key}.C": None})
    settings = settled({}, {"HPCDASK_NANNY__ENVIRON__MY_D": "3"}, user, site)
    assert settings[key] == {"A": "1", "B": "2", "MY_D": "3"}, "null takes an entry away"
    rows = {row.key: (row.value, row.source) for row in settings.rows() if key in row.key}
    assert rows[f"{key}.B"] == ("2", "user:1")
    assert rows[f"{key}.MY_D"] == ("3", "HPCDASK_NANNY__ENVIRON__MY_D")


def test_a_whole_table_can_be_one_variable() -> None:
    environ = {
        "HPCDASK_NANNY__ENVIRON": '{"A": "1", "B": 2}',
        "HPCDASK_WORKER__RESOURCES": "GPU=2 MEM=2e9",
    }
    settings = settled({}, environ)
    assert settings["nanny.environ"] == {"A": "1", "B": "2"}
    assert settings["worker.resources"] == {"GPU": 2.0, "MEM": 2e9}
    assert settled({"worker.resources": {"GPU": 1}})["worker.resources"] == {"GPU": 1.0}


@pytest.mark.parametrize(("weak", "strong"), [*RIVALS, *((b, a) for a, b in RIVALS)])
def test_the_stronger_of_two_rivals_silences_the_other(weak: str, strong: str) -> None:
    user, site = in_file("user", {strong: "strong"}), in_file("site", {weak: "weak"})
    settings = settled({}, {}, user, site)
    assert (settings[strong], settings[weak]) == ("strong", None)
    both = settled({}, {}, in_file("user", {strong: "1", weak: "2"}), site)
    assert (both[strong], both[weak]) == ("1", "2"), "who sets both means both"
    empty = settled({}, {}, in_file("user", {strong: None}), site)
    assert (empty[strong], empty[weak]) == (None, "weak"), "null claims nothing"


# -- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        (TTL, "5 minutes", 300.0),
        (TTL, 90, 90.0),
        (TTL, timedelta(minutes=2), 120.0),
        (TTL, "0", 0.0),
        ("comm.max-messages", "64 MiB", 64 * 2**20),
        ("comm.compression", "false", None),
        ("comm.compression", "zstd", "zstd"),
        ("scheduler.work-stealing", "off", False),
        ("scheduler.work-stealing", True, True),
        ("scheduler.port", "9000:9010", "9000:9010"),
        ("scheduler.port", 9000, "9000"),
        ("scheduler.preload", "a.py, b.py", ("a.py", "b.py")),
        ("scheduler.preload", '["a,b.py"]', ("a,b.py",)),
        ("scheduler.preload", ["a.py"], ("a.py",)),
        ("worker.memory-limit", "auto", "auto"),
        ("worker.memory-limit", 0.5, "0.5"),
        ("worker.nworkers", "-1", "-1"),
        ("log-level", "DEBUG", "debug"),
        ("client.direct-to-workers", "no", False),
    ],
)
def test_values_are_read_as_they_are_meant(key: str, raw: Any, value: Any) -> None:
    assert settled({key: raw})[key] == value


@pytest.mark.parametrize(
    ("key", "raw", "expected"),
    [
        (TTL, "soon", "'soon' is not a duration"),
        (TTL, ["1s"], "['1s'] is not a duration"),
        ("scheduler.heartbeat", "0s", "'0s' is no time at all"),
        ("comm.max-messages", "a lot", "'a lot' is not a size"),
        ("comm.compression", "foo", "'foo' is no compression; set auto, lz4, zstd or none"),
        ("scheduler.work-stealing", "maybe", "'maybe' is neither true nor false"),
        ("scheduler.port", "9010:9000", "'9010:9000' is no port or range of ports"),
        ("scheduler.allowed-failures", "few", "'few' is no number of things"),
        ("scheduler.allowed-failures", -1, "-1 is no number of things"),
        ("worker.connections.outgoing", 0, "0 is too few: give at least 1"),
        ("worker.nworkers", "few", "'few' is neither a number nor 'auto'"),
        ("worker.memory-limit", "lots", "'lots' is not a size"),
        ("worker.resources", {"GPU": "many"}, "'many' is no amount of the resource 'GPU'"),
        ("worker.resources", "GPU", "'GPU' is no resource; write NAME=NUMBER"),
        ("nanny.environ", "{A: 1}", "is no JSON"),
        ("nanny.environ", "[1]", "is JSON, but no dict"),
        ("nanny.environ", {"A B": "1"}, "'A B' is no name of a variable"),
        ("scheduler.preload", '["a.py"', "is no JSON"),
        ("log-level", "loud", "'loud' is none of debug, info, warning, error"),
        ("admin.log-format", "%(message", "is no format of log lines"),
        ("scheduler.interface", ["ib0"], "['ib0'] is no text"),
    ],
)
def test_what_a_setting_cannot_be_is_refused_with_its_place(
    key: str, raw: Any, expected: str
) -> None:
    text = refusal({key: raw})
    assert text.startswith(f"hpcdask.config.set: {key}: ")
    assert expected in text


def test_paths_are_filled_in_where_they_are_used() -> None:
    key = "worker.local-directory"
    environ = {"HPCDASK_WORKER__LOCAL_DIRECTORY": "$SCRATCH/${USER}/tasks", "USER": "me"}
    assert settled({}, {**environ, "SCRATCH": "/scratch"})[key] == "/scratch/me/tasks"
    settings = settled({}, environ)  # on a host without it, nobody need use it
    with pytest.raises(ConfigError, match=f"{key}: .* names \\$SCRATCH, which is not set here"):
        settings[key]
    assert "$SCRATCH/${USER}/tasks" in [row.text for row in settings.rows()]
    assert settings.value(key, "/given/$x") == "/given/$x"


@pytest.mark.parametrize("setting", SCHEMA, ids=lambda setting: setting.key)
def test_every_default_is_one_that_could_be_written(setting: Any) -> None:
    value = setting.read(setting.default)
    assert settled()[setting.key] == value
    assert settled({setting.key: setting.default})[setting.key] == value
    assert setting.doc.endswith(".")


# -- Keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler.worker-ttl": "7s"},
        {"scheduler.worker_ttl": "7s"},
        {"scheduler": {"worker-ttl": "7s"}},
        {"scheduler": {"worker_ttl": "7s"}},
        {"distributed": {"scheduler": {"worker-ttl": "7s"}}},
        {"distributed.scheduler.worker-ttl": "7s"},
    ],
)
def test_every_spelling_of_a_key_is_understood(values: dict[str, Any]) -> None:
    assert settled(values)[TTL] == 7.0


def test_keys_that_dask_has_elsewhere_are_understood() -> None:
    values = {"temporary-directory": "/tmp/x", "distributed.nanny.pre-spawn-environ": {"A": 1}}
    settings = settled(values)
    assert settings["worker.local-directory"] == "/tmp/x"
    assert settings["nanny.environ"] == {"A": "1"}
    assert ALIASES.keys().isdisjoint(BY_KEY)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("scheduler.worker-tl", "did you mean 'scheduler.worker-ttl'?"),
        ("scheduler.allowed-failure", "did you mean 'scheduler.allowed-failures'?"),
        ("worker-ttl", "did you mean 'scheduler.worker-ttl'?"),
        ("worker.idle-timeout", "did you mean 'scheduler.idle-timeout'?"),
        ("sheduler.port", "did you mean 'scheduler.port'?"),
        ("worker.port.first", "worker.port takes a port or range, and no table of 'first'"),
        ("flux-capacitor", "'hpc-dask config' lists all"),
        ("worker.lifetime", "is a section, with settings of its own: worker.lifetime.duration"),
    ],
)
def test_an_unknown_key_says_what_was_meant(key: str, meant: str) -> None:
    assert meant in refusal({key: "1"})


# -- Sections of batch jobs -----------------------------------------------------------------------


def test_a_section_of_ones_own_has_the_keys_of_any_system() -> None:
    values = {
        "jobqueue.gpu": {"queue": "gpu", "job-cpu": 3, "resources": {"GPU": 2}},
        "jobqueue.gpu_a100.job_extra": ["--x"],
    }
    environ = {"HPCDASK_JOBQUEUE__GPU__CORES": "4", "HPCDASK_JOBQUEUE__GPU__RESOURCES__NET": "1"}
    settings = settled(values, environ, in_file("site", {"jobqueue.gpu.cores": "8"}))
    assert settings["jobqueue.gpu.cores"] == 4
    assert settings["jobqueue.gpu.resources"] == {"GPU": 2.0, "NET": 1.0}
    assert settings["jobqueue.gpu-a100.job-extra-directives"] == ("--x",)
    assert settings["jobqueue.gpu.walltime"] == "00:30:00", "the default, as of any system"
    assert settings["jobqueue.slurm.queue"] is None
    assert settings.look_up("jobqueue.gpu.queue") == "gpu"
    assert settings.look_up("jobqueue.gpu")["job-cpu"] == 3
    rows = {row.key: (row.value, row.source) for row in settings.rows() if "gpu" in row.key}
    assert rows == {
        "jobqueue.gpu.cores": (4, "HPCDASK_JOBQUEUE__GPU__CORES"),
        "jobqueue.gpu.job-cpu": (3, "hpcdask.config.set"),
        "jobqueue.gpu.queue": ("gpu", "hpcdask.config.set"),
        "jobqueue.gpu.resources.GPU": (2.0, "hpcdask.config.set"),
        "jobqueue.gpu.resources.NET": (1.0, "HPCDASK_JOBQUEUE__GPU__RESOURCES__NET"),
        "jobqueue.gpu-a100.job-extra-directives": (("--x",), "hpcdask.config.set"),
    }


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("jobqueue.gpu.coers", "did you mean 'jobqueue.gpu.cores'?"),
        ("jobqueue.slurm.coers", "did you mean 'jobqueue.slurm.cores'?"),
        ("jobqueue.pbs.job-cpu", "did you mean 'jobqueue.slurm.job-cpu'?"),
        ("jobqueue.gpu", "'jobqueue.gpu' is a section, with settings of its own: jobqueue.gpu."),
        ("jobqueue.gpu.cores.more", "jobqueue.gpu.cores takes a number from 1 up, and no table"),
        ("jobqueue.gpu.xyzzy", "'hpc-dask config' lists all"),
        ("jobqueue", "'jobqueue' is a section"),
    ],
)
def test_an_unknown_key_of_jobs_says_what_was_meant(key: str, meant: str) -> None:
    assert meant in refusal({key: "1"})


def test_a_misspelt_variable_of_a_section_of_ones_own_says_what_was_meant() -> None:
    text = refusal({}, {"HPCDASK_JOBQUEUE__GPU__COERS": "1"})
    assert text.endswith("did you mean HPCDASK_JOBQUEUE__GPU__CORES?")


def test_a_section_that_nobody_has_is_no_section() -> None:
    settings = settled({"jobqueue.gpu.cores": 1})
    with pytest.raises(ConfigError, match=r"in a section 'jobqueue.gpuu'; there are jobqueue.gpu,"):
        settings.look_up("jobqueue.gpuu")


def test_a_file_of_dask_jobqueue_can_be_pasted_in() -> None:
    """It has the names of today and those of earlier days, all but a few of them null."""
    theirs = {
        "name": "dask-worker",
        "cores": None,
        "memory": None,
        "extra": None,
        "worker-extra-args": [],
        "env-extra": ["module load x"],
        "job-script-prologue": [],
        "header-skip": None,
        "job-directives-skip": [],
        "job-extra": None,
        "job-extra-directives": ["--x"],
        "project": "abc",
        "account": None,
        "walltime": "00:30:00",
        "shebang": "#!/usr/bin/env bash",
        "death-timeout": 60,
    }
    settings = settled({}, {}, in_file("theirs", {"jobqueue.slurm": None}))
    settings = settled({}, {}, in_file("f", {f"jobqueue.slurm.{k}": v for k, v in theirs.items()}))
    section = settings.look_up("jobqueue.slurm")
    assert section["job-name"] == "dask-worker"
    assert section["job-extra-directives"] == ("--x",)
    assert section["account"] == "abc"
    assert section["worker-extra-args"] == ()
    with pytest.raises(ConfigError, match=r"slurm.account is set twice: f:1 and f:2$"):
        in_file("f", {"jobqueue.slurm.account": "a", "jobqueue.slurm.project": "b"})


def test_a_key_is_given_once_by_one_place() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler.worker-ttl is set twice: f:1 and f:2$"):
        in_file("f", {TTL: "1s", f"distributed.{TTL}": "2s"})


def test_a_section_may_be_empty() -> None:
    nothing = {"scheduler": None, "worker.lifetime": None, "distributed": None}
    assert in_file("f", nothing).found == {}
    assert settled({"worker": {}, "nanny": {"environ": {}}}).layers[0].found == {}


def test_what_only_distributed_knows_is_set_aside_and_told() -> None:
    layer = in_file("f", {"distributed.worker.profile.cycle": "1s", f"distributed.{TTL}": 9})
    settings = settled({}, {}, layer)
    assert settings[TTL] == 9.0
    assert settings.foreign() == {"distributed.worker.profile.cycle": "f:1"}
    assert "no setting 'worker.profile.cycle'" in refusal({"worker.profile.cycle": "1s"})


def test_values_are_looked_up_by_key_entry_and_section() -> None:
    settings = settled({"worker.lifetime.duration": "1h", "nanny.environ": {"A": "1"}})
    assert settings.look_up("worker.lifetime.duration") == 3600.0
    assert settings.look_up("distributed.worker.lifetime.duration") == 3600.0
    expected = {"duration": 3600.0, "stagger": 0.0, "restart": False}
    assert settings.look_up("worker.lifetime") == expected
    assert settings.look_up("worker")["lifetime"] == expected
    assert settings.look_up("nanny.environ.A") == "1"
    with pytest.raises(ConfigError, match=r"nanny.environ has no entry 'B'; it has \['A'\]"):
        settings.look_up("nanny.environ.B")
    assert set(settings) == set(BY_KEY)
    assert {"scheduler", "worker", "worker.lifetime", "comm.timeouts"} <= SECTIONS


# -- The environment ------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SCHEMA, ids=lambda setting: setting.key)
def test_every_setting_has_variables(setting: Any) -> None:
    texts = {
        "comm.compression": "lz4",
        "admin.log-format": "%(message)s",
        "worker.walltime.duration": "1h",
    }
    word = re.match(r"one of (\w+)", setting.kind.name)
    usual = {AMOUNTS.name: "A=1", VARIABLES.name: '{"A": "1"}'}.get(setting.kind.name, "1")
    text = word[1] if word else texts.get(setting.key, usual)
    for variable in (setting.variable, *setting.variables):
        layer = settled({}, {variable: text}).layers[1]
        assert list(layer.found) == [setting.key + (".A" if setting.kind.is_table else "")]


def test_the_variables_of_earlier_days_keep_their_names() -> None:
    environ = {
        "HPCDASK_COMM_MAX_MESSAGES": "64 MiB",
        "HPCDASK_COMM_MAX_BUFFERS": "1 GiB",
        "HPCDASK_COMM_COMPRESSION": "none",
        "HPCDASK_COMM_HANDSHAKE_TIMEOUT": "200ms",
        "HPCDASK_SCHEDULER_FILE": "s.json",
        "HPCDASK_SCHEDULER_ADDRESS": "tcp://h:1",
        "HPCDASK_TOKEN_FILE": "t",
        "HPCDASK_TOKEN": "ab" * 32,
    }
    settings = settled({}, environ)
    assert settings["comm.max-messages"] == 64 * 2**20
    assert settings["comm.max-buffers"] == 2**30
    assert settings["comm.compression"] is None
    assert settings["comm.timeouts.handshake"] == 0.2
    keys = ("scheduler-file", "scheduler-address", "token-file")
    assert [settings[key] for key in keys] == ["s.json", "tcp://h:1", "t"]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("HPCDASK_SCHEDULER__WORKER_TLL", "HPCDASK_SCHEDULER__WORKER_TTL"),
        ("HPCDASK_SCHEDULER_WORKER_TTL", "HPCDASK_SCHEDULER__WORKER_TTL"),
        ("HPCDASK_SHEDULER__PORT", "HPCDASK_SCHEDULER__PORT"),
        ("HPCDASK_COMM_MAX_MESAGES", "HPCDASK_COMM_MAX_MESSAGES"),
        ("HPCDASK_TOKENFILE", "HPCDASK_TOKEN_FILE"),
        ("HPCDASK_SITE_CONFG", "HPCDASK_SITE_CONFIG"),
        ("HPCDASK_SCHEDULER_ADRESS", "HPCDASK_SCHEDULER_ADDRESS"),
    ],
)
def test_a_misspelt_variable_says_what_was_meant(variable: str, meant: str) -> None:
    text = refusal({}, {variable: "1"})
    assert text == f"the environment sets {variable}, which is no setting; did you mean {meant}?"


@pytest.mark.parametrize("variable", ["HPCDASK_QUX__ZYX", "HPCDASK_COMM_QQQQQQQQQQ"])
def test_a_variable_that_looks_like_a_setting_and_is_like_none_is_refused(variable: str) -> None:
    assert f"the environment sets {variable}, which is no setting; 'hpc-dask" in refusal(
        {}, {variable: "1"}
    )


@pytest.mark.parametrize("name", ["ROOT", "DIR", "HOME", "VERSION", "VENV", "BIN", "LIB", "BASE"])
def test_variables_of_environment_modules_and_scripts_are_left_alone(name: str) -> None:
    assert settled({}, {f"HPCDASK_{name}": "/opt/hpcdask", "PATH": "/bin"}).layers[1].found == {}


def test_two_names_of_one_setting_must_not_both_be_set() -> None:
    environ = {"HPCDASK_COMM_COMPRESSION": "lz4", "HPCDASK_COMM__COMPRESSION": "zstd"}
    assert "comm.compression is set twice: HPCDASK_COMM_COMPRESSION and" in refusal({}, environ)


def test_an_unreadable_value_is_named_with_its_variable() -> None:
    text = refusal({}, {"HPCDASK_COMM_COMPRESSION": "foo"})
    assert text == (
        "HPCDASK_COMM_COMPRESSION: 'foo' is no compression; set auto, lz4, zstd or none"
    )
