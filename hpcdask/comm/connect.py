"""Dial and listen by address; the protocol in the address says who does it."""

from __future__ import annotations

from hpcdask.comm import inproc, tcp, tcp_listener
from hpcdask.comm.addresses import parse_address, parse_ports
from hpcdask.comm.base import Comm, Listener, OnComm
from hpcdask.comm.options import CommOptions


async def connect(
    address: str,
    options: CommOptions,
    timeout: float | None = None,
    *,
    was_there: bool = False,
    report: tcp.Report | None = None,
) -> Comm:
    """Open a connection and prove that both ends hold the token.

    Parameters
    ----------
    address : str
        As `parse_address` reads it.
    timeout : float, optional
        Seconds for all of it; by default ``options.connect_timeout``.
    was_there : bool
        The listener is known to have started, so a refusal means that it is gone. By default it is
        waited for.
    report : callable, optional
        Is told now and then, if it takes long, what is wrong and how many seconds are left.

    Raises
    ------
    CommClosedError
        If nobody answers there in time, or somebody accepts the connection and says nothing for
        ``options.handshake_timeout``; the text says what was tried.
    HandshakeError
        If what answers is not hpcdask.
    AuthenticationError
        If one end holds another token.
    """
    target = parse_address(address)
    timeout = options.connect_timeout if timeout is None else timeout
    if target.protocol == "inproc":
        return await inproc.connect(target.host, timeout)
    return await tcp.connect(target, options, timeout, was_there, report)


async def listen(
    address: str, on_comm: OnComm, options: CommOptions, ports: int | str | None = None
) -> Listener:
    """Accept connections at `address` and give each to `on_comm` once it is authenticated.

    Parameters
    ----------
    ports : int or str, optional
        Ports to try in turn, in place of the address's own.

    Raises
    ------
    OSError
        If no port is free, or the host is not one of this machine's addresses.
    """
    target = parse_address(address, default_port=0)
    if target.protocol == "inproc":
        return inproc.InprocListener(target.host, on_comm)
    return await tcp_listener.listen(target, parse_ports(ports, target.port), on_comm, options)
