"""Reaching the scheduler: by address or by scheduler file, within a deadline, the right one."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from hpcdask import config, network
from hpcdask.comm import Comm, connect
from hpcdask.comm.addresses import parse_address
from hpcdask.comm.options import CommOptions
from hpcdask.errors import (
    CommClosedError,
    ConfigError,
    HandshakeError,
    LaunchError,
    RendezvousTimeoutError,
    TokenError,
)
from hpcdask.messages import Message, OutOfReach, Refused, Registered
from hpcdask.rendezvous import (
    Contact,
    SchedulerFileReader,
    ranks_like_us,
    resolve_token,
    wait_for_contact,
)

log = logging.getLogger("hpcdask.dialling")

#: Seconds given to one address where there is a scheduler file to be read (again) after it.
_ONE_TRY = 5.0
#: Seconds in which the scheduler of a scheduler file must answer to be taken for running.
_ONE_LOOK = 2.0
#: Seconds in which a scheduler must answer that has accepted a connection.
_ANSWER = 30.0
#: Of many ranks that start at once, a scheduler on a busy host lets in so many in a second.
_LET_IN_PER_SECOND = 200
#: Seconds that another try must have, to be worth while.
_SHORTEST_TRY = 1.0
#: Shortest and longest pause before a scheduler is looked for once more, in seconds.
_PAUSES = (0.1, 1.0)


@dataclass(frozen=True)
class SchedulerPlace:
    """Where a scheduler is to be found, and with which token.

    Parameters
    ----------
    address : str, optional
        Its address.
    scheduler_file : str, optional
        A file that holds it. Of both, the address is tried first, once.
    token, token_file, auth
        As for `hpcdask.Scheduler`.
    settings : hpcdask.config.Settings
        How to connect; by default as configured when this is made.
    """

    address: str | None = None
    scheduler_file: str | None = None
    token: bytes | str | None = field(default=None, repr=False)  # tracebacks show variables
    token_file: str | None = None
    auth: bool = True
    settings: config.Settings = field(default_factory=config.current, repr=False, compare=False)

    def options(self, contact: Contact | None = None) -> CommOptions:
        """Options for connections within that cluster."""
        if not self.auth:
            return CommOptions.configured(None, self.settings)
        contact_token = None if contact is None else contact.token
        token = resolve_token(
            self.token, self.token_file, contact_token, own_file=self.settings["token-file"]
        )
        return CommOptions.configured(token, self.settings)


class NotLetInError(CommClosedError):
    """The scheduler answers, but cannot reach us; whose file it is and where it is, is right."""


def host_and_port(scheduler: str | None, port: int | None) -> str | None:
    """The address of a scheduler that is given in two parts, as early programs do."""
    if scheduler is None or port is None:
        return scheduler
    return str(parse_address(scheduler, port)._replace(port=port))


#: Makes the registration message, given the scheduler's address and how to connect.
Hello = Callable[[str, CommOptions], Awaitable[Message]]


class Link(NamedTuple):
    """A connection to the scheduler that has been registered."""

    comm: Comm
    registered: Registered
    address: str  # of the scheduler
    options: CommOptions


async def reach_scheduler(
    place: SchedulerPlace, hello: Hello, timeout: float, say: Callable[[str], None] = log.info
) -> Link:
    """Connect to the scheduler and register.

    Parameters
    ----------
    hello : async callable
        Makes the registration message, once the scheduler's address and the token are known.
    timeout : float
        Seconds for all of it.
    say : callable
        Is told now and then that the scheduler file is waited for.

    Raises
    ------
    CommClosedError
        If nobody answers at the address, or the scheduler cannot reach us.
    RendezvousTimeoutError
        If the scheduler file does not appear, or what it says stays unreachable.
    AuthenticationError
        If the scheduler holds another token.
    LaunchError
        If the scheduler refuses us.
    """
    deadline = time.monotonic() + timeout
    if not place.address and not place.scheduler_file:
        raise ConfigError(
            "no scheduler given: name its address, as in tcp://host:8786, or its --scheduler-file"
        )
    if place.address:
        address = str(parse_address(place.address))
        if not place.scheduler_file:
            return await _register(address, place.options(), hello, deadline)
        try:
            return await _register(address, place.options(), hello, deadline, _ONE_TRY)
        except NotLetInError:
            raise
        except (CommClosedError, HandshakeError) as exc:
            log.info("%s; reading %s", exc, place.scheduler_file)
    assert place.scheduler_file is not None
    return await _by_file(place, place.scheduler_file, hello, deadline, timeout, say)


async def reach_scheduler_again(place: SchedulerPlace, hello: Hello, timeout: float) -> Link:
    """As `reach_scheduler`, for a scheduler that was lost: whatever goes wrong is tried again.

    It may be starting anew, or only the way to it may be broken for a while.

    Raises
    ------
    LaunchError
        If the scheduler refuses us.
    HpcdaskError, OSError
        What went wrong last, when the time is over.
    """
    deadline = time.monotonic() + timeout
    for pause in pauses():
        # First of all, since all who have lost it begin at the same moment.
        await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        try:
            return await reach_scheduler(place, hello, max(deadline - time.monotonic(), 0.1))
        except (CommClosedError, HandshakeError, RendezvousTimeoutError) as exc:
            if time.monotonic() >= deadline:
                raise
            log.debug("not yet: %s", exc)
    raise AssertionError("unreachable")


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: ever longer, with jitter to keep processes apart."""
    longest, limit = _PAUSES
    while True:
        yield longest * random.uniform(0.5, 1.0)
        longest = min(2 * longest, limit)


