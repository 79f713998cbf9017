"""`get_task_stream`: which tasks ran where and when, within a ``with`` block."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from hpcdask.client.client import Client
from hpcdask.client.current import default_client
from hpcdask.client.figures import Figure, task_stream


class get_task_stream:
    """Collect what runs within a ``with`` block, or ``async with`` for an asynchronous client.

    Parameters
    ----------
    client : Client, optional
        By default the current one.
    plot : bool or "save"
        Whether to make a figure; with "save" it is written to `filename`, as HTML.
    filename : path

    Attributes
    ----------
    data : list of dict
        As of `Client.get_task_stream`, when the block has ended.
    figure : hpcdask.client.figures.Figure or None

    Examples
    --------
    >>> with get_task_stream() as stream:
    ...     _ = client.submit(abs, -1).result(timeout=10)
    >>> [run["name"] for run in stream.data]
    ['abs']
    """

    def __init__(
        self,
        client: Client | None = None,
        plot: bool | str = False,
        filename: str | os.PathLike[str] = "task-stream.html",
    ) -> None:
        self.client = client or default_client()
        self.data: list[dict[str, Any]] = []
        self.figure: Figure | None = None
        self._plot, self._filename = plot, filename
        self._start = 0.0

    def __enter__(self) -> get_task_stream:
        # The scheduler's clock may be another host's: what it has by now is not ours.
        before = self.client.get_task_stream(count=1)
        self._start = _last(before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._collect(self.client.get_task_stream(start=self._start))

    async def __aenter__(self) -> get_task_stream:
        self._start = _last(await self.client.get_task_stream(count=1))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._collect(await self.client.get_task_stream(start=self._start))

    def _collect(self, runs: list[dict[str, Any]]) -> None:
        self.data = [run for run in runs if run["startstops"][0]["stop"] > self._start]
        if self._plot:
            self.figure = task_stream(self.data)
            if self._plot == "save":
                self.figure.save(self._filename)


def _last(runs: list[dict[str, Any]]) -> float:
    """When the last of these had ended, by the scheduler's clock."""
    return max((run["startstops"][0]["stop"] for run in runs), default=0.0)
