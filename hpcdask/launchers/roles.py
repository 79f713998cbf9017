"""Which rank does what."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdask.errors import ConfigError


@dataclass(frozen=True)
class Roles:
    """What each rank of a launch does.

    Parameters
    ----------
    size : int
        Number of ranks.
    scheduler : int or None
        Rank of the scheduler, if it is one of these ranks.
    client : int or None
        Rank of the client, if that has one of its own.
    exclusive : bool, optional
        Whether these two ranks have no workers. By default so, if others are left.
    nworkers : int
        Workers of each rank that has any.

    Raises
    ------
    ConfigError
        If a rank does not exist, or none is left for workers.

    Examples
    --------
    >>> Roles(4, scheduler=0, client=1).workers_of(1), Roles(2, 0, 1).workers_of(1)
    (0, 1)
    """

    size: int
    scheduler: int | None = 0
    client: int | None = None
    exclusive: bool | None = None
    nworkers: int = 1

    def __post_init__(self) -> None:
        for role in ("scheduler", "client"):
            rank = getattr(self, role)
            if rank is not None and not 0 <= rank < self.size:
                raise ConfigError(
                    f"rank {rank} cannot be the {role}: there are {self.size} ranks, from 0. "
                    f"Start at least {rank + 1} with mpirun -np or srun -n"
                )
        if self.exclusive and self._busy >= set(range(self.size)):
            raise ConfigError(
                f"{_ranks(self.size)} too few for exclusive workers: scheduler and client take "
                f"{len(self._busy)}. Start at least {len(self._busy) + 1}, or let workers share "
                "their rank with --inclusive-workers"
            )

    @property
    def _busy(self) -> set[int]:
        return {rank for rank in (self.scheduler, self.client) if rank is not None}

    def workers_of(self, rank: int) -> int:
        """How many workers a rank has."""
        busy = self._busy if self.exclusive or self.exclusive is None else set()
        if rank not in busy:
            return self.nworkers
        if len(busy) < self.size:
            return 0
        # All are busy: the client waits most of the time, the scheduler does not.
        return self.nworkers if rank == self._idlest else 0

    @property
    def _idlest(self) -> int | None:
        return self.scheduler if self.client is None else self.client

    @property
    def n_workers(self) -> int:
        """Of all ranks together."""
        return sum(map(self.workers_of, range(self.size)))

    @property
    def in_words(self) -> str:
        """Who does what, in short."""
        parts = [
            f"{name} on rank {rank}"
            for name, rank in (("scheduler", self.scheduler), ("client", self.client))
            if rank is not None
        ]
        n = self.n_workers
        return ", ".join([*parts, "1 worker" if n == 1 else f"{n} workers"])

    def of(self, rank: int) -> str:
        """In words, as in a table."""
        words = [name for name in ("scheduler", "client") if getattr(self, name) == rank]
        n = self.workers_of(rank)
        if n:
            words.append("worker" if n == 1 else f"{n} workers")
        return " + ".join(words)


def _ranks(n: int) -> str:
    return "1 rank is" if n == 1 else f"{n} ranks are"
