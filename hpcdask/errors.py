"""Every exception that a user of hpcdask can catch."""

from __future__ import annotations

import concurrent.futures
from typing import Any


class HpcdaskError(Exception):
    """Base of all errors that hpcdask itself raises."""


class ProtocolError(HpcdaskError, ValueError):
    """A peer sent bytes or a message that the protocol does not allow; its connection is closed."""


class CommClosedError(HpcdaskError, ConnectionError):
    """The connection is closed, by the peer, by the network or by us."""


class HandshakeError(HpcdaskError, ConnectionError):
    """The two ends of a new connection could not agree that they may talk to each other."""


class AuthenticationError(HandshakeError, PermissionError):
    """The two ends do not hold the same cluster token."""


class TokenError(HpcdaskError, PermissionError):
    """A token or token file is unusable: unreadable, malformed, or readable by others."""


class RendezvousError(HpcdaskError, ValueError):
    """A scheduler file cannot be written, or holds something that is not one."""


class RendezvousTimeoutError(TimeoutError, RendezvousError):
    """No usable scheduler file, or no scheduler that answers to it, within the deadline."""

    # In this order: where tblib pickles exceptions (as where distributed is imported), it calls
    # __new__ of the first builtin base, which must be the one whose memory layout we have.


class InterfaceNotFoundError(HpcdaskError, ValueError):
    """This host has no network interface as the one asked for, or it has no address."""


class ConfigError(HpcdaskError, ValueError):
    """An option has a value that it cannot have."""


class LaunchError(HpcdaskError, RuntimeError):
    """A scheduler, nanny or worker could not be started."""


class SubmitError(LaunchError):
    """A batch system refused a job, or could not be asked."""


class StatusError(HpcdaskError, RuntimeError):
    """A batch system gave no complete answer to what was asked about its jobs."""


class JobError(LaunchError):
    """Jobs of a batch system cannot start, or keep failing, so that no worker will come."""


class WorkerStartError(LaunchError):
    """A worker process ended, or said nothing, before it had registered."""


class WaitTimeoutError(HpcdaskError, TimeoutError):
    """What was waited for did not happen within ``timeout``."""


class FutureCancelledError(HpcdaskError, concurrent.futures.CancelledError):
    """The future's task was cancelled, or nobody can compute it any more."""


class LostDataError(HpcdaskError, RuntimeError):
    """A value without a recipe (scattered data) was on workers that are gone."""


class ReplicationError(HpcdaskError, RuntimeError):
    """A value could not be copied to as many workers as was asked."""


class KilledWorker(HpcdaskError, RuntimeError):
    """A task ran on too many workers that died while they ran it."""


class LostActorError(HpcdaskError, OSError, ValueError):
    """An actor is gone with its worker, or was let go of; or its worker does not answer."""

    # In this order for tblib, as above.


class TaskExitError(HpcdaskError, RuntimeError):
    """A task, or a method or function that was called, raised what ends a program.

    That is SystemExit, as by ``sys.exit()``, KeyboardInterrupt, GeneratorExit or
    ``asyncio.CancelledError``. It has ended nothing there, and shall not end whoever asks.
    """


class Reschedule(HpcdaskError):
    """Raised by a task: stop this run, and run the task again, on another worker or later.

    It counts neither as a failure nor as one of its retries. The task comes after what has been
    submitted by then, a tenth of a second later, and on another worker if one has room.

    Examples
    --------
    >>> def simulate(parameters):
    ...     if not license_is_free():
    ...         raise Reschedule
    ...     return run(parameters)
    """


class RemoteError(HpcdaskError, RuntimeError):
    """A remote exception that could not be sent or rebuilt here; its text is the message."""


class InstallError(HpcdaskError, RuntimeError):
    """An installer, such as pip, could not install what a plugin asked for; with its words."""


class SerializationError(HpcdaskError, TypeError):
    """An object cannot be pickled, or its pickle cannot be read on this side."""

    #: Which part of it: a `hpcdask.wire.unpicklable.Unpicklable`.
    part: Any = None
