"""Times that clusters under test keep to."""

from __future__ import annotations

#: The worker_ttl of clusters under test, in seconds.
WORKER_TTL = 3.0
#: Seconds in which a nanny that got SIGTERM must have ended.
DRAINED = 40.0
#: Seconds that the scheduler keeps what a vanished client wanted, in case that it comes back.
CLIENT_GRACE = 8.0
