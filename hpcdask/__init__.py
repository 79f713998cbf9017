"""hpcdask: a task cluster for HPC allocations, with names of dask.distributed.

Names are imported when first used: a worker needs neither client nor launchers, and of a thousand
that start at once on a shared file system each file less counts.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hpcdask._version import __version__

if TYPE_CHECKING:
    from hpcdask import config as config
    from hpcdask.client.actor import Actor, ActorFuture
    from hpcdask.client.client import Client
    from hpcdask.client.current import default_client, get_client
    from hpcdask.client.executor import ClientExecutor
    from hpcdask.client.future import Future
    from hpcdask.client.progress import progress
    from hpcdask.client.rpc import rpc
    from hpcdask.client.task_stream import get_task_stream
    from hpcdask.client.waiting import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        DoneAndNotDoneFutures,
        as_completed,
        fire_and_forget,
        futures_of,
        wait,
    )
    from hpcdask.client.worker_client import worker_client
    from hpcdask.client.worker_client import worker_client as local_client
    from hpcdask.coordination.event import Event
    from hpcdask.coordination.lock import Lock
    from hpcdask.coordination.multilock import MultiLock
    from hpcdask.coordination.queue import Queue
    from hpcdask.coordination.rlock import RLock
    from hpcdask.coordination.semaphore import Semaphore
    from hpcdask.coordination.variable import Variable
    from hpcdask.errors import (
        AuthenticationError,
        CommClosedError,
        ConfigError,
        FutureCancelledError,
        HandshakeError,
        HpcdaskError,
        InstallError,
        InterfaceNotFoundError,
        KilledWorker,
        LaunchError,
        LostActorError,
        LostDataError,
        ProtocolError,
        RemoteError,
        RendezvousError,
        RendezvousTimeoutError,
        ReplicationError,
        Reschedule,
        SerializationError,
        SubmitError,
        TaskExitError,
        TokenError,
        WaitTimeoutError,
        WorkerStartError,
    )
    from hpcdask.launchers.adaptive import Adaptive
    from hpcdask.launchers.local import LocalCluster
    from hpcdask.launchers.program import execute, initialize
    from hpcdask.launchers.spec import ProcessInterface, SpecCluster
    from hpcdask.launchers.ssh import SSHCluster
    from hpcdask.nanny import Nanny
    from hpcdask.places import rejoin, secede
    from hpcdask.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin
    from hpcdask.plugins.environ import Environ
    from hpcdask.plugins.installing import CondaInstall, InstallPlugin, PipInstall
    from hpcdask.plugins.output import ForwardOutput, print, warn
    from hpcdask.plugins.uploading import UploadDirectory, UploadFile
    from hpcdask.scheduler import Scheduler
    from hpcdask.worker import Worker
    from hpcdask.worker_view import get_worker

    BaseActorFuture = ActorFuture
    CancelledError = FutureCancelledError
    TimeoutError = WaitTimeoutError

_WHERE = {
    "Actor": "client.actor",
    "ActorFuture": "client.actor",
    "Client": "client.client",
    "default_client": "client.current",
    "get_client": "client.current",
    "ClientExecutor": "client.executor",
    "Future": "client.future",
    "get_task_stream": "client.task_stream",
    "progress": "client.progress",
    "ALL_COMPLETED": "client.waiting",
    "FIRST_COMPLETED": "client.waiting",
    "DoneAndNotDoneFutures": "client.waiting",
    "as_completed": "client.waiting",
    "fire_and_forget": "client.waiting",
    "futures_of": "client.waiting",
    "rpc": "client.rpc",
    "wait": "client.waiting",
    "worker_client": "client.worker_client",
    "Event": "coordination.event",
    "Lock": "coordination.lock",
    "MultiLock": "coordination.multilock",
    "Queue": "coordination.queue",
    "RLock": "coordination.rlock",
    "Semaphore": "coordination.semaphore",
    "Variable": "coordination.variable",
    "AuthenticationError": "errors",
    "CommClosedError": "errors",
    "ConfigError": "errors",
    "FutureCancelledError": "errors",
    "HandshakeError": "errors",
    "HpcdaskError": "errors",
    "InstallError": "errors",
    "InterfaceNotFoundError": "errors",
    "KilledWorker": "errors",
    "LaunchError": "errors",
    "LostActorError": "errors",
    "LostDataError": "errors",
    "ProtocolError": "errors",
    "RemoteError": "errors",
    "RendezvousError": "errors",
    "RendezvousTimeoutError": "errors",
    "ReplicationError": "errors",
    "Reschedule": "errors",
    "SerializationError": "errors",
    "SubmitError": "errors",
    "TaskExitError": "errors",
    "TokenError": "errors",
    "WaitTimeoutError": "errors",
    "WorkerStartError": "errors",
    "rejoin": "places",
    "secede": "places",
    "Adaptive": "launchers.adaptive",
    "LocalCluster": "launchers.local",
    "execute": "launchers.program",
    "initialize": "launchers.program",
    "ProcessInterface": "launchers.spec",
    "SpecCluster": "launchers.spec",
    "SSHCluster": "launchers.ssh",
    "Nanny": "nanny",
    "NannyPlugin": "plugins.base",
    "SchedulerPlugin": "plugins.base",
    "WorkerPlugin": "plugins.base",
    "Environ": "plugins.environ",
    "CondaInstall": "plugins.installing",
    "InstallPlugin": "plugins.installing",
    "PipInstall": "plugins.installing",
    "ForwardOutput": "plugins.output",
    "print": "plugins.output",
    "warn": "plugins.output",
    "UploadDirectory": "plugins.uploading",
    "UploadFile": "plugins.uploading",
    "Scheduler": "scheduler",
    "Worker": "worker",
    "get_worker": "worker_view",
}
#: Other names of the same things, as dask.distributed has them.
_ALIASES = {
    "BaseActorFuture": "ActorFuture",
    "CancelledError": "FutureCancelledError",
    "TimeoutError": "WaitTimeoutError",
    "local_client": "worker_client",
}

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "Actor",
    "ActorFuture",
    "Adaptive",
    "AuthenticationError",
    "BaseActorFuture",
    "CancelledError",
    "Client",
    "ClientExecutor",
    "CommClosedError",
    "CondaInstall",
    "ConfigError",
    "DoneAndNotDoneFutures",
    "Environ",
    "Event",
    "ForwardOutput",
    "Future",
    "FutureCancelledError",
    "HandshakeError",
    "HpcdaskError",
    "InstallError",
    "InstallPlugin",
    "InterfaceNotFoundError",
    "KilledWorker",
    "LaunchError",
    "LocalCluster",
    "Lock",
    "LostActorError",
    "LostDataError",
    "MultiLock",
    "Nanny",
    "NannyPlugin",
    "PipInstall",
    "ProcessInterface",
    "ProtocolError",
    "Queue",
    "RLock",
    "RemoteError",
    "RendezvousError",
    "RendezvousTimeoutError",
    "ReplicationError",
    "Reschedule",
    "SSHCluster",
    "Scheduler",
    "SchedulerPlugin",
    "Semaphore",
    "SerializationError",
    "SpecCluster",
    "SubmitError",
    "TaskExitError",
    "TimeoutError",
    "TokenError",
    "UploadDirectory",
    "UploadFile",
    "Variable",
    "WaitTimeoutError",
    "Worker",
    "WorkerPlugin",
    "WorkerStartError",
    "__version__",
    "as_completed",
    "default_client",
    "execute",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_stream",
    "get_worker",
    "initialize",
    "local_client",
    "print",
    "progress",
    "rejoin",
    "rpc",
    "secede",
    "wait",
    "warn",
    "worker_client",
]


def __getattr__(name: str) -> Any:
    if name == "config":  # a module, which its importing makes an attribute
        return importlib.import_module("hpcdask.config")
    target = _ALIASES.get(name, name)
    if target not in _WHERE:
        raise AttributeError(f"module 'hpcdask' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hpcdask.{_WHERE[target]}"), target)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "config"})
