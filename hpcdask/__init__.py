"""hpcdask: a task cluster for HPC allocations, with the public API of dask.distributed."""

from hpcdask._version import __version__
from hpcdask.client.client import Client, default_client, get_client
from hpcdask.client.future import Future
from hpcdask.client.waiting import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    DoneAndNotDoneFutures,
    as_completed,
    fire_and_forget,
    futures_of,
    wait,
)
from hpcdask.errors import (
    AuthenticationError,
    CommClosedError,
    ConfigError,
    FutureCancelledError,
    HandshakeError,
    HpcdaskError,
    InterfaceNotFoundError,
    KilledWorker,
    LaunchError,
    LostDataError,
    ProtocolError,
    RemoteError,
    RendezvousError,
    RendezvousTimeoutError,
    SerializationError,
    TokenError,
    WaitTimeoutError,
    WorkerStartError,
)
from hpcdask.launchers.local import LocalCluster
from hpcdask.nanny import Nanny
from hpcdask.scheduler import Scheduler
from hpcdask.worker import Worker, get_worker

CancelledError = FutureCancelledError
TimeoutError = WaitTimeoutError

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "AuthenticationError",
    "CancelledError",
    "Client",
    "CommClosedError",
    "ConfigError",
    "DoneAndNotDoneFutures",
    "Future",
    "FutureCancelledError",
    "HandshakeError",
    "HpcdaskError",
    "InterfaceNotFoundError",
    "KilledWorker",
    "LaunchError",
    "LocalCluster",
    "LostDataError",
    "Nanny",
    "ProtocolError",
    "RemoteError",
    "RendezvousError",
    "RendezvousTimeoutError",
    "Scheduler",
    "SerializationError",
    "TimeoutError",
    "TokenError",
    "WaitTimeoutError",
    "Worker",
    "WorkerStartError",
    "__version__",
    "as_completed",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_worker",
    "wait",
]
