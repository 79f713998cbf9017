"""Reaching the scheduler: by address or by scheduler file, within a deadline, the right one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from hpcdask.comm import Comm, connect
from hpcdask.comm.addresses import parse_address
from hpcdask.comm.options import CommOptions
from hpcdask.errors import (
    CommClosedError,
    ConfigError,
    HandshakeError,
    LaunchError,
    RendezvousTimeoutError,
)
from hpcdask.messages import Message, Refused, Registered
from hpcdask.rendezvous import Contact, resolve_token, wait_for_contact

log = logging.getLogger("hpcdask.dialling")

#: Seconds given to one address of a scheduler file before the file is read again.
_ONE_TRY = 5.0


@dataclass(frozen=True)
class SchedulerPlace:
    """Where a scheduler is to be found, and with which token.

    Parameters
    ----------
    address : str, optional
        Its address; or
    scheduler_file : str, optional
        a file that holds it.
    token, token_file, auth
        As for `hpcdask.Scheduler`.
    """

    address: str | None = None
    scheduler_file: str | None = None
    token: bytes | str | None = None
    token_file: str | None = None
    auth: bool = True

    def options(self, contact: Contact | None = None) -> CommOptions:
        """Options for connections within that cluster."""
        if not self.auth:
            return CommOptions.from_environment(None)
        contact_token = None if contact is None else contact.token
        return CommOptions.from_environment(
            resolve_token(self.token, self.token_file, contact_token)
        )


#: Makes the registration message, given the scheduler's address and how to connect.
Hello = Callable[[str, CommOptions], Awaitable[Message]]


class Link(NamedTuple):
    """A connection to the scheduler that has been registered."""

    comm: Comm
    registered: Registered
    address: str  # of the scheduler
    options: CommOptions


async def reach_scheduler(place: SchedulerPlace, hello: Hello, timeout: float) -> Link:
    """Connect to the scheduler and register.

    Parameters
    ----------
    hello : async callable
        Makes the registration message, once the scheduler's address and the token are known.
    timeout : float
        Seconds for all of it.

    Raises
    ------
    CommClosedError
        If nobody answers at the address.
    RendezvousTimeoutError
        If the scheduler file does not appear, or what it says stays unreachable.
    AuthenticationError
        If the scheduler holds another token.
    LaunchError
        If the scheduler refuses us.
    """
    deadline = time.monotonic() + timeout
    if place.scheduler_file:
        return await _by_file(place, place.scheduler_file, hello, deadline, timeout)
    if not place.address:
        raise ConfigError(
            "no scheduler given: name its address, as in tcp://host:8786, or its --scheduler-file"
        )
    address = str(parse_address(place.address))
    return await _register(address, place.options(), hello, deadline)


async def _register(
    address: str, options: CommOptions, hello: Hello, deadline: float, was_there: bool = False
) -> Link:
    left = max(deadline - time.monotonic(), 0.05)
    comm = await connect(address, options, left, was_there=was_there)
    try:
        comm.send(await hello(address, options))
        left = max(deadline - time.monotonic(), 0.05)
        answer = await asyncio.wait_for(comm.receive(), left)
    except asyncio.TimeoutError:
        comm.close()
        raise CommClosedError(f"the scheduler at {address} accepts but does not answer") from None
    except BaseException:
        comm.close()
        raise
    if type(answer) is Refused:
        comm.close()
        raise LaunchError(f"the scheduler at {address} refuses: {answer.reason}")
    assert type(answer) is Registered
    return Link(comm, answer, address, options)


async def _by_file(
    place: SchedulerPlace,
    path: str,
    hello: Hello,
    deadline: float,
    timeout: float,
) -> Link:
    """Follow the file until what it says answers and proves to be who wrote it."""
    problem: Exception | None = None
    said = ""
    stale: set[str] = set()  # ids of schedulers whose address another one answers at
    while (left := deadline - time.monotonic()) > 0:
        try:
            contact = await wait_for_contact(path, left, stale=stale)
        except RendezvousTimeoutError:
            if problem is None:
                raise
            break
        try:
            one_try = min(deadline, time.monotonic() + _ONE_TRY)
            options = place.options(contact)
            # The file is written when the scheduler listens: who refuses is not there any more.
            link = await _register(contact.address, options, hello, one_try, was_there=True)
        except (CommClosedError, HandshakeError) as exc:
            problem = exc
        else:
            if link.registered.scheduler_id == contact.id:
                return link
            link.comm.close()
            stale.add(contact.id)
            problem = CommClosedError(f"another scheduler answers at {contact.address}")
        if said != str(problem):
            said = str(problem)
            log.warning("%s may be stale: %s; reading it again", path, said)
        await asyncio.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
    raise RendezvousTimeoutError(
        f"no scheduler within {timeout:g} s: {os.path.abspath(path)} is there, but {problem}. "
        "If it is left from an earlier run, remove it."
    ) from problem
