"""What a controller asks for: small records that somebody carries out and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Submit:
    """Submit an array of `count` jobs.

    Answer with `submitted`, `submit_failed` if it is sure that there is no such job, or
    `submit_unclear` if there may be one.
    """

    request: int
    pool: str
    count: int


@dataclass(frozen=True)
class Find:
    """Look whether jobs of this very submission are in the queue; answer with `found`.

    If the look fails there is nothing to answer: it is asked for again.
    """

    request: int
    pool: str
    count: int


@dataclass(frozen=True)
class Cancel:
    """Cancel these jobs; nothing has to be answered, the next listing tells."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Retire:
    """Let workers of a job hand over and end; answer with `retired`, also if they could not."""

    id: str
    workers: tuple[str, ...]


@dataclass(frozen=True)
class AskEnds:
    """Ask how these ended, which the queue no longer lists; answer with `ends_known`.

    If the command fails there is nothing to answer: it is asked for again.
    """

    ids: tuple[str, ...]


Action: TypeAlias = Submit | Find | Cancel | Retire | AskEnds
