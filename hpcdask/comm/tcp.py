"""TCP connections.

They use the socket themselves instead of an asyncio transport: `sendmsg` sends a list of buffers
without joining them (the transport of Python 3.11 copies what the kernel does not take at once),
and `recv_into` fills large buffers in place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from hpcdask.comm import liveness
from hpcdask.comm.addresses import Address
from hpcdask.comm.base import Comm, log
from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError, HandshakeError, ProtocolError
from hpcdask.messages import Message
from hpcdask.threads import in_thread
from hpcdask.wire import codec, compression, framing, handshake

#: Small frames are read through one buffer for all connections of a thread: a thousand workers
#: with one each would cost 256 MB.
_SCRATCH_SIZE = 256 * 1024
_of_thread = threading.local()
#: Seconds for which one connection is read before others get their turn, what its messages cause
#: included.
_READING = 0.005
#: Writes of one connection before others get their turn.
_WRITES_PER_TURN = 16
#: Most bytes and buffers of one of them: within one machine a call goes on, and the loop with it
#: stands still, as long as the other end keeps up.
_PER_CALL = 2**20
_BUFFERS_PER_CALL = 64
#: `drained` waits while more than this is queued, in bytes.
_HIGH_WATER = 16 * 2**20
_MESSAGES_PER_FRAME = 4096
#: Seconds of dialling in vain after which that is told for the first time.
_REPORT_AFTER = 5.0
#: Seconds that a closing connection may wait for the peer without getting on.
_LINGER = 5.0
#: Questions to an idle peer that may stay unanswered before it is given up.
_QUESTIONS = 4


class TCPComm(Comm):
    """An authenticated connection over a non-blocking socket."""

    def __init__(self, sock: socket.socket, options: CommOptions) -> None:
        super().__init__()
        self._sock = sock
        self._options = options
        self.patience = options.tcp_timeout
        self.local, self.peer = name_of(sock.getsockname()), name_of(sock.getpeername())
        self.same_host = _is_same_host(sock.getsockname()[0], sock.getpeername()[0])
        self._codec = None if self.same_host else _codec(options.compression)
        self.compresses = self._codec is not None
        self._reader = framing.FrameReader(options.limits)
        if not hasattr(_of_thread, "scratch"):
            _of_thread.scratch = memoryview(bytearray(_SCRATCH_SIZE))
        self._scratch: memoryview = _of_thread.scratch
        self._queue: deque[memoryview] = deque()
        self._queued = 0  # bytes
        self._writing = False
        self._packing = False  # a thread compresses; `_behind` has to wait for it
        self._behind: list[Message] = []
        self._unpacking = False  # a thread decompresses; what was read after it has to wait
        self._paused = False
        self._read_ahead: deque[framing.Frame] = deque()
        self._linger: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._loop.add_reader(sock.fileno(), self._read_ready)
        liveness.watch(self, sock)

    # -- Reading -------------------------------------------------------------------------------

    def _read_ready(self) -> None:
        try:
            end = perf_counter() + _READING
            while self._read_once() and perf_counter() < end:
                pass
        except (BlockingIOError, InterruptedError):
            return
        except ProtocolError as exc:
            self._complain(exc)
        except OSError as exc:
            self._end(f"{exc.strerror or exc}")

    def _complain(self, exc: ProtocolError) -> None:
        log.warning("closed the connection of %s: %s", self.peer, exc)
        self.abort(f"protocol error: {exc}")

    def _read_once(self) -> bool:
        """Read what is there; say whether there may be more."""
        target = self._reader.target
        room = self._scratch if target is None else target[:_PER_CALL]
        nbytes = self._sock.recv_into(room)
        if not nbytes:
            self._end("closed by the other side")
            return False
        self.progress += nbytes
        read = self._reader
        for frame in read.feed(room[:nbytes]) if target is None else read.filled(nbytes):
            if self._unpacking:  # the next read may overwrite where it lies
                self._read_ahead.append(frame._replace(control=bytes(frame.control)))
            else:
                self._take(frame)
            if self.closed:
                return False
        return nbytes == len(room) and self._reads

    def _take(self, frame: framing.Frame) -> None:
        """Deliver a frame, at once or when a thread has decompressed it."""
        if frame.nbytes_to_unpack >= compression.LONG:
            self._unpacking = True
            self._listen_or_not()
            in_thread(framing.unpacked, frame).add_done_callback(self._unpacked)
            return
        if frame.compressed:
            frame = framing.unpacked(frame)
        self._deliver(codec.decode(frame.control, frame.buffers))

    def _unpacked(self, unpacking: asyncio.Future[framing.Frame]) -> None:
        """Go on reading."""
        self._unpacking = False
        self.progress += 1
        problem = unpacking.exception()
        if self.closed:
            return
        try:
            if problem is not None:
                raise ProtocolError(str(problem))
            frame = unpacking.result()
            self._deliver(codec.decode(frame.control, frame.buffers))
            while self._read_ahead and not self._unpacking and not self.closed:
                self._take(self._read_ahead.popleft())
        except ProtocolError as exc:
            self._complain(exc)
        self._listen_or_not()

    @property
    def _reads(self) -> bool:
        return not (self._unpacking or self._paused)

    def _listen_or_not(self) -> None:
        if self.closed:
            return
        if self._reads:
            self._loop.add_reader(self._sock.fileno(), self._read_ready)
        else:
            self._loop.remove_reader(self._sock.fileno())

    def pause(self) -> None:
        self._paused = True
        self._listen_or_not()

    def resume(self) -> None:
        self._paused = False
        self._listen_or_not()

    def _discard_ready(self) -> None:
        """Read what the peer still says to a connection that we are closing.

        A socket that is closed with bytes unread resets the connection, and what we sent last
        may then never reach the peer.
        """
        try:
            if not self._sock.recv_into(self._scratch):
                self._free()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._free()

    # -- Writing -------------------------------------------------------------------------------

    def _transmit(self, messages: list[Message]) -> None:
        if self._packing:
            self._behind += messages
            return
        try:
            for start in range(0, len(messages), _MESSAGES_PER_FRAME):
                control, buffers = codec.encode(messages[start : start + _MESSAGES_PER_FRAME])
                if self._codec and framing.compressible(buffers) >= compression.LONG:
                    self._behind = messages[start + _MESSAGES_PER_FRAME :]
                    self._pack(control, buffers)
                    break
                self._enqueue(
                    framing.frame_parts(control, buffers, self._options.limits, self._codec)
                )
        except ProtocolError as exc:
            self._cannot_send(exc)
            return
        if not self._writing:
            self._write_ready()

    def _cannot_send(self, problem: BaseException) -> None:
        log.error("cannot send to %s: %s", self.peer, problem)
        self.abort(str(problem))

    def _enqueue(self, parts: Iterable[compression.Buffer]) -> None:
        for part in parts:
            view = memoryview(part).cast("B")
            self._queue.append(view)
            self._queued += len(view)

    def _pack(self, control: bytes, buffers: list[compression.Buffer]) -> None:
        """Let a thread compress; what is sent meanwhile lines up behind."""
        self._packing = True
        nbytes = sum(map(len, buffers))
        self._queued += nbytes
        packing = in_thread(
            framing.frame_parts, control, buffers, self._options.limits, self._codec
        )
        packing.add_done_callback(partial(self._packed, nbytes))

    def _packed(self, nbytes: int, packing: asyncio.Future[list[compression.Buffer]]) -> None:
        self._packing = False
        problem = packing.exception()
        if self._ended.done():
            return
        self._queued -= nbytes
        if problem is not None:
            self._cannot_send(problem)
            return
        self._enqueue(packing.result())
        behind, self._behind = self._behind, []
        self._transmit(behind)

    def _write_ready(self) -> None:
        queued_before = self._queued
        try:
            for _ in range(_WRITES_PER_TURN):
                if not self._queue:
                    break
                sent = self._sock.sendmsg(self._next_parts())
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
            pass
        except OSError as exc:
            self._end(f"{exc.strerror or exc}")
            return
        if self._writing:  # the kernel had no room, so the peer has taken something
            self.progress += queued_before - self._queued
        if self._queue and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._write_ready)
        elif self._writing and not self._queue:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = bool(self._queue)
        if self.closed and not self._queue and not self._packing:
            self._say_goodbye()
        if self._drained is not None and self._queued <= _HIGH_WATER // 2:
            self._wake_drained()

    def _next_parts(self) -> list[memoryview]:
        """What of the queue goes into one call."""
        parts, room = [], _PER_CALL
        for part in islice(self._queue, _BUFFERS_PER_CALL):
            parts.append(part[:room])
            room -= len(part)
            if room <= 0:
                break
        return parts

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
        if self.closed:
            return
        self._on_closed = None
        self._flush()
        if self._ended.done():  # that failed
            return
        self._has_ended(CommClosedError(f"connection with {self.peer}: closed"))
        self._wake_drained()
        self._loop.add_reader(self._sock.fileno(), self._discard_ready)
        self._linger = self._loop.call_later(_LINGER, self._lingered, self._queued)
        if not self._queue and not self._packing:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        """All is sent: say so; the peer closes its end when it has read that far."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._free()

    def _lingered(self, queued_before: int) -> None:
        if self._queued < queued_before or self._packing:
            self._linger = self._loop.call_later(_LINGER, self._lingered, self._queued)
        else:
            self._free()

    def abort(self, reason: str) -> None:
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._has_ended(CommClosedError(f"connection with {self.peer}: {reason}"))
        self._free()

    def _free(self) -> None:
        if self._ended.done():
            return
        self._ended.set_result(None)
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        if self._linger is not None:
            self._linger.cancel()
        self._queue.clear()
        self._behind.clear()
        self._read_ahead.clear()
        self._queued = 0
        self._wake_drained()
        self._sock.close()


