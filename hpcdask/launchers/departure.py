"""Leaving before the batch job ends: when, and all services of this process at the same time."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence

from hpcdask import walltime
from hpcdask.service import Service
from hpcdask.threads import in_thread
from hpcdask.walltime import JobEnd

log = logging.getLogger("hpcdask.process")

#: Longest default of the margin, in seconds, and its part of what is left at the start.
_MAX_MARGIN, _PART = 120.0, 1 / 20
#: Workers leave at different times, so that they need not all hand over at once, and to others that
#: are about to leave as well: over so much of the margin, before it begins.
_STAGGER = 0.5
#: Seconds before the end of the job at which what still hands over gives up, to end cleanly.
_RESERVE = 3.0
#: Seconds that the batch system may take to answer, and over which the questions of many jobs that
#: start at the same time are spread.
_PATIENCE, _SPREAD = 10.0, 5.0
#: Seconds by which the end must be later than expected to count as moved.
_MOVED = 10.0


def leads(left: float, margin: float | None, drain_timeout: float) -> tuple[float, float]:
    """Seconds before the end of a job at which the first worker leaves, and the last.

    Parameters
    ----------
    left : float
        Seconds until the job ends; more than half of it is never given away.
    margin : float, optional
        That of the last; by default as long as draining may take, or a part of what is left.
    drain_timeout : float
        Seconds that draining may take.

    Examples
    --------
    >>> leads(3600.0, None, 30.0)
    (180.0, 120.0)
    """
    if margin is None:
        margin = max(drain_timeout, min(left * _PART, _MAX_MARGIN))
    first = min(margin * (1 + _STAGGER), left / 2)
    return first, first / (1 + _STAGGER)


def departure(left: float, margin: float | None, drain_timeout: float, draw: float) -> float:
    """In how many seconds to leave.

    Parameters
    ----------
    left, margin, drain_timeout
        As of `leads`.
    draw : float
        A random number from 0 to 1: a worker's place between the last and the first.
    """
    first, last = leads(left, margin, drain_timeout)
    return max(left - last - draw * (first - last), 0.0)


async def leave_in_time(
    services: Sequence[Service], limit: float | None, margin: float | None, drain_timeout: float
) -> None:
    """Let services leave before the batch job ends that this process is part of, if it is.

    Parameters
    ----------
    limit : float, optional
        Seconds that the job may run, as the user says.
    margin, drain_timeout
        As of `leads`; a margin of 0 is to stay.
    """
    if margin == 0.0:
        return
    end = await _find_end(limit, _PATIENCE, is_first=True)
    draw = random.random()
    while end is not None:
        last = time.monotonic() + end.left
        seconds = departure(end.left, margin, drain_timeout, draw)
        times = (_clock(end.left), end.source, _clock(seconds))
        log.info("the job ends at %s (%s): leaving at %s", *times)
        await asyncio.sleep(seconds)
        # It may have been given more time, or have been suspended.
        patience = min(_PATIENCE, max(last - time.monotonic(), 1.0) / 3)
        end = await _find_end(limit, patience, is_first=False)
        left = last - time.monotonic()
        if end is None or end.left < left + _MOVED:
            reason = f"its job ends at {_clock(left)}"
            log.info("leaving: %s", reason)
            if left > 0:
                most = max(left - _RESERVE, left / 2)
            else:  # it may be in overtime
                most = drain_timeout
            await asyncio.gather(*(s.leave(reason, limit=most, waits=True) for s in services))
            return


async def _find_end(limit: float | None, patience: float, is_first: bool) -> JobEnd | None:
    """When the job ends: what the user says, or what the system says, whichever comes first.

    The environment tells at the start; later it may be out of date, and the system is asked.
    """
    asked, environ = walltime.question(os.environ), os.environ
    known = None
    if is_first:
        known = walltime.told_by_environment(environ, walltime.age_of_job(environ), time.time())
    if known is None and asked is not None:
        if is_first:
            await asyncio.sleep(random.uniform(0.0, _SPREAD))
        answer = await in_thread(walltime.ask, asked, walltime.age_of_job(environ), patience)
        if isinstance(answer, JobEnd):
            known = answer
        else:
            log.info("the batch system does not tell when this job ends: %s", answer)
    ends = [] if known is None else [known]
    if limit is not None:
        ends.append(JobEnd(limit - walltime.age_of_job(environ), "--walltime"))
    return min(ends, key=lambda end: end.left, default=None)


def _clock(seconds: float) -> str:
    """The time of day in so many seconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + seconds))
