"""Noticing that the host at the other end, or the way to it, is gone.

Keepalive probes (`tcp.configure`) do that for a connection on which nothing is under way. Data that
the other end does not confirm would be sent again for a quarter of an hour. The kernel's own
remedy, TCP_USER_TIMEOUT, is too sharp: it also ends connections with a host that answers well, but
whose process has taken nothing for that long, and a task that holds the interpreter's lock for a
minute is no reason to lose its worker. So we look at what the kernel knows, every few seconds.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcdask.comm.tcp import TCPComm

#: Seconds between two looks.
INTERVAL = 5.0
#: Questions that stayed unanswered. One alone may have been asked this moment: the kernel waits up
#: to two minutes between asking a host whose process does not read.
_UNANSWERED = 2

#: struct tcp_info of linux/tcp.h: tcpi_retransmits and tcpi_probes, which count what was not
#: answered, and tcpi_last_ack_recv, in milliseconds.
_TCP_INFO = struct.Struct("=2xBB52xI")

_of_thread = threading.local()


def watch(comm: TCPComm, sock: socket.socket) -> None:
    """Abort a connection of the running loop when its peer does not answer any more."""
    if not hasattr(socket, "TCP_INFO"):
        return
    loop = asyncio.get_running_loop()
    if getattr(_of_thread, "loop", None) is not loop:
        _of_thread.loop, _of_thread.comms = loop, weakref.WeakKeyDictionary()
        loop.call_later(INTERVAL, _look, loop, _of_thread.comms)
    _of_thread.comms[comm] = sock


def _look(
    loop: asyncio.AbstractEventLoop, comms: weakref.WeakKeyDictionary[TCPComm, socket.socket]
) -> None:
    for comm, sock in list(comms.items()):
        if sock.fileno() < 0:  # it has ended
            del comms[comm]
            continue
        tcp_info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if is_lost(tcp_info, comm.patience):
            comm.abort(f"its host has not answered for {comm.patience:g} s")
    loop.call_later(INTERVAL, _look, loop, comms)


def is_lost(tcp_info: bytes, patience: float) -> bool:
    """Whether a peer has been asked several times in vain, and has been silent for so long.

    A link that is cut for half of these seconds breaks no connection.
    """
    if len(tcp_info) < _TCP_INFO.size:
        return False
    retransmits, probes, silence = _TCP_INFO.unpack(tcp_info)
    return bool(max(retransmits, probes) >= _UNANSWERED and silence >= 1000 * patience)
