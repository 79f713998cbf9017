"""Versions of Python and of packages on a host, and whether those of several go together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from hpcdask._version import __version__

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
    import platform  # not at the start of every worker

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
    import importlib.metadata

    if name == "hpcdask":  # which may run from a folder, without being installed
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


# -- Of all who come in ---------------------------------------------------------------------------


class VersionMismatchWarning(UserWarning):
    """A client, the scheduler and workers do not run the same versions."""


#: Name and version of what is known at once, without a look at the file system. That of cloudpickle
#: is in what it pickles (`hpcdask.wire.serialize.pickled_by`).
Software = tuple[tuple[str, str], ...]


def software() -> Software:
    """What this process runs."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        ("Python", python),
        ("hpcdask", __version__),
        ("msgpack", ".".join(map(str, msgpack.version))),
    )


class Census:
    """Knows whose versions are not the scheduler's; as a rule that is nobody.

    Parameters
    ----------
    own : Software
        The scheduler's.
    """

    def __init__(self, own: Software) -> None:
        self._own = own
        self._workers: dict[str, tuple[str, Software]] = {}  # those that differ, by address

    def worker_joined(self, address: str, who: str, its: Software) -> str:
        """A worker is there; return what to tell it, if anything."""
        if its in ((), self._own):
            self.worker_left(address)
            return ""
        self._workers[address] = (who, its)
        return told({"the scheduler": self._own, who: its})

    def worker_left(self, address: str) -> None:
        """A worker is gone."""
        self._workers.pop(address, None)

    def client_joined(self, its: Software) -> str:
        """A client is there; return what to tell it, if anything."""
        if its == () or (its == self._own and not self._workers):
            return ""
        return told(
            {"this client": its, "the scheduler": self._own, **dict(self._workers.values())}
        )


def told(found: Mapping[str, Software]) -> str:
    """Say who has which version of what is not the same everywhere; empty if all is."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for who, its in found.items():
        for name, version in its:
            by_name.setdefault(name, {}).setdefault(version, []).append(who)
    different = {name: where for name, where in by_name.items() if len(where) > 1}
    if not different:
        return ""
    lines = in_words(different).splitlines()
    return (
        f"versions differ: {'; '.join(lines)}. What one of them pickles another may not be able to "
        "read: start all from one environment (client.get_versions(check=True) tells more)"
    )
