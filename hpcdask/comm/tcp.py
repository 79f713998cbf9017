"""TCP connections.

They use the socket themselves instead of an asyncio transport: `sendmsg` sends a list of buffers
without joining them (the transport of Python 3.11 copies what the kernel does not take at once),
and `recv_into` fills large buffers in place.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from hpcdask.comm.addresses import Address
from hpcdask.comm.base import Comm, Listener, OnComm, log
from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError, HandshakeError, ProtocolError
from hpcdask.messages import Message
from hpcdask.wire import codec, compression, framing, handshake

#: Small frames are read through one buffer for all connections of a thread: a thousand workers
#: with one each would cost 256 MB.
_SCRATCH_SIZE = 256 * 1024
_of_thread = threading.local()
#: Reads of one connection before others get their turn.
_READS_PER_TURN = 16
#: `drained` waits while more than this is queued, in bytes.
_HIGH_WATER = 16 * 2**20
_MESSAGES_PER_FRAME = 4096
#: Seconds that a closing connection may take to send the rest.
_LINGER = 5.0
#: Connections that have not proven themselves yet; beyond, the oldest is dropped.
_MAX_STRANGERS = 512


class TCPComm(Comm):
    """An authenticated connection over a non-blocking socket."""

    def __init__(self, sock: socket.socket, options: CommOptions) -> None:
        super().__init__()
        self._sock = sock
        self._options = options
        self.local, self.peer = _name(sock.getsockname()), _name(sock.getpeername())
        self.same_host = sock.getsockname()[0] == sock.getpeername()[0]
        self._codec = None if self.same_host else _codec(options.compression)
        self._reader = framing.FrameReader(options.limits)
        if not hasattr(_of_thread, "scratch"):
            _of_thread.scratch = memoryview(bytearray(_SCRATCH_SIZE))
        self._scratch: memoryview = _of_thread.scratch
        self._queue: deque[memoryview] = deque()
        self._queued = 0  # bytes
        self._writing = self._closing = False
        self._drained: asyncio.Future[None] | None = None
        self._loop.add_reader(sock.fileno(), self._read_ready)

    # -- Reading -------------------------------------------------------------------------------

    def _read_ready(self) -> None:
        try:
            for _ in range(_READS_PER_TURN):
                if self.closed or not self._read_once():
                    return
        except (BlockingIOError, InterruptedError):
            return
        except ProtocolError as exc:
            log.warning("closed the connection of %s: %s", self.peer, exc)
            self.abort(f"protocol error: {exc}")
        except OSError as exc:
            self._end(f"{exc.strerror or exc}")

    def _read_once(self) -> bool:
        """Read what is there; say whether there may be more."""
        target = self._reader.target
        room = self._scratch if target is None else target
        nbytes = self._sock.recv_into(room)
        if not nbytes:
            self._end("closed by the other side")
            return False
        read = self._reader
        for frame in read.feed(room[:nbytes]) if target is None else read.filled(nbytes):
            self._deliver(codec.decode(frame.control, frame.buffers))
        return nbytes == len(room)

    # -- Writing -------------------------------------------------------------------------------

    def _transmit(self, messages: list[Message]) -> None:
        try:
            for start in range(0, len(messages), _MESSAGES_PER_FRAME):
                control, buffers = codec.encode(messages[start : start + _MESSAGES_PER_FRAME])
                parts = framing.frame_parts(control, buffers, self._options.limits, self._codec)
                for part in parts:
                    view = memoryview(part).cast("B")
                    self._queue.append(view)
                    self._queued += len(view)
        except ProtocolError as exc:
            log.error("cannot send to %s: %s", self.peer, exc)
            self.abort(str(exc))
            return
        if not self._writing:
            self._write_ready()

    def _write_ready(self) -> None:
        try:
            while self._queue:
                sent = self._sock.sendmsg(list(islice(self._queue, 64)))
                self._queued -= sent
                while sent:
                    first = self._queue[0]
                    if sent < len(first):
                        self._queue[0] = first[sent:]
                        break
                    sent -= len(first)
                    self._queue.popleft()
                while self._queue and not len(self._queue[0]):
                    self._queue.popleft()
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock.fileno(), self._write_ready)
        except OSError as exc:
            self._end(f"{exc.strerror or exc}")
            return
        else:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._sock.fileno())
            if self._closing:
                self._end("closed")
        if self._drained is not None and self._queued <= _HIGH_WATER // 2:
            self._wake_drained()

    def _wake_drained(self) -> None:
        waiting, self._drained = self._drained, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def drained(self) -> None:
        self._flush()
        while self._queued > _HIGH_WATER and not self.closed:
            if self._drained is None or self._drained.done():
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    # -- Ending --------------------------------------------------------------------------------

    def close(self) -> None:
        if self.closed or self._closing:
            return
        self._flush()
        self._on_closed = None
        if not self._queue:
            self._end("closed")
        elif not self.closed:
            self._closing = True
            self._loop.call_later(_LINGER, self._end, "closed")

    def abort(self, reason: str) -> None:
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self._has_ended(CommClosedError(f"connection with {self.peer}: {reason}"))
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._queue.clear()
        self._wake_drained()
        self._sock.close()
        if not self._ended.done():
            self._ended.set_result(None)


def _codec(name: str | None) -> compression.Codec | None:
    codecs = compression.available() if name else {}
    return next(iter(codecs.values()), None) if name == "auto" else codecs.get(name or "")


def _name(sockname: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return str(Address("tcp", sockname[0], sockname[1]))


def _configure(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A cable that is pulled sends no FIN: probe silent peers, and give up on unanswered data.
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)


# -- Dialling -------------------------------------------------------------------------------------


async def connect(address: Address, options: CommOptions, timeout: float) -> TCPComm:
    """Open a connection within `timeout` seconds; see `hpcdask.comm.connect`."""
    loop = asyncio.get_running_loop()
    host = address.host or "127.0.0.1"
    deadline = time.monotonic() + timeout
    pause, problem = 0.01, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            infos = await asyncio.wait_for(
                loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM), left
            )
            for family, kind, proto, _, sockaddr in infos:
                sock = socket.socket(family, kind, proto)
                try:
                    _configure(sock)
                    left = max(deadline - time.monotonic(), 0.01)
                    await asyncio.wait_for(loop.sock_connect(sock, sockaddr), left)
                    left = max(deadline - time.monotonic(), 0.01)
                    await asyncio.wait_for(_prove(sock, options), left)
                    return TCPComm(sock, options)
                except BaseException as exc:
                    sock.close()
                    if not isinstance(exc, OSError) or isinstance(exc, HandshakeError):
                        raise
                    problem = exc.strerror or str(exc) or problem
        except asyncio.TimeoutError:
            break
        except socket.gaierror as exc:
            problem = f"its name cannot be resolved: {exc.strerror}"
        # Nobody there yet: during start-up that is ordinary, so ask again, ever more slowly.
        await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(pause * 1.5, 1.0)
    raise CommClosedError(f"cannot reach {address} within {timeout:g} s: {problem}")


async def _prove(sock: socket.socket, options: CommOptions) -> None:
    loop = asyncio.get_running_loop()
    dialler = handshake.Dialler(options.token)
    try:
        await loop.sock_sendall(sock, dialler.hello())
        challenge = await _read_exactly(sock, handshake.CHALLENGE_LENGTH)
        await loop.sock_sendall(sock, dialler.challenged(challenge))
        dialler.concluded(await _read_exactly(sock, 1))
    except EOFError:
        raise HandshakeError("the listener hung up during the handshake; is it hpcdask?") from None


async def _read_exactly(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < length:
        piece = await loop.sock_recv(sock, length - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {length} bytes")
        data += piece
    return data


# -- Listening ------------------------------------------------------------------------------------


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
        errno.EADDRINUSE: "it is in use; choose another with --port, or 0 for any free one",
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
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._strangers: dict[asyncio.Task[None], socket.socket] = {}
        self._refusals = RefusalLog(self._loop.time)
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
            if len(self._strangers) >= _MAX_STRANGERS:
                next(iter(self._strangers)).cancel()
            task = self._loop.create_task(self._welcome(sock, _name(sockname)))
            self._strangers[task] = sock
            task.add_done_callback(lambda done: self._strangers.pop(done, None))

    def _pause(self, listening: socket.socket, exc: OSError) -> None:
        """Out of file descriptors, as a rule: accepting again at once would only spin."""
        log.error("cannot accept connections on %s for now: %s", self.address, exc.strerror)
        self._loop.remove_reader(listening.fileno())

        def resume() -> None:
            if listening.fileno() >= 0:
                self._loop.add_reader(listening.fileno(), self._accept_ready, listening)

        self._loop.call_later(1.0, resume)

    async def _welcome(self, sock: socket.socket, peer: str) -> None:
        """Let one stranger prove itself, or close its connection."""
        timeout = self._options.handshake_timeout
        try:
            _configure(sock)
            await asyncio.wait_for(self._examine(sock), timeout)
            comm = TCPComm(sock, self._options)
        except asyncio.CancelledError:
            sock.close()
            self._refusals.note(peer, "too many connections without a handshake")
            raise
        except (OSError, EOFError, asyncio.TimeoutError) as exc:
            sock.close()
            reason = str(exc)
            if isinstance(exc, (asyncio.TimeoutError, TimeoutError)):
                reason = f"no handshake within {timeout:g} s"
            elif isinstance(exc, EOFError):
                reason = f"it hung up during the handshake, after {exc}"
            self._refusals.note(peer, reason)
        else:
            self._on_comm(comm)

    async def _examine(self, sock: socket.socket) -> None:
        listener = handshake.Listener(self._options.token)
        hello = await _read_prefix(sock, handshake.HELLO_LENGTH, handshake.MAGIC)
        challenge, refusal = listener.greeted(hello)
        await self._loop.sock_sendall(sock, challenge)
        if refusal is None:
            proof = await _read_exactly(sock, handshake.PROOF_LENGTH)
            verdict, refusal = listener.proven(proof)
            await self._loop.sock_sendall(sock, verdict)
        if refusal is not None:
            raise refusal

    def close(self) -> None:
        for sock in self._socks:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for task in list(self._strangers):
            task.cancel()


async def _read_prefix(sock: socket.socket, length: int, prefix: bytes) -> bytes:
    """Read `length` bytes, but stop as soon as they cannot begin with `prefix`."""
    data = b""
    while len(data) < length and data[: len(prefix)] == prefix[: len(data)]:
        piece = await asyncio.get_running_loop().sock_recv(sock, length - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {length} bytes")
        data += piece
    return data


class RefusalLog:
    """One line per refused connection, but no more than a burst of 20, then 2 a second.

    A line that tells how many were left out follows when there is room again.
    """

    def __init__(self, clock: Callable[[], float], burst: int = 20, rate: float = 2.0) -> None:
        self._clock, self._burst, self._rate = clock, burst, rate
        self._room, self._at, self._left_out = float(burst), clock(), 0

    def note(self, peer: str, reason: str) -> None:
        """Log one refusal, or count it."""
        now = self._clock()
        self._room = min(self._burst, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            log.warning("refused %d more connections since the last such line", self._left_out)
            self._left_out = 0
        log.warning("refused a connection from %s: %s", peer, reason)
