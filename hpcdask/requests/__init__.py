"""What clients ask the scheduler for, and the answers; each module answers a family of requests."""

from hpcdask.requests.answering import ClientRequests

__all__ = ["ClientRequests"]