def _codec(name: str | None) -> compression.Codec | None:
    codecs = compression.available() if name else {}
    return next(iter(codecs.values()), None) if name == "auto" else codecs.get(name or "")


def name_of(sockname: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return str(Address("tcp", sockname[0], sockname[1]))


def _is_same_host(local: str, peer: str) -> bool:
    # Debian calls the machine itself 127.0.1.1, and who dials that does so from 127.0.0.1.
    return local == peer or (local.startswith("127.") and peer.startswith("127."))


def keepalive(patience: float) -> dict[str, int]:
    """When the kernel asks an idle peer whether it is there, to give it up after `patience`.

    In whole seconds, as it counts them: 10 s of silence before the first question, and 5 s between
    two of them, if it is to be 30 s.
    """
    most = 32767  # that Linux takes, nine hours
    idle = min(max(round(patience / 3), 1), most)
    pause = min(max(round((patience - idle) / _QUESTIONS), 1), most)
    return {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": pause, "TCP_KEEPCNT": _QUESTIONS}


def configure(sock: socket.socket, options: CommOptions) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A cable that is pulled sends no FIN: probe silent peers. Those that owe us a confirmation are
    # not probed; `liveness` looks after them.
    for option, value in keepalive(options.tcp_timeout).items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


# -- Dialling -------------------------------------------------------------------------------------


async def connect(
    address: Address,
    options: CommOptions,
    timeout: float,
    was_there: bool = False,
    report: Report | None = None,
) -> TCPComm:
    """Open a connection within `timeout` seconds; see `hpcdask.comm.connect`."""
    host = address.host or "127.0.0.1"
    started = time.monotonic()
    deadline, next_report = started + timeout, started + _REPORT_AFTER
    pause, problem = 0.01, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        if report is not None and time.monotonic() >= next_report:
            report(problem, left)
            next_report = 2 * time.monotonic() - started  # ever more rarely
        try:
            infos: Sequence[_AddressInfo] = await asyncio.wait_for(
                _resolve(host, address.port), left
            )
        except asyncio.TimeoutError:
            problem = "its name is not resolved in time"
            break
        except socket.gaierror as exc:
            problem = f"its name cannot be resolved: {exc.strerror}"
            infos = ()
        for number, info in enumerate(infos):
            # An even share of the time for each: the first may be one that swallows all packets.
            share = (deadline - time.monotonic()) / (len(infos) - number)
            # To say what is wrong, we have to know it. The kernel would ask again as rarely.
            in_vain = share if report is None else min(share, _REPORT_AFTER)
            try:
                return await _dial(info, options, max(in_vain, 0.01), max(share, 0.01))
            except (SilenceError, HandshakeError) as exc:
                if isinstance(exc, HandshakeError) or info is infos[-1]:
                    raise type(exc)(f"cannot connect to {address}: {exc}") from None
                problem = str(exc)
            except asyncio.TimeoutError:
                problem = "no answer"
            except OSError as exc:
                problem = os.strerror(exc.errno) if exc.errno else str(exc) or problem
                if was_there and isinstance(exc, ConnectionRefusedError):
                    raise CommClosedError(f"cannot reach {address}: {problem}") from None
        # Nobody there yet: during start-up that is ordinary, so ask again, ever more slowly.
        await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(pause * 1.5, 1.0)
    # Of what the user has given, some may have passed before.
    limit = round(timeout, 1 if timeout > 0.1 else 2)
    raise CommClosedError(f"cannot reach {address} within {limit:g} s: {problem}")


class SilenceError(CommClosedError):
    """Somebody accepts the connection and then says nothing: trying again would be the same."""


#: Is told what is wrong, and for how many seconds more it is tried.
Report = Callable[[str, float], None]


_AddressInfo = tuple[Any, ...]  # as of getaddrinfo


async def _resolve(host: str, port: int) -> Sequence[_AddressInfo]:
    kind = socket.SOCK_STREAM
    try:
        return socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # it is a name, which takes a thread and perhaps seconds
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)


async def _dial(
    info: _AddressInfo, options: CommOptions, in_vain: float, timeout: float
) -> TCPComm:
    """Try one address once: `in_vain` seconds if nobody accepts, `timeout` for all of it."""
    family, kind, proto, _, sockaddr = info
    deadline = time.monotonic() + timeout
    sock = socket.socket(family, kind, proto)
    try:
        configure(sock, options)
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_connect(sock, sockaddr), in_vain)
        if sock.getsockname() == sock.getpeername():
            # TCP lets a socket connect to itself if the port it dials is the one it was given.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
        patience = min(max(deadline - time.monotonic(), 0.01), options.handshake_timeout)
        try:
            await asyncio.wait_for(_prove(sock, options), patience)
        except asyncio.TimeoutError:
            raise SilenceError(
                f"it accepts connections but has not answered within {round(patience, 2):g} s; "
                "is it hpcdask?"
            ) from None
        return TCPComm(sock, options)
    except BaseException:
        sock.close()
        raise


async def _prove(sock: socket.socket, options: CommOptions) -> None:
    loop = asyncio.get_running_loop()
    dialler = handshake.Dialler(options.token)
    try:
        await loop.sock_sendall(sock, dialler.hello())
        challenge = await read_prefix(sock, handshake.CHALLENGE_LENGTH, handshake.NAME)
        await loop.sock_sendall(sock, dialler.challenged(challenge))
        dialler.concluded(await read_prefix(sock, 1))
    except EOFError:
        # A listener that is overrun hangs up on some, so this is worth another try.
        raise ConnectionResetError("it hung up during the handshake; is it hpcdask?") from None


async def read_prefix(sock: socket.socket, length: int, prefix: bytes = b"") -> bytes:
    """Read `length` bytes, but stop as soon as they cannot begin with `prefix`."""
    data = b""
    while len(data) < length and data[: len(prefix)] == prefix[: len(data)]:
        piece = await asyncio.get_running_loop().sock_recv(sock, length - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {length} bytes")
        data += piece
    return data
