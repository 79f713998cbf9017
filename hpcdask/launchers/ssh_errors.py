"""What went wrong with a host, in one sentence: which one, the cause, and what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from hpcdask._version import __version__
from hpcdask.errors import LaunchError
from hpcdask.launchers.ssh_hosts import SSHHost


def import_asyncssh() -> Any:
    """Return the module.

    Raises
    ------
    LaunchError
        If it is not installed.
    """
    try:
        import asyncssh
    except ImportError as exc:
        raise LaunchError(
            f"hosts are reached with asyncssh, which cannot be used here: {exc}. Install it with "
            "pip install 'hpcdask[ssh]'"
        ) from exc
    return asyncssh


def why_not_connected(host: SSHHost, exc: BaseException, fingerprint: str = "") -> str:
    """Why no SSH connection came about.

    Parameters
    ----------
    exc : exception
        What ``asyncssh.connect`` raised.
    fingerprint : str
        Of the host key, if that was not trusted.
    """
    asyncssh = import_asyncssh()
    if isinstance(exc, asyncssh.HostKeyNotVerifiable):
        return _why_not_trusted(host, fingerprint or str(exc))
    if isinstance(exc, asyncssh.PermissionDenied):
        return (
            f"{host} lets us not in as {_user_of(host)}: {exc}. See that 'ssh {host.ssh}' works "
            "without a question: put your public key there (ssh-copy-id), load the private one "
            "into ssh-agent, or name it (--ssh-private-key, client_keys)"
        )
    if isinstance(exc, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        return (
            f"the private key for {host} cannot be read: {exc}. If it has a passphrase, load it "
            "into ssh-agent with ssh-add"
        )
    if isinstance(exc, FileNotFoundError):
        return f"cannot connect to {host}: there is no file {exc.filename}; correct its path"
    if isinstance(exc, socket.gaierror):
        return f"there is no host {host}: {exc.strerror or exc}. Check the name"
    if isinstance(exc, (asyncio.TimeoutError, TimeoutError)):
        return f"{host} does not answer: {exc or 'no connection in time'}. Is it up?"
    if isinstance(exc, OSError):
        why = os.strerror(exc.errno) if exc.errno else str(exc)
        return (
            f"cannot connect to {host}: {why}. Is it up, and does an SSH server listen at port "
            f"{host.options.get('port') or 22}?"
        )
    return f"cannot connect to {host}: {exc or type(exc).__name__}. Does 'ssh {host.ssh}' work?"


def _user_of(host: SSHHost) -> str:
    return repr(host.options["username"]) if host.options.get("username") else "our user"


def _why_not_trusted(host: SSHHost, what: str) -> str:
    if _is_known(host):
        return (
            f"{host} has another host key ({what}) than known_hosts says: somebody may be in "
            "between, or it was installed anew. Ask who runs it; then "
            f"'ssh-keygen -R {_known_name(host)}' forgets the old one"
        )
    return (
        f"the host key of {host} is unknown ({what}). Connect once with 'ssh {host.ssh}' and "
        "compare it, or, if you trust the network, "
        f"'ssh-keyscan {host.port_option('-p')}{host.name} >> ~/.ssh/known_hosts'"
    )


def _known_name(host: SSHHost) -> str:
    """How known_hosts calls it."""
    port = host.options.get("port")
    return f"'[{host.name}]:{port}'" if port and int(port) != 22 else host.name


def _is_known(host: SSHHost) -> bool:
    """Whether known_hosts has any key of this host."""
    asyncssh = import_asyncssh()
    given: Any = host.options.get("known_hosts") or Path.home() / ".ssh" / "known_hosts"
    if not isinstance(given, (str, os.PathLike)):
        return False  # keys without names, or a function
    port = int(host.options.get("port") or 22)
    try:
        found = asyncssh.match_known_hosts(
            os.fspath(given), host.name, "", port if port != 22 else None
        )
    except (OSError, ValueError):
        return False
    return any(found)


def why_not_started(host: SSHHost, code: int | None, how: str, said: str) -> str:
    """Why the process on a host has ended before it said hello.

    Parameters
    ----------
    code : int or None
        Its exit code, as the remote shell has it; None if nobody knows.
    how : str
        The same in words.
    said : str
        What it, or the shell, printed last.
    """
    last = said.strip().splitlines()[-1].strip() if said.strip() else "it printed nothing"
    cure = "Name another Python, 3.10 or later, with --remote-python (remote_python=)"
    # As Python's own "-m" says it; a shell calls what it cannot find by its full name.
    if "No module named hpcdask.launchers" in said or "No module named 'hpcdask.launchers" in said:
        return f"hpcdask on {host} is too old: {last}. Install {__version__} there, as it is here"
    if "No module named hpcdask" in said or "No module named 'hpcdask'" in said:
        return (
            f"{host.python} on {host} has no hpcdask: pip install hpcdask=={__version__} there, or "
            "name a Python that has it with --remote-python (remote_python=)"
        )
    if code == 127 or "ommand not found" in said:
        return f"there is no Python {host.python!r} on {host}: {last}. {cure}"
    if code == 126:
        return f"{host.python!r} on {host} cannot be run: {last}. {cure}"
    return f"{host.python} on {host} {how} before hpcdask had started: {last}. {cure}"


def why_silent(host: SSHHost) -> str:
    """What to look at if the process has not even said hello."""
    return (
        f": look what '{host.python}' does there. It has to start a Python that is heard at once; "
        "conda run keeps what it says to itself without --no-capture-output"
    )


def why_another_version(host: SSHHost, version: str, python: str) -> str:
    """Why we cannot work with what is installed on a host; empty if we can."""
    if tuple(map(int, python.split(".")[:2])) < (3, 10):
        return (
            f"{host.python} on {host} is Python {python}, and hpcdask needs 3.10 or later. Name "
            "another with --remote-python (remote_python=)"
        )
    if version != __version__:
        return (
            f"{host} has hpcdask {version}, and we have {__version__}: install the same on all "
            "hosts, or name a Python that has it with --remote-python (remote_python=)"
        )
    return ""
