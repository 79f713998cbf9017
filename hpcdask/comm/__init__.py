"""Connections that carry messages, and addresses."""

from hpcdask.comm.base import Comm, Listener, OnBatch, OnClosed
from hpcdask.comm.connect import connect, listen

__all__ = ["Comm", "Listener", "OnBatch", "OnClosed", "connect", "listen"]
