"""Connections that carry messages, and addresses."""

from hpcdask.comm.base import Comm, Listener, OnBatch, OnClosed
from hpcdask.comm.connect import connect, listen
from hpcdask.comm.tcp import SilenceError, peers_have_closed

__all__ = [
    "Comm",
    "Listener",
    "OnBatch",
    "OnClosed",
    "SilenceError",
    "connect",
    "listen",
    "peers_have_closed",
]
