"""Settings from the environment."""

from __future__ import annotations

import pytest

from hpcdask.comm.options import CommOptions
from hpcdask.config import COMM_VARIABLES, comm_settings
from hpcdask.errors import ConfigError


def test_sizes_and_times_are_read_with_their_units():
    environ = {"HPCDASK_COMM_MAX_MESSAGES": "64 MiB", "HPCDASK_COMM_HANDSHAKE_TIMEOUT": "200ms"}
    assert comm_settings(environ) == {"max_messages": 64 * 2**20, "handshake_timeout": 0.2}


def test_compression_can_be_switched_off():
    assert comm_settings({"HPCDASK_COMM_COMPRESSION": "none"}) == {"compression": None}


def test_an_unknown_compression_is_named_with_those_there_are():
    expected = "^HPCDASK_COMM_COMPRESSION: 'foo' is no compression; set auto, lz4, zstd or none$"
    with pytest.raises(ConfigError, match=expected):
        comm_settings({"HPCDASK_COMM_COMPRESSION": "foo"})


def test_a_misspelt_variable_is_named():
    with pytest.raises(ConfigError, match="HPCDASK_COMM_MAX_MESAGES"):
        comm_settings({"HPCDASK_COMM_MAX_MESAGES": "1 GiB"})


def test_an_unreadable_value_is_named_with_its_variable():
    with pytest.raises(ConfigError, match="HPCDASK_COMM_MAX_BUFFERS"):
        comm_settings({"HPCDASK_COMM_MAX_BUFFERS": "a lot"})


def test_other_variables_are_none_of_its_business():
    assert comm_settings({"HPCDASK_TOKEN_FILE": "/somewhere", "HOME": "/"}) == {}


def test_options_take_the_limits_from_the_environment(monkeypatch):
    monkeypatch.setenv("HPCDASK_COMM_MAX_MESSAGES", "1 MiB")
    options = CommOptions.from_environment(b"t" * 32)
    assert options.limits.section == 2**20
    assert options.limits.buffers > 2**30


def test_every_variable_is_documented():
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    assert all(variable in text for variable in COMM_VARIABLES)
