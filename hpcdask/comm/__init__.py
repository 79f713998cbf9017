"""Connections that carry messages, and addresses."""

from hpcdask.comm.base import Comm, Listener, OnBatch, OnClosed, ends_of_all
from hpcdask.comm.connect import connect, listen
from hpcdask.comm.tcp import SilenceError

__all__ = [
    "Comm",
    "Listener",
    "OnBatch",
    "OnClosed",
    "SilenceError",
    "connect",
    "ends_of_all",
    "listen",
]
