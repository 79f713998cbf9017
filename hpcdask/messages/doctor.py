"""Messages between rank 0 and the other ranks of one ``hpc-dask doctor``."""

from typing import Any, NamedTuple

from hpcdask.messages import Blob, Plain


class RegisterRank(NamedTuple):
    """rank -> rank 0: here I am, with what I know of my host. Answered as other registrations."""

    rank: int
    size: int  # of the launch, as this rank sees it
    protocol: int
    found: Plain  # as `hpcdask.doctor.facts.RankFacts`


class Examine(NamedTuple):
    """rank 0 -> rank, and rank -> rank: do this. Answered by `Examined`."""

    request: int
    what: str
    arguments: Plain
    load: Blob  # bytes that only weigh something


class Examined(NamedTuple):
    """The answer; with an error if it could not be done at all."""

    request: int
    found: Plain
    error: str


#: As of `hpcdask.messages`.
OPCODES: tuple[type[Any], ...] = (
    RegisterRank,
    Examine,
    Examined,
)
