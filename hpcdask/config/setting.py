"""What one line of the schema says, and how a value for it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcdask.config.kinds import REFUSED, Kind, is_null
from hpcdask.errors import ConfigError

PREFIX = "HPCDASK_"


@dataclass(frozen=True)
class Setting:
    """One line of the schema.

    Parameters
    ----------
    key : str
        Its place in the hierarchy, as in "scheduler.worker-ttl".
    kind : Kind
        What it may be.
    default : object
        As somebody would write it. With None, null is a value like any other.
    doc : str
        What it means, in one line.
    behind : str
        The parameters that it is the default of.
    options : tuple of str
        The commands' options that it is the default of, as in "worker --nthreads"; "mpirun" stands
        for ``hpc-dask`` itself and ``hpc-dask run``, a word in capitals for an argument. An option
        that several settings share, as one for each role, is left to the components.
    is_preset : bool
        False where the component alone knows when it counts, and options only refer to it.
    variables : tuple of str
        Further names that it has in the environment.
    """

    key: str
    kind: Kind
    default: Any
    doc: str
    behind: str = ""
    options: tuple[str, ...] = ()
    is_preset: bool = True
    variables: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """Its name in the environment, as dask would spell it."""
        return PREFIX + self.key.replace(".", "__").replace("-", "_").upper()

    def read(self, raw: Any) -> Any:
        """The value that `raw` stands for.

        Raises
        ------
        ConfigError
            If it stands for none.
        """
        if not is_null(raw):
            return self.kind.read(raw)
        if self.default is None:
            return None
        if self.kind.null is REFUSED:
            raise ConfigError(f"{raw!r} is nothing, and it needs a {self.kind.name}")
        return self.kind.null
