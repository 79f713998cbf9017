"""What a doctor is asked to look at."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpcdask.comm.addresses import parse_ports
from hpcdask.errors import ConfigError
from hpcdask.host import parse_timedelta
from hpcdask.network import choose_address

#: Shorter, nothing can be found out.
SHORTEST_TIMEOUT = 1.0


@dataclass(frozen=True)
class DoctorOptions:
    """Options of ``hpc-dask doctor``.

    Parameters
    ----------
    interface : str
        The network interface that a cluster would be told to use, or empty.
    folder : str
        Where the scheduler file would be.
    is_folder_asked : bool
        The user has named it.
    port_range : str
        Where listeners would be, or empty for any port.
    local_directory : str, optional
        Where workers would make their scratch folders.
    nworkers : int
        For how many workers the limits should do; 0 for as many as there are ranks or CPUs.
    timeout : float
        Seconds for all of it.
    is_fast : bool
        Leave out the bandwidth.
    """

    interface: str = ""
    folder: str = "."
    is_folder_asked: bool = False
    port_range: str = ""
    local_directory: str | None = None
    nworkers: int = 0
    timeout: float = 60.0
    is_fast: bool = False


def checked_options(
    *,
    interface: str | None,
    scheduler_file: str | None,
    shared_folder: str | None,
    port_range: str | None,
    local_directory: str | None,
    nworkers: int,
    timeout: str | float,
    fast: bool,
) -> DoctorOptions:
    """Options as they stand on the command line, with what cannot be refused.

    Raises
    ------
    ConfigError
        If an option has a value that it cannot have.
    """
    if scheduler_file and shared_folder:
        raise ConfigError("give either --scheduler-file or --shared-folder")
    folder = os.path.dirname(scheduler_file) if scheduler_file else shared_folder
    seconds = parse_timedelta(timeout)
    if seconds < SHORTEST_TIMEOUT:
        raise ConfigError(f"--timeout {timeout} is too short: give {SHORTEST_TIMEOUT:g} s or more")
    if port_range and 0 in parse_ports(port_range):
        raise ConfigError(f"--port-range {port_range} holds port 0, which is no port to look at")
    if interface:
        _refuse_malformed(interface)
    return DoctorOptions(
        interface or "",
        os.path.abspath(folder or "."),
        bool(scheduler_file or shared_folder),
        port_range or "",
        local_directory,
        nworkers,
        seconds,
        fast,
    )


def _refuse_malformed(interface: str) -> None:
    """Raise what is wrong with an interface on any host; a host may lack it all the same."""
    try:
        choose_address(interface, [])
    except ConfigError:
        raise
    except ValueError:  # there is none, of course
        pass
