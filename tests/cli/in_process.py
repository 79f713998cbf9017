"""Running commands in the process of the tests: those that only look, print or refuse.

A new interpreter for each takes longer than all that they do.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from commands import Home

from hpcdask import logs
from hpcdask.cli import options
from hpcdask.cli.main import main
from hpcdask.config import files
from hpcdask.launchers import process


class Finished(NamedTuple):
    """A command that has ended, to be asked as one that ran in a process of its own."""

    exit_code: int
    out: str
    err: str

    def code(self) -> int:
        """Its exit code."""
        return self.exit_code


def run_here(home: Home, *words: str | os.PathLike[str], **env: str) -> Finished:
    """Run ``hpc-dask ...`` as that user would, in this process; it may not start any service."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _as_user(home.env | env),
        logging_as_before(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        patch.chdir(home.folder)
        patch.setattr(sys, "path", sys.path[:])
        patch.setattr(process, "serve", _must_not_serve)
        patch.setattr(options, "_exit", sys.exit)  # which might end this process by force
        main.main(list(map(os.fspath, words)), prog_name="hpc-dask")
    code = caught.value.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), err.getvalue())


async def _must_not_serve(*args: Any, **kwargs: Any) -> None:
    pytest.fail("the command was about to start something")


@contextlib.contextmanager
def _as_user(environ: dict[str, str]) -> Iterator[None]:
    """Let this process have another environment, and read the files anew that it names."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environ)
        files.forget()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        files.forget()


@contextlib.contextmanager
def logging_as_before() -> Iterator[None]:
    """Undo what a command does to the log of its process."""
    logger = logging.getLogger("hpcdask")
    before = logger.handlers[:], logger.propagate, logs._recent
    level = logger.level
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate, logs._recent = before
        logger.setLevel(level)