async def _register(
    address: str,
    options: CommOptions,
    hello: Hello,
    deadline: float,
    one_try: float | None = None,
) -> Link:
    """Connect and register, however often it takes while the scheduler may yet agree.

    Parameters
    ----------
    one_try : float, optional
        Seconds to connect, where the scheduler is known to have been there. By default it is
        waited for.
    """
    told = ""
    # With as many others who come at the same time it may take longer until it is our turn.
    queue = ranks_like_us() / _LET_IN_PER_SECOND
    patient = replace(options, handshake_timeout=options.handshake_timeout + queue)
    for pause in pauses():
        left = max(deadline - time.monotonic(), 0.05)
        if one_try is None:
            comm = await connect(address, patient, left, report=partial(_report, address))
        else:
            comm = await connect(address, patient, min(left, one_try + queue), was_there=True)
        answer = await _introduced(comm, address, options, hello, deadline)
        if type(answer) is Registered:
            return Link(comm, answer, address, options)
        comm.close()
        if type(answer) is Refused:
            raise LaunchError(f"the scheduler at {address} refuses: {answer.reason}")
        assert type(answer) is OutOfReach
        if answer.reason != told:  # once, not at every try
            told = answer.reason
            left = deadline - time.monotonic()
            log.warning("not let in yet: %s; trying for %.0f s more", told, left)
        if deadline - time.monotonic() < pause + _SHORTEST_TRY:
            raise NotLetInError(told)
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def _introduced(
    comm: Comm, address: str, options: CommOptions, hello: Hello, deadline: float
) -> Message:
    """Send the registration message and wait for the answer."""
    try:
        comm.send(await hello(address, options))
        # It may dial us back first, or be busy with a thousand others who come at the same time.
        left = max(min(deadline - time.monotonic(), _ANSWER), 0.05)
        return await asyncio.wait_for(comm.receive(), left)
    except asyncio.TimeoutError:
        comm.close()
        raise CommClosedError(f"the scheduler at {address} accepts but does not answer") from None
    except BaseException:
        comm.close()
        raise


def _report(address: str, problem: str, left: float) -> None:
    log.warning(
        "%s cannot reach the scheduler at %s yet: %s; trying for %.0f s more",
        network.hostname(),
        address,
        problem,
        left,
    )


async def _by_file(
    place: SchedulerPlace,
    path: str,
    hello: Hello,
    deadline: float,
    timeout: float,
    say: Callable[[str], None],
) -> Link:
    """Follow the file until what it says answers and proves to be who wrote it."""
    problem: Exception | None = None
    told = ""
    waits = pauses()
    stale: set[str] = set()  # ids of schedulers whose address another one answers at
    while (left := deadline - time.monotonic()) > 0:
        try:
            contact = await wait_for_contact(path, left, stale=stale, log=say)
        except RendezvousTimeoutError:
            if problem is None:
                raise
            break
        try:
            if place.address and contact.token:
                # The token we have was given for that address. A scheduler that was started anew
                # may have another, and says so in its file, which only its user could write.
                place = replace(place, token=contact.token)
            options = place.options(contact)
            # The file is written when the scheduler listens: who refuses is not there any more.
            link = await _register(contact.address, options, hello, deadline, _ONE_TRY)
        except NotLetInError:
            raise
        except (CommClosedError, HandshakeError) as exc:
            problem = exc
        else:
            if link.registered.scheduler_id == contact.id:
                return link
            link.comm.close()
            stale.add(contact.id)
            problem = CommClosedError(f"another scheduler answers at {contact.address}")
        if str(problem) != told:  # once, not at every try
            told = str(problem)
            log.warning("%s may be stale: %s; reading it again", path, problem)
        await asyncio.sleep(min(next(waits), max(deadline - time.monotonic(), 0)))
    raise RendezvousTimeoutError(
        f"no scheduler within {timeout:g} s: {os.path.abspath(path)} is there, but {problem}. "
        "If it is left from an earlier run, remove it."
    ) from problem


async def refuse_taken_file(path: str) -> None:
    """Do not take the file of a scheduler that still runs, which nobody would find any more.

    Whoever answers at its address and holds its token is that scheduler; else it is stale.

    Raises
    ------
    LaunchError
        If there is one.
    """
    try:
        contact = SchedulerFileReader(path).probe(time.time())
    except TokenError:  # not a private file: writing it anew mends that
        return
    if contact is None:
        return
    options = CommOptions(token=contact.token or None)
    try:
        comm = await connect(contact.address, options, _ONE_LOOK, was_there=True)
    except OSError:
        log.info("replacing %s, left by a scheduler at %s", path, contact.address)
        return
    comm.close()
    raise LaunchError(
        f"{path} is the file of a scheduler that runs: pid {contact.pid} on {contact.host}, at "
        f"{contact.address}. Use another --scheduler-file, or end that one first."
    )
