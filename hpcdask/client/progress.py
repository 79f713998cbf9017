"""`progress`: a bar that shows how much of the work for some futures is done."""

from __future__ import annotations

import asyncio
import html
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from hpcdask import host as hosts
from hpcdask.client.client import Client
from hpcdask.client.collecting import refuse_others
from hpcdask.client.future import Future, FutureState, until_done
from hpcdask.client.waiting import futures_of
from hpcdask.messages.client import CountLeft

#: The scheduler may be kept busy with counting for one part in so many of the time.
_SHARE = 20


class Count:
    """How much there is to do and has been done, by the name of a function.

    Parameters
    ----------
    at_least : int
        How much there is: as many as futures, of which some may be done at the first look.
    """

    def __init__(self, at_least: int = 0) -> None:
        self._at_least = at_least
        self.total: Counter[str] = Counter()
        self.left: Counter[str] = Counter()

    def update(self, left: Mapping[str, int]) -> None:
        """So many are left. What was lost and is computed again is left once more."""
        self.left = Counter(left)
        for name, count in self.left.items():
            self.total[name] = max(self.total[name], count)

    @property
    def n_all(self) -> int:
        """How much there is."""
        return max(self.total.total(), self._at_least)

    @property
    def n_done(self) -> int:
        """How much of it is done."""
        return self.n_all - self.left.total()

    def done(self, name: str) -> tuple[int, int]:
        """How many of how many."""
        return self.total[name] - self.left[name], self.total[name]


def progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    interval: float | str = 0.1,
    width: int = 40,
    file: TextIO | None = None,
) -> Any:
    """Show how much of the work for futures is done, that for their inputs included.

    In a terminal it returns when all are done, however they end; Ctrl-C only ends the bar. In a
    notebook it returns at once, and the bar goes on.

    Parameters
    ----------
    *futures : future, or nested lists, tuples, sets and dicts of them
    notebook : bool, optional
        Whether to show it as notebooks do. By default if this is one.
    multi : bool
        In a notebook: a bar for each function.
    complete : bool
        In a notebook: whether the bar stays when all is done.
    interval : float or str
        Seconds between two looks.
    width : int
        Characters of the bar in a terminal.
    file : text file, optional
        Where to write, in a terminal; by default standard output. If it is none, one line is
        written at the end.

    Returns
    -------
    None
        With an asynchronous client, an awaitable that ends with the bar.

    Raises
    ------
    TypeError
        If there is something else than futures.

    Examples
    --------
    >>> progress(client.map(abs, range(10)))                                # doctest: +SKIP
    [########################################] | 100% | 10/10 |  0.1s
    """
    refuse_others(futures)
    found = futures_of(futures)
    if not found:
        return None
    client: Client = found[0].client
    seconds = hosts.parse_timedelta(interval)
    if _is_notebook() if notebook is None else notebook:
        return _show_in_notebook(client, found, seconds, multi, complete)
    bar = TextBar(sys.stdout if file is None else file, width)
    work = _follow(client, [future._state for future in found], seconds, bar.show)

    async def until_over() -> None:
        await work
        bar.end(found)

    if client.asynchronous:
        return until_over()
    try:
        client._sync(work)
    except KeyboardInterrupt:
        pass
    bar.end(found)
    return None


async def _follow(
    client: Client, states: list[FutureState], interval: float, show: Callable[[Count], None]
) -> None:
    """Ask again and again what is left, until all futures are done."""
    count = Count(len(states))
    keys = tuple([state.key for state in states])
    while True:
        is_over = all([state.status != "pending" for state in states])
        start = time.monotonic()
        count.update({} if is_over else (await client._ask(CountLeft, keys)).value)
        show(count)
        if is_over:
            return
        pause = max(interval, _SHARE * (time.monotonic() - start))
        try:
            await asyncio.wait_for(until_done(states), pause)
        except asyncio.TimeoutError:
            pass


class TextBar:
    """A bar in a terminal; in a file only the last line of it."""

    def __init__(self, file: TextIO, width: int) -> None:
        self._file, self._width = file, width
        self._start = time.monotonic()
        self._is_terminal = file.isatty()
        self._line = ""

    def show(self, count: Count) -> None:
        """Draw it."""
        done, all_, width = count.n_done, count.n_all, self._width
        marks = "#" * (width * done // all_)
        seconds = time.monotonic() - self._start
        self._line = f"[{marks:<{width}}] | {done / all_:4.0%} | {done}/{all_} | {seconds:.1f}s"
        if self._is_terminal:
            self._file.write(f"\r{self._line}")
            self._file.flush()

    def end(self, futures: list[Future]) -> None:
        """Leave it, and say what has failed."""
        self._file.write("\n" if self._is_terminal else f"{self._line}\n")
        failed = [f for f in futures if f.status in ("error", "cancelled")]
        if failed:
            why = failed[0]._state.exception()
            self._file.write(f"{len(failed)} of {len(futures)} failed, {failed[0].key}: {why!r}\n")
        self._file.flush()


def _is_notebook() -> bool:
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and hasattr(running, "kernel")


def _show_in_notebook(
    client: Client, futures: list[Future], interval: float, multi: bool, complete: bool
) -> Any:
    from IPython.display import HTML, display

    shown = display(HTML(""), display_id=True)

    def show(count: Count) -> None:
        shown.update(HTML(as_html(count, multi)))

    async def work() -> None:
        await _follow(client, [future._state for future in futures], interval, show)
        if not complete:
            shown.update(HTML(""))

    if client.asynchronous:
        return asyncio.ensure_future(work())
    threading.Thread(target=client._sync, args=(work(),), daemon=True).start()
    return None


def as_html(count: Count, multi: bool) -> str:
    """A bar for each function, or one for all."""
    rows = [(name, *count.done(name)) for name in sorted(count.total)] if multi else []
    rows = rows or [("all", count.n_done, count.n_all)]
    return "".join(
        f"<div><progress value='{done}' max='{of}'></progress> "
        f"{html.escape(name)}: {done} of {of}</div>"
        for name, done, of in rows
    )
