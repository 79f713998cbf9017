"""The test's end of `chaos_client.py`: a user's program in a process, and talking to it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import Home

HERE = Path(__file__).parent


class SilentError(AssertionError):
    """A program did not answer in time."""


class ProgramError(AssertionError):
    """A program could not do what it was ordered to."""


class ClientProgram:
    """A running client; `where` makes the command that runs a command on its host."""

    def __init__(
        self,
        home: Home,
        scheduler_file: Path,
        name: str,
        where: Callable[..., tuple[str, ...]] = lambda *command: command,
    ) -> None:
        self.name = name
        self.is_ready = False  # has answered ever
        flaky = home.folder / "flaky"
        flaky.mkdir(exist_ok=True)
        script = (sys.executable, HERE / "chaos_client.py", scheduler_file, name, flaky)
        self._stderr = home.folder / f"{name}.err"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                where(*map(os.fspath, script)),
                cwd=home.folder,
                env=home.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"reads {name}")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    @property
    def err(self) -> str:
        """All that it has printed to stderr."""
        return self._stderr.read_text(errors="replace")

    def order(self, order: str, **what: Any) -> None:
        """Tell it what to do."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its answer will be that it has ended
            self.process.stdin.write(json.dumps({"order": order, **what}) + "\n")
            self.process.stdin.flush()

    def answer(self, timeout: float) -> Any:
        """Wait for the answer to the oldest order.

        Raises
        ------
        SilentError
            If it does not come, or the program has ended.
        ProgramError
            If it is an error's traceback.
        """
        try:
            line = self._answers.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            raise SilentError(f"{self.name} gave no answer within {timeout:.1f} s") from None
        if line is None:
            self._answers.put(None)
            code = self.process.wait(10)
            raise SilentError(f"{self.name} ended with code {code}:\n{self.err}")
        self.is_ready = True
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise ProgramError(f"{self.name}: {answer['error']}")
        return answer

    @property
    def has_answered(self) -> bool:
        """Whether `answer` would not wait."""
        return not self._answers.empty()

    def ask(self, order: str, timeout: float = 15.0) -> Any:
        """Give an order, drop answers to orders that nobody waited for, and return its answer."""
        while self.has_answered:
            with contextlib.suppress(ProgramError):
                self.answer(0)
        self.order(order)
        return self.answer(timeout)

    def kill(self) -> None:
        """As a batch system does, or a user."""
        self.process.kill()
        self._end()

    def close(self, timeout: float = 30.0) -> int:
        """Let it end as programs do, and return its exit code."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        deadline = time.monotonic() + timeout
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._end()

    def _end(self) -> int:
        code = self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return code
