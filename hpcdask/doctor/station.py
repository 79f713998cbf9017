"""What every host does for the others: it listens, answers, and dials whom it is told to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hpcdask.comm import Comm, Listener, connect, listen
from hpcdask.comm.options import CommOptions
from hpcdask.doctor.line import Line, OnRegister
from hpcdask.errors import CommClosedError, HandshakeError, HpcdaskError, LaunchError
from hpcdask.messages import Blob, Frames
from hpcdask.rendezvous import wait_for_contact
from hpcdask.wire.codec import blob_nbytes

#: Addresses that one host dials at the same time.
_AT_ONCE = 64
#: Messages there and back, of which the fastest counts.
_ECHOES = 5
#: Bytes of a message whose weight is measured, and how many of them are under way.
_LOAD, _LOADS_UNDER_WAY = 4 * 2**20, 3
#: Seconds for the connection over which the bandwidth is measured.
_PATIENCE = 5.0


class Station:
    """One host's part in the examination.

    Parameters
    ----------
    identity : str
        Of this host; tells those who dial whom they have reached.
    token : bytes
        Of this examination.
    on_register : callable, optional
        On rank 0: is told when a rank registers.
    """

    def __init__(self, identity: str, token: bytes, on_register: OnRegister | None = None) -> None:
        self._identity = identity
        # Uncompressed, or what is measured would not be the network.
        self._options = CommOptions(token, compression=None)
        self._on_register = on_register
        self._listeners: list[Listener] = []
        self._lines: set[Line] = set()
        self._deeds: dict[str, Callable[..., Awaitable[Any]]] = {
            "dial": self._dial,
            "send": self._send,
            "await-file": self._await_file,
        }

    # -- Listening -----------------------------------------------------------------------------

    async def listen(self, ports: Sequence[int]) -> list[int]:
        """Listen on every interface at these ports, 0 for any, and return which they are.

        One that was taken meanwhile is replaced by any other.
        """
        for port in ports:
            try:
                listener = await listen("tcp://:0", self._on_comm, self._options, ports=port)
            except OSError:
                listener = await listen("tcp://:0", self._on_comm, self._options)
            self._listeners.append(listener)
        return [int(each.address.rpartition(":")[2]) for each in self._listeners]

    def _on_comm(self, comm: Comm) -> None:
        self._begin(comm, self._on_register)

    def _begin(self, comm: Comm, on_register: OnRegister | None = None) -> Line:
        line = Line(comm, self.answer, on_register)
        self._lines.add(line)
        line.ended.add_done_callback(lambda _: self._lines.discard(line))
        return line

    async def dial(self, address: str, timeout: float) -> Comm:
        """Connect to another station, once: whoever is to be there has said so.

        Raises
        ------
        CommClosedError
            If nobody answers there.
        HandshakeError
            If somebody else does.
        """
        return await connect(address, self._options, timeout, was_there=True)

    def talk(self, comm: Comm) -> Line:
        """Ask and answer on a connection from now on."""
        return self._begin(comm)

    async def close(self) -> None:
        """End all connections."""
        for listener in self._listeners:
            listener.close()
        comms = [line.comm for line in self._lines]
        for line in list(self._lines):
            line.close()
        if comms:
            await asyncio.wait([asyncio.ensure_future(c.wait_closed()) for c in comms], timeout=1)

    # -- Answering -----------------------------------------------------------------------------

    def answer(self, what: str, arguments: Any, load: Blob = b"") -> Any:
        """Do what rank 0, or a host that tries this one, asks."""
        if what == "echo":
            return {"identity": self._identity, "time": time.time()}
        if what == "weigh":
            return blob_nbytes(load)
        return self._deeds[what](*arguments)

    # -- What rank 0 asks ----------------------------------------------------------------------

    async def _dial(
        self, targets: Sequence[tuple[str, str]], timeout: float, deadline: float
    ) -> list[tuple[float | None, str]]:
        """Try addresses, and say how long a message takes there and back, or why none comes.

        Parameters
        ----------
        targets : sequence of (address, identity)
            Who is to be reached where.
        timeout : float
            Seconds for each.
        deadline : float
            Seconds for all.
        """
        room = asyncio.Semaphore(_AT_ONCE)
        ends = time.monotonic() + deadline

        async def dial(address: str, identity: str) -> tuple[float | None, str]:
            async with room:
                if time.monotonic() > ends:
                    return None, "there was no time left to try"
                return await self._reach(address, identity, timeout)

        return await asyncio.gather(*(dial(*target) for target in targets))

    async def _reach(self, address: str, identity: str, timeout: float) -> tuple[float | None, str]:
        try:
            comm = await self.dial(address, timeout)
        except (CommClosedError, HandshakeError) as exc:
            return None, reason_of(exc, timeout)
        line = self.talk(comm)
        try:
            times = []
            for _ in range(_ECHOES):
                start = time.perf_counter()
                echo = await line.ask("echo", timeout=timeout)
                times.append(time.perf_counter() - start)
        except (CommClosedError, LaunchError) as exc:
            return None, f"it connects, but then: {exc}"
        finally:
            line.close()
        if echo["identity"] != identity:
            other = echo["identity"].partition("/")[0]
            return None, f"{other} answers there: several hosts have this address"
        return min(times), ""

    async def _send(self, address: str, seconds: float) -> tuple[float | None, str]:
        """Send for so long, and say how many bytes per second arrived."""
        try:
            line = self.talk(await self.dial(address, _PATIENCE))
        except (CommClosedError, HandshakeError) as exc:
            return None, reason_of(exc, _PATIENCE)
        load = Frames([os.urandom(_LOAD)])
        start = time.perf_counter()
        weights: list[int] = []

        async def send() -> None:
            while time.perf_counter() - start < seconds:
                weights.append(await line.ask("weigh", load=load, timeout=seconds + _PATIENCE))

        try:
            await asyncio.gather(*(send() for _ in range(_LOADS_UNDER_WAY)))
        except (CommClosedError, LaunchError) as exc:
            # Typical of a path that drops large packets: it connects, and then nothing arrives.
            return None, f"it connects, but {_LOAD // 2**20} MiB do not arrive: {exc}"
        finally:
            line.close()
        return sum(weights) / (time.perf_counter() - start), ""

    async def _await_file(self, path: str, timeout: float) -> tuple[float | None, str]:
        """Wait for a scheduler file as a worker does; say when it was there, by our clock."""
        try:
            await wait_for_contact(path, timeout, log=lambda text: None)
        except (HpcdaskError, OSError) as exc:
            return None, str(exc)
        return time.time(), ""


def reason_of(problem: Exception, timeout: float) -> str:
    """What is new in the message of `connect`, for who knows the address."""
    reason = str(problem).partition(": ")[2] or str(problem)
    return f"no answer within {timeout:.2g} s" if reason == "no answer" else reason
