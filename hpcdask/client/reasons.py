"""Why futures are still pending, for the errors of waits that took too long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hpcdask.client.loop import CarriedError
from hpcdask.errors import HpcdaskError
from hpcdask.messages.client import Inspect

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection
    from hpcdask.client.future import FutureState

#: Keys that the scheduler is asked about at most.
_ASKED = 100
#: The answer may add so much to a wait: a share of it, and seconds.
_SHARE, _LIMIT = 0.1, 0.5


async def why_pending(client: Connection, states: Iterable[FutureState], waited: float) -> str:
    """Ask the scheduler, for a moment, for a task among `states` that no worker may run.

    Parameters
    ----------
    waited : float
        Seconds that the wait took, of which the answer may take a tenth.

    Returns
    -------
    str
        To append to the error's text; empty if nothing is known.
    """
    keys = tuple([state.key for state in states if state.status == "pending"][:_ASKED])
    limit = min(_SHARE * waited, _LIMIT)
    if not keys or limit <= 0:
        return ""
    try:
        answer = await asyncio.wait_for(client._ask(Inspect, "no-worker", keys), limit)
    except (CarriedError, HpcdaskError, asyncio.TimeoutError):
        return ""  # the wait's own error says enough
    return next((f"; {key} cannot run: {reason}" for key, reason in answer.value.items()), "")
