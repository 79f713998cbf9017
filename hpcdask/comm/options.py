"""Options of connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcdask.errors import ConfigError
from hpcdask.wire.compression import available
from hpcdask.wire.framing import Limits


@dataclass(frozen=True, slots=True)
class CommOptions:
    """How connections of one process behave.

    Parameters
    ----------
    token : bytes or None
        The cluster token; None only for ``--no-auth``.
    limits : Limits
        What one frame may hold.
    compression : str or None
        "auto" (the best installed library), "lz4", "zstd" or None. Never used within one host.
    connect_timeout : float
        Seconds to try to reach a listener.
    handshake_timeout : float
        Seconds that a peer has to prove who it is.
    stall_timeout : float
        Seconds without a byte after which a worker that owes an answer is given up.
    tcp_timeout : float
        Seconds without a confirmation after which the host at the other end is given up.

    Raises
    ------
    ConfigError
        If `compression` names what is not installed here.
    """

    token: bytes | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    compression: str | None = "auto"
    connect_timeout: float = 30.0
    handshake_timeout: float = 5.0
    stall_timeout: float = 15.0
    tcp_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.compression not in (None, "auto") and self.compression not in available():
            raise ConfigError(
                f"cannot compress with {self.compression!r}, as comm.compression has it (see "
                "'hpc-dask config'): it is none of auto, lz4, zstd and none, or its library is not "
                "installed (pip install lz4 zstandard)"
            )

    @classmethod
    def configured(cls, token: bytes | None, settings: Mapping[str, Any]) -> CommOptions:
        """Options as `hpcdask.config` has settled them."""
        return cls(
            token=token,
            limits=Limits(settings["comm.max-messages"], settings["comm.max-buffers"]),
            compression=settings["comm.compression"],
            connect_timeout=settings["comm.timeouts.connect"],
            handshake_timeout=settings["comm.timeouts.handshake"],
            stall_timeout=settings["comm.timeouts.stall"],
            tcp_timeout=settings["comm.timeouts.tcp"],
        )
