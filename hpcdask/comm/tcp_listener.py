"""Listening on TCP: who connects must prove itself before anything else is read."""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial

from hpcdask import descriptors
from hpcdask.comm.addresses import Address
from hpcdask.comm.base import Listener, OnComm, log
from hpcdask.comm.options import CommOptions
from hpcdask.comm.refusals import RefusalLog
from hpcdask.comm.tcp import TCPComm, configure, name_of, read_prefix
from hpcdask.errors import AuthenticationError
from hpcdask.wire import handshake

#: Connections that have not proven themselves yet; beyond, the oldest is dropped. As many as the
#: kernel lines up: a thousand ranks and their nannies come at the same moment.
_MAX_STRANGERS = 4096
#: As many strangers more, and each may take as long again: where a thousand come at the same
#: moment they wait for us, and who is sent away begins anew and makes it worse.
_CROWD = 512
#: Part of the file descriptors that strangers may take.
_OF_ALL = 4


async def listen(
    address: Address, ports: list[int], on_comm: OnComm, options: CommOptions
) -> TCPListener:
    """Listen on the first free of `ports`; see `hpcdask.comm.listen`."""
    problem: OSError | None = None
    for port in ports:
        try:
            socks = await _bind(address.host, port)
        except OSError as exc:
            problem = exc
            if exc.errno != errno.EADDRINUSE:
                break
            continue
        return TCPListener(socks, address.host, on_comm, options)
    assert problem is not None
    where = f"{address.host or 'every interface'}, port {ports[0]}"
    if len(ports) > 1:
        where += f" to {ports[-1]}"
    cure = {
        errno.EADDRINUSE: "it is in use; choose another, or 0 for any free one",
        errno.EADDRNOTAVAIL: "this machine has no such address; see --interface and --host",
        errno.EACCES: "ports below 1024 are for root",
    }.get(problem.errno or 0, problem.strerror)
    raise OSError(problem.errno, f"cannot listen on {where}: {cure}")


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for one host, or for every IPv4 and IPv6 interface on one common port."""
    if host:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = infos[0]
        return [_listening(family, sockaddr)]
    socks = [_listening(socket.AF_INET, ("0.0.0.0", port))]
    try:
        port = socks[0].getsockname()[1]
        socks.append(_listening(socket.AF_INET6, ("::", port)))
    except OSError:  # no IPv6 here, or its port is taken: IPv4 serves
        pass
    return socks


def _listening(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(sockaddr)
        sock.listen(4096)  # the kernel caps it at somaxconn
    except BaseException:
        sock.close()
        raise
    return sock


class TCPListener(Listener):
    """Accepts, asks for the proof, and only then makes a connection of it."""

    def __init__(
        self, socks: list[socket.socket], host: str, on_comm: OnComm, options: CommOptions
    ) -> None:
        self._socks = socks
        self._on_comm = on_comm
        self.options = options
        self._loop = asyncio.get_running_loop()
        self._strangers: dict[asyncio.Task[bool], str] = {}  # their addresses
        self._most_strangers = min(_MAX_STRANGERS, max(descriptors.limit() // _OF_ALL, 1))
        self._refusals = RefusalLog(self._loop)
        self.port = int(socks[0].getsockname()[1])
        self.address = str(Address("tcp", host or "0.0.0.0", self.port))
        for sock in socks:
            self._loop.add_reader(sock.fileno(), self._accept_ready, sock)

    def _accept_ready(self, listening: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, sockname = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as exc:
                self._pause(listening, exc)
                return
            if len(self._strangers) >= self._most_strangers:
                self._evict(next(iter(self._strangers)))
            peer = name_of(sockname)
            task = self._loop.create_task(self._welcome(sock, peer))
            self._strangers[task] = peer
            # Not within the task, since one that is cancelled early never runs.
            task.add_done_callback(partial(self._welcomed, sock))

    def _evict(self, task: asyncio.Task[bool]) -> None:
        self._refusals.note(self._strangers.pop(task), "too many connections without a handshake")
        task.cancel()

    def _welcomed(self, sock: socket.socket, task: asyncio.Task[bool]) -> None:
        self._strangers.pop(task, None)
        if task.cancelled() or not task.result():
            sock.close()

    def _pause(self, listening: socket.socket, exc: OSError) -> None:
        """Out of file descriptors, as a rule: accepting again at once would only spin."""
        cure = ""
        if exc.errno == errno.EMFILE:
            cure = f", of which {descriptors.limit()} are possible here (see ulimit -Hn)"
        log.error("cannot accept connections on %s for now: %s%s", self.address, exc.strerror, cure)
        self._loop.remove_reader(listening.fileno())

        def resume() -> None:
            if listening.fileno() >= 0:
                self._loop.add_reader(listening.fileno(), self._accept_ready, listening)

        self._loop.call_later(1.0, resume)

    async def _welcome(self, sock: socket.socket, peer: str) -> bool:
        """Let one stranger prove itself and say whether it did."""
        try:
            configure(sock, self.options)
            await self._examine_in_time(sock)
            comm = TCPComm(sock, self.options)
        except Exception as exc:  # whatever a stranger causes costs its own connection only
            reason = str(exc) or repr(exc)
            if isinstance(exc, EOFError):
                reason = f"it hung up during the handshake, after {exc}"
            self._refusals.note(peer, reason)
            return False
        try:
            self._on_comm(comm)
        except Exception:
            log.exception("cannot serve the connection of %s", peer)
            comm.abort("cannot be served")
        return True

    @property
    def _patience(self) -> float:
        """Seconds that each stranger has, as many as there are now."""
        return self.options.handshake_timeout * (1 + len(self._strangers) // _CROWD)

    async def _examine_in_time(self, sock: socket.socket) -> None:
        started = self._loop.time()
        examining = self._loop.create_task(self._examine(sock))
        try:
            while not examining.done():
                patience = self._patience  # others have come or gone meanwhile
                left = started + patience - self._loop.time()
                if left <= 0:
                    raise TimeoutError(f"no handshake within {patience:g} s")
                await asyncio.wait({examining}, timeout=left)
            examining.result()
        finally:
            examining.cancel()
            # Its socket is closed next, and the number may be that of another connection then.
            await asyncio.gather(examining, return_exceptions=True)

    async def _examine(self, sock: socket.socket) -> None:
        listener = handshake.Listener(self.options.token)
        hello = await read_prefix(sock, handshake.HELLO_LENGTH, handshake.NAME)
        challenge, refusal = listener.greeted(hello)
        await self._loop.sock_sendall(sock, challenge)
        if refusal is None:
            try:
                proof = await read_prefix(sock, handshake.PROOF_LENGTH)
            except EOFError:
                raise AuthenticationError(
                    "it hung up instead of proving itself; as a rule it holds another cluster token"
                ) from None
            verdict, refusal = listener.proven(proof)
            await self._loop.sock_sendall(sock, verdict)
        if refusal is not None:
            raise refusal

    def close(self) -> None:
        while self._socks:
            sock = self._socks.pop()
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for task in list(self._strangers):
            task.cancel()
        self._refusals.summarise()
