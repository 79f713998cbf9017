"""`rpc`: a scheduler or worker by its address, as the first programs for dask have it."""

from __future__ import annotations

import asyncio
from typing import Any

from hpcdask._version import __version__
from hpcdask.client.loop import run_sync, shared_loop
from hpcdask.comm import connect
from hpcdask.dialling import SchedulerPlace, host_and_port
from hpcdask.errors import ConfigError
from hpcdask.messages import PROTOCOL_VERSION, Terminate


class rpc:
    """A scheduler or worker elsewhere.

    Parameters
    ----------
    address : str
        Address, or host.
    port : int, optional
        Its port, if `address` is a host alone.
    ip : str, optional
        Another name of `address`.
    token, token_file, auth
        As for `Client`.
    timeout : float
        Seconds for the connection and for the answer.

    Examples
    --------
    >>> rpc("127.0.0.1", 8786).terminate()                                  # doctest: +SKIP
    'OK'
    """

    def __init__(
        self,
        address: str | None = None,
        port: int | None = None,
        *,
        ip: str | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        timeout: float = 10.0,
    ) -> None:
        where = host_and_port(address or ip, port)
        if where is None:
            raise ConfigError("rpc() needs an address, as in rpc('tcp://10.1.0.3:8786')")
        self.address = where
        self._place = SchedulerPlace(where, None, token, token_file, auth)
        self._timeout = timeout

    def terminate(self, reason: str = "asked to by rpc") -> Any:
        """End it; of a scheduler also all its workers. On an event loop this is awaited.

        Returns
        -------
        str
            "OK".

        Raises
        ------
        CommClosedError
            If nobody answers there.
        AuthenticationError
            If it holds another token.
        WaitTimeoutError
            If it takes too long.
        """
        if asyncio._get_running_loop() is not None:
            return self._terminate(reason)
        return run_sync(shared_loop(), self._terminate(reason), 2 * self._timeout)

    async def _terminate(self, reason: str) -> str:
        comm = await connect(self.address, self._place.options(), self._timeout)
        try:
            comm.send(Terminate(PROTOCOL_VERSION, __version__, reason))
            await asyncio.wait_for(comm.wait_closed(), self._timeout)
        finally:
            comm.close()
        return "OK"

    def close_rpc(self) -> None:
        """Nothing is kept open between calls."""

    def __enter__(self) -> rpc:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_rpc()

    async def __aenter__(self) -> rpc:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close_rpc()

    def __repr__(self) -> str:
        return f"<rpc to {self.address!r}>"
