"""Versions of Python and of packages on a host, and whether those of several go together."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

#: What must be the same everywhere: code and values are pickled here and read there.
REQUIRED = ("python", "hpcdask", "cloudpickle", "msgpack")
#: What values are often made of, or carried by, where it is installed.
OPTIONAL = ("dask", "numpy", "pandas", "pyarrow", "lz4", "zstandard", "tornado")


def versions(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What is installed here: nothing is imported for it.

    Parameters
    ----------
    packages : iterable of str
        Names of distributions besides the usual ones.

    Returns
    -------
    dict
        ``host``, about the interpreter and the machine, and ``packages``: name -> version, or None
        where it is not installed.
    """
    names = dict.fromkeys((*REQUIRED[1:], *OPTIONAL, *packages))
    return {
        "host": {
            "python": platform.python_version(),
            "python-bits": 64 if sys.maxsize > 2**32 else 32,
            "OS": platform.system(),
            "OS-release": platform.release(),
            "machine": platform.machine(),
            "byteorder": sys.byteorder,
            "LC_ALL": os.environ.get("LC_ALL", "None"),
            "LANG": os.environ.get("LANG", "None"),
        },
        "packages": {"python": platform.python_version(), **{n: _version(n) for n in names}},
    }


def _version(name: str) -> str | None:
    if name == "hpcdask":  # which may run from a folder, without being installed
        from hpcdask._version import __version__

        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def mismatches(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Packages that are not the same everywhere.

    Parameters
    ----------
    found : mapping
        Who -> what `versions` says there.

    Returns
    -------
    dict
        Package -> version, or "none" -> who has it. Of Python only the minor version counts, as
        3.11 of 3.11.7: code of another one cannot be read.
    """
    by_package: dict[str, dict[str, list[str]]] = {}
    for who, about in found.items():
        for package, version in about["packages"].items():
            if package == "python":
                version = ".".join(version.split(".")[:2])
            by_package.setdefault(package, {}).setdefault(version or "none", []).append(who)
    return {package: where for package, where in by_package.items() if len(where) > 1}


def in_words(found: Mapping[str, Mapping[str, list[str]]]) -> str:
    """Say which packages are not the same, and where, in a line for each."""
    lines = []
    for package, where in found.items():
        texts = []
        for version, who in where.items():
            more = f" and {len(who) - 2} more" if len(who) > 2 else ""
            texts.append(f"{version} on {', '.join(who[:2])}{more}")
        lines.append(f"{package}: {'; '.join(texts)}")
    return "\n".join(lines)
