"""The systems that are compared: which module each one imports and under which environment."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class System:
    """One column of the table."""

    name: str
    module: str  # has Client and LocalCluster; concurrent.futures for the pool
    settings: dict[str, str] = field(default_factory=dict)  # environment variables

    def environ(self) -> dict[str, str]:
        """Environment of a measurement: the caller's without its dask settings, plus our own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
        # Workers are fresh interpreters and must find `benchmarks` (and a hpcdask not installed).
        paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
        return inherited | {"PYTHONPATH": os.pathsep.join(paths)} | self.settings


POOL = "ProcessPoolExecutor"

SYSTEMS = {
    system.name: system
    for system in (
        System("distributed", "distributed"),
        System(
            "tuned",
            "distributed",
            {
                "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "uvloop",
                "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf",
                "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
                "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
                "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "False",
            },
        ),
        System("hpcdask", "hpcdask"),
        System(POOL, "concurrent.futures"),
    )
}


def chosen(names: str | None, known: Mapping[str, object]) -> Iterator[str]:
    """The comma-separated `names`, or all that are `known`.

    Raises
    ------
    ValueError
        If a name is not known.
    """
    for name in names.split(",") if names else known:
        if name not in known:
            raise ValueError(f"no {name!r} here; choose from {', '.join(known)}")
        yield name
