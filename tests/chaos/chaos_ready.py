"""What hpcdask can do by now: each line switches on what waits for it."""

from __future__ import annotations

#: Ability -> whether it is there.
READY = {
    # A worker of which nothing is heard for `worker_ttl` is given up; --worker-ttl sets it.
    "worker_ttl": True,
    # Workers, nannies and clients come back after a lost connection or scheduler.
    "reconnect": True,
    # SIGTERM to a nanny ends it with code 0 within DRAINED, after its results have moved.
    "drain": True,
}

#: The worker_ttl of clusters under test, in seconds.
WORKER_TTL = 3.0
#: Seconds in which a nanny that got SIGTERM must have ended.
DRAINED = 40.0
#: Seconds that the scheduler keeps what a vanished client wanted, in case that it comes back.
CLIENT_GRACE = 30.0
