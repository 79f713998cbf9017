"""What the table consists of: rows of work, the figures they yield and the targets of these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType

from .systems import POOL

Series = dict[str, list[float]]
#: Does the work on the module under test (`distributed` or `hpcdask`: the same code runs on both)
#: and returns its raw series, ``{name: values}``.
Measure = Callable[[ModuleType], Series]
#: Medians over the rounds of all series of a row: ``{series: {system: value}}``.
Medians = Mapping[str, Mapping[str, float]]

PEERS = ("distributed", "tuned")


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


@dataclass(frozen=True)
class Target:
    """`factor` times what each system in `of` reaches, plus `plus`; without systems, `factor`.

    Parameters
    ----------
    series : str
        Of the same row, to be compared with; by default the figure's own.
    """

    factor: float
    of: tuple[str, ...] = ()
    series: str = ""
    plus: float = 0.0

    def limits(self, own: Mapping[str, float], row: Medians) -> list[float | None]:
        """The numbers to reach; None where a system was not measured."""
        if not self.of:
            return [self.factor]
        found = row.get(self.series, {}) if self.series else own
        return [
            self.factor * found[name] + self.plus if name in found else None for name in self.of
        ]

    def __str__(self) -> str:
        if not self.of:
            return f"{self.factor:g}"
        factor = f"{self.factor:g}" if self.factor >= 0.5 else f"1/{1 / self.factor:g}"
        what = self.series or " and ".join(self.of)
        return f"{factor} x {what}" + (f" + {self.plus:g}" if self.plus else "")


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    must, aim : tuple of Target
        What has to be reached, and what is worked towards.
    recorded : mapping of str to float
        Figures of systems that cannot be measured here, as measured once elsewhere.
    """

    label: str
    series: str
    unit: str
    reduce: Callable[[list[float]], float] = median
    is_more_better: bool = False
    must: tuple[Target, ...] = ()
    aim: tuple[Target, ...] = ()
    recorded: Mapping[str, float] = field(default_factory=dict)

    def meets(
        self, targets: tuple[Target, ...], own: Mapping[str, float], row: Medians
    ) -> bool | None:
        """Whether hpcdask reaches all `targets`; None if a number for the answer is missing."""
        value = own.get("hpcdask")
        limits = [limit for target in targets for limit in target.limits(own, row)]
        if value is None or not limits or None in limits:
            return None
        sign = 1 if self.is_more_better else -1
        return all(sign * value >= sign * limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class Row:
    """Work to measure: `measure` runs on modules with distributed's API, `pool` on the pool.

    Parameters
    ----------
    rounds : int, optional
        At most so many, for what takes minutes and hardly varies.
    without : tuple of str
        Systems that cannot do it here, or would take an hour.
    """

    figures: tuple[Figure, ...]
    measure: Measure
    pool: Measure | None = None
    rounds: int | None = None
    without: tuple[str, ...] = ()

    def measure_for(self, system: str) -> Measure | None:
        """What to run for `system`; None where the comparison means nothing."""
        if system in self.without:
            return None
        return self.pool if system == POOL else self.measure


def throughput(label: str, must: tuple[Target, ...], aim: tuple[Target, ...]) -> tuple[Figure, ...]:
    """The figure of rows whose series is tasks per second."""
    return (Figure(label, "tasks_per_s", "tasks/s", is_more_better=True, must=must, aim=aim),)
