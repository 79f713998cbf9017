"""Reading the answers of batch systems: what several of them write alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple

from hpcdask.errors import StatusError
from hpcdask.jobqueue.status import Answer, End, JobStatus


def no_listing(title: str, answer: Answer, why: str = "") -> StatusError:
    """The error that says that an answer is no complete listing, with the system's own words."""
    words = answer.err.strip() or answer.out.strip()
    what = why or (f"exit code {answer.code}" if answer.code else "not what was asked for")
    said = f": {words[-500:]}" if words else ""
    return StatusError(f"{title} gave no complete listing of jobs ({what}){said}")


def complete(title: str, answer: Answer) -> str:
    """What was printed.

    Raises
    ------
    StatusError
        If the command has failed.
    """
    if answer.code != 0:
        raise no_listing(title, answer)
    return answer.out


Parser = Callable[[Any, Answer], dict[str, JobStatus]]


def reads(parse: Parser) -> Parser:
    """Make a `StatusError` of whatever a parser stumbles over: a word for a number, half a line."""

    @wraps(parse)
    def read(system: Any, answer: Answer) -> dict[str, JobStatus]:
        try:
            return parse(system, answer)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise no_listing(system.title, answer, f"it is written otherwise: {error}") from error

    return read


# ---------------------------------------------------------------- ends


class Exit(NamedTuple):
    """What a job has left: an exit code, or the signal that killed it; neither if it never ran."""

    code: int | None = None
    signal: int | None = None

    @property
    def end(self) -> End:
        """How a job has ended of which nothing else is known."""
        return End.COMPLETED if self == (0, None) else End.FAILED


def of_wait_status(status: int) -> Exit:
    """What wait(2) gives: 256 times the exit code, plus the signal."""
    signal = status & 127
    return Exit(None, signal) if signal else Exit(status >> 8)


def of_shell_code(code: int) -> Exit:
    """An exit code as shells give it: 128 + n of who died of signal n."""
    return Exit(None, code - 128) if 128 < code <= 128 + 64 else Exit(code)


def in_words(*parts: str) -> str:
    """Words of a system for an end, one behind the other, without those that say nothing."""
    return ", ".join(part for part in parts if part and part.lower() not in ("none", "0:0"))


# ---------------------------------------------------------------- times and numbers


def seconds(clock: str) -> float | None:
    """Seconds in ``1-02:03:04``, ``2:03:04``, ``3:04``; None of other words, as ``UNLIMITED``."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", clock.strip())
    if match is None:
        return None
    days, hours, minutes, secs = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + secs)


def indices(text: str) -> Iterator[int]:
    """Numbers in ``1,3-5,8-12:2``, as array jobs have them; what follows a % is left out."""
    for first, last, step in re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", text.partition("%")[0]):
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def ranges(numbers: Iterable[int]) -> str:
    """The reverse of `indices`: ``1,3-5``."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
