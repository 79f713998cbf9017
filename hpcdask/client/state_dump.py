"""`Client.dump_cluster_state`: what scheduler and workers know, as plain data in a file."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgpack

if TYPE_CHECKING:
    from hpcdask.client.diagnostics import Diagnostics

Format = Literal["msgpack", "yaml"]


class Target(NamedTuple):
    """Where a dump goes."""

    path: str  # or a URL; without its ending
    format: Format
    exclude: tuple[str, ...]  # keys to leave out, at any depth
    options: dict[str, Any]  # for fsspec

    def write(self, state: dict[str, Any]) -> None:
        """Write plain data."""
        state = _without(state, frozenset(self.exclude))
        if self.format == "yaml":
            import yaml

            data = yaml.safe_dump(state, sort_keys=False).encode()
        else:
            data = gzip.compress(msgpack.packb(state))
        path = self.path + self._ending
        if "://" in path:
            import fsspec

            with fsspec.open(path, "wb", **self.options) as file:
                file.write(data)
        else:
            with open(path, "wb") as file:
                file.write(data)

    @property
    def _ending(self) -> str:
        ending = ".yaml" if self.format == "yaml" else ".msgpack.gz"
        return "" if self.path.endswith(ending) else ending

    def check(self) -> None:
        """Say what is wrong with it before anything is asked.

        Raises
        ------
        ValueError, TypeError, ImportError
        """
        if self.format not in ("msgpack", "yaml"):
            raise ValueError(f"format must be 'msgpack' or 'yaml', not {self.format!r}")
        if self.format == "yaml":
            import yaml  # noqa: F401 - else it fails here, not after all work
        if "://" in self.path:
            import fsspec  # noqa: F401
        elif self.options:
            raise TypeError(
                f"{sorted(self.options)[0]}= is an option for URLs; {self.path} is none"
            )


async def dump(client: Diagnostics, target: Target, write_from_scheduler: bool | None) -> None:
    """Ask scheduler and workers for all they know, and have it written."""
    from hpcdask import inspection, versions

    is_for_scheduler = (
        "://" in target.path if write_from_scheduler is None else write_from_scheduler
    )
    if not is_for_scheduler:
        target.check()
    workers = await client._on_workers(inspection.dump)
    about = {
        "client": versions.versions(),
        "scheduler": await client._on_scheduler(versions.versions, ()),
        "workers": await client._on_workers(versions.versions),
    }
    if is_for_scheduler:
        where = (
            target if "://" in target.path else target._replace(path=os.path.abspath(target.path))
        )
        await client._on_scheduler(_write, (where, workers, about))
    else:
        scheduler = await client._on_scheduler(scheduler_state, ())
        target.write({"scheduler": scheduler, "workers": workers, "versions": about})


def _write(
    target: Target, workers: dict[str, Any], about: dict[str, Any], dask_scheduler: Any
) -> None:
    """On the scheduler."""
    target.check()
    state = scheduler_state(dask_scheduler)
    target.write({"scheduler": state, "workers": workers, "versions": about})


def scheduler_state(dask_scheduler: Any) -> dict[str, Any]:
    """The scheduler's state as plain data."""
    from hpcdask.snapshots import task_record

    state = dask_scheduler.state
    return {
        **dask_scheduler.identity(),
        "clients": {name: len(client.wants) for name, client in state.clients.items()},
        "tasks": {key: task_record(task) for key, task in state.tasks.items()},
        "unrunnable": state.why_not_running(),
    }


def _without(value: Any, names: frozenset[str]) -> Any:
    """Plain data without some keys of its dicts."""
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    if isinstance(value, (list, tuple)):
        return [_without(item, names) for item in value]
    return value
