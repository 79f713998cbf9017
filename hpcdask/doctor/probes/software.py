"""Python and packages, without importing any of them."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from hpcdask import config
from hpcdask._version import __version__
from hpcdask.comm.options import CommOptions
from hpcdask.doctor.facts import Software
from hpcdask.errors import ConfigError

#: What has to agree: these read each other's bytes, or run the same task on either host.
PACKAGES = (
    "msgpack",
    "cloudpickle",
    "tornado",
    "psutil",
    "lz4",
    "zstandard",
    "cryptography",
    "asyncssh",
    "mpi4py",
    "dask",
    "distributed",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "xarray",
    "numba",
    "torch",
)


def look() -> Software:
    """Versions of all that is installed here."""
    packages = {"hpcdask": __version__}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    try:
        CommOptions.configured(None, config.current())
        problem = ""
    except ConfigError as exc:
        problem = str(exc)
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "packages": packages,
        "problem": problem,
    }
