"""The plugins, by the name of the module that dask.distributed has them in."""

from hpcdask.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin
from hpcdask.plugins.environ import Environ
from hpcdask.plugins.installing import CondaInstall, InstallPlugin, PipInstall
from hpcdask.plugins.output import ForwardOutput
from hpcdask.plugins.uploading import UploadDirectory, UploadFile

__all__ = [
    "CondaInstall",
    "Environ",
    "ForwardOutput",
    "InstallPlugin",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "UploadFile",
    "WorkerPlugin",
]
