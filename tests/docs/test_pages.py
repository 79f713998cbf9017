"""The documentation has no command that the tests could not run."""

from __future__ import annotations

import pytest
from pages import PAGES, kind_of

COMMANDS = [(b.where, c) for page in PAGES.values() for b in page for c in b.commands]


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_each_command_is_of_a_known_kind(where, command):
    assert kind_of(command)


def test_a_command_of_another_kind_is_refused_with_what_to_do():
    with pytest.raises(AssertionError, match="give it a kind in KINDS"):
        kind_of("mpirun -np N hpc-dask [OPTIONS]")
