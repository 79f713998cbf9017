"""How the ranks of one doctor find each other, even where the network between them is broken.

Rank 0 writes a scheduler file of its own, with all its addresses, into the folder that is looked at
and into the user's configuration folder; one that works is enough. A rank that sees it and cannot
reach any of the addresses leaves its facts beside it, in a letter, so that rank 0 can tell which
host cannot reach it and why. Both kinds of file have mode 0600: the first holds a token, made for
this examination alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from hpcdask._version import __version__
from hpcdask.comm import Comm
from hpcdask.comm.addresses import parse_address
from hpcdask.doctor.facts import Attempt, RankFacts
from hpcdask.doctor.line import Line
from hpcdask.doctor.options import DoctorOptions
from hpcdask.doctor.station import Station, reason_of
from hpcdask.errors import (
    CommClosedError,
    HandshakeError,
    HpcdaskError,
    InterfaceNotFoundError,
    LaunchError,
)
from hpcdask.launchers.file_ranks import as_file_name
from hpcdask.messages import PROTOCOL_VERSION, Refused, Registered
from hpcdask.messages.doctor import RegisterRank
from hpcdask.network import address_towards
from hpcdask.rendezvous import (
    Contact,
    SchedulerFileReader,
    make_private_folder,
    read_private,
    remove_scheduler_file,
    replace_private,
    token_path,
    wait_for_contact,
    write_scheduler_file,
)
from hpcdask.threads import in_thread
from hpcdask.world import World

T = TypeVar("T")

#: Seconds for one address of rank 0, and between two looks at files.
ONE_DIAL, PAUSE = 3.0, 0.5
#: Seconds for a file to be written or looked at.
_FILE_PATIENCE = 10.0
#: Looks at the contact before rank 0 is called on once more.
_LOOKS_PER_CALL = 10


def contact_paths(options: DoctorOptions, world: World) -> list[Path]:
    """Where rank 0 says where it is."""
    plain = as_file_name(world.launch_id)
    name = f"hpc-dask-doctor-{plain or 'run'}.json"
    folders = (Path(options.folder), token_path().parent)
    return list(dict.fromkeys(folder / name for folder in folders))


async def with_patience(function: Callable[..., T], *args: Any) -> T:
    """Call what touches files, in a thread: a file server that is gone must not hold us up.

    Raises
    ------
    TimeoutError
        If it does not end in time.
    """
    try:
        return await asyncio.wait_for(in_thread(function, *args), _FILE_PATIENCE)
    except asyncio.TimeoutError:
        raise TimeoutError(f"no answer within {_FILE_PATIENCE:g} s") from None


# -- Rank 0 ---------------------------------------------------------------------------------------


def new_contact(addresses: Sequence[str], token: bytes) -> Contact:
    """The contact of an examination that begins."""
    return Contact(
        type="Doctor",
        id=f"Doctor-{os.urandom(8).hex()}",
        address=",".join(addresses),
        dashboard="",
        token=token,
        started=time.time(),
        version=__version__,
        host=socket.gethostname(),
        pid=os.getpid(),
        job="",
    )


class Reception:
    """Rank 0 at the meeting: it lets ranks in, and reads letters of those who cannot come.

    Parameters
    ----------
    paths : sequence of Path
        Where to say where we are.
    world : World
        Of this launch.

    Attributes
    ----------
    ranks : dict
        What each rank has said of itself, those by letter too.
    lines : dict
        Connections with the ranks that lead a host, by rank.
    by_letter : set of int
        Ranks that could not come.
    problems : list of str
        Why a contact could not be written.
    """

    def __init__(self, paths: Sequence[Path], world: World) -> None:
        self.ranks: dict[int, RankFacts] = {}
        self.lines: dict[int, Line] = {}
        self.by_letter: set[int] = set()
        self.problems: list[str] = []
        self.contact: Contact | None = None
        self._is_over = False
        self._paths, self._world = paths, world
        self._writing: dict[Path, asyncio.Future[None]] = {}

    async def open(self, contact: Contact) -> None:
        """Say where we are, in as many of the places as possible."""
        self.contact = contact
        for path in self._paths:
            writing = asyncio.ensure_future(with_patience(_write_contact, path, contact))
            self._writing[path] = writing
            try:
                # Shielded: a write that is given up half-way would leave its file behind.
                await asyncio.shield(writing)
            except (HpcdaskError, OSError) as exc:
                self.problems.append(f"{path}: {exc}")

    async def close(self) -> None:
        """Remove what we have written, and the letters."""
        for path, writing in self._writing.items():
            assert self.contact is not None
            with suppress(HpcdaskError, OSError):
                await writing
                await with_patience(_remove, path, self.contact.id)

    def on_register(self, line: Line, message: RegisterRank) -> None:
        """Let a rank in; of each host one stays, the others have said all that they know."""
        reason = self._why_not(message)
        if reason or self.contact is None:
            line.comm.send(Refused(reason or "not yet"))
            line.close()
            return
        found = plain(message.found)
        self.ranks[message.rank] = found
        self.by_letter.discard(message.rank)
        line.comm.send(Registered(self.contact.id, 0.0))
        leads = found["is_leader"] and not any(
            self.ranks[rank]["identity"] == found["identity"] for rank in self.lines
        )
        if leads and found["identity"] != self.ranks[0]["identity"]:
            self.lines[message.rank] = line
        else:
            line.close()

    def _why_not(self, message: RegisterRank) -> str:
        here = self._world
        if message.protocol != PROTOCOL_VERSION:
            return (
                f"it speaks version {message.protocol} of the protocol and rank 0 version "
                f"{PROTOCOL_VERSION}: install the same hpcdask on all hosts"
            )
        if message.size != here.size or not 0 < message.rank < here.size:
            return (
                f"it is rank {message.rank} of {message.size} and not one of this launch, which "
                f"has {here.size}"
            )
        if self._is_over:
            return "the examination has begun without it; give it a longer --timeout"
        if message.rank in self.ranks and message.rank not in self.by_letter:
            return f"there is a rank {message.rank} already: two launches share a folder"
        return ""

    async def all_there(self, timeout: float) -> None:
        """Wait until all have come or written, or the time is over."""
        deadline = time.monotonic() + timeout
        next_look = time.monotonic() + PAUSE
        while len(self.ranks) < self._world.size and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            if time.monotonic() >= next_look:
                await self._read_letters()
                next_look = time.monotonic() + PAUSE
        self._is_over = True

    async def _read_letters(self) -> None:
        for path in self._writing:
            with suppress(OSError):
                for letter in await with_patience(_letters, path):
                    self._open(letter)

    def _open(self, letter: Mapping[str, Any]) -> None:
        assert self.contact is not None
        rank = letter.get("rank")
        is_new = isinstance(rank, int) and 0 < rank < self._world.size and rank not in self.ranks
        if is_new and letter.get("contact") == self.contact.id:
            assert isinstance(rank, int)
            self.ranks[rank] = cast(RankFacts, letter["found"])
            self.by_letter.add(rank)


def _write_contact(path: Path, contact: Contact) -> None:
    if path.parent == token_path().parent:
        make_private_folder(path.parent)
    write_scheduler_file(path, contact)


def _remove(path: Path, id: str) -> None:
    remove_scheduler_file(path, id)
    for letter in path.parent.glob(f"{path.name}.rank-*"):
        letter.unlink(missing_ok=True)


def _letter_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank-{rank}")


def _letters(path: Path) -> list[dict[str, Any]]:
    """Letters beside a contact. Each is gone then: that tells its writer that it was read."""
    found = []
    for letter in path.parent.glob(f"{path.name}.rank-*"):
        with suppress(OSError, ValueError):  # another user's, or no letter
            content = json.loads(read_private(letter))
            letter.unlink()
            if isinstance(content, dict):
                found.append(content)
    return found


def plain(value: Any) -> Any:
    """`value` as JSON has it, whichever way it came: MessagePack makes tuples of lists."""
    return json.loads(json.dumps(value))


# -- The other ranks ------------------------------------------------------------------------------


class Guest:
    """A rank other than 0 at the meeting.

    Parameters
    ----------
    paths : sequence of Path
        Where rank 0 may say where it is.
    world : World
        Of this launch.
    found : RankFacts
        What it has to say.
    ports : sequence of int
        Where it listens, 0 for any.
    """

    def __init__(
        self, paths: Sequence[Path], world: World, found: RankFacts, ports: Sequence[int]
    ) -> None:
        self._paths, self._world, self._found, self._ports = paths, world, found, ports
        # Rank 0 can let in some hundreds in a second.
        self._one_dial = ONE_DIAL + world.size / 500

    async def take_part(self, timeout: float) -> str:
        """Find rank 0 and do what it asks until it ends the examination.

        Parameters
        ----------
        timeout : float
            Seconds to find it; then as many to be examined.

        Returns
        -------
        str
            Why that was not possible; empty if it was, or if rank 0 at least knows why not.
        """
        deadline = time.monotonic() + timeout
        problem = ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                path, contact = await _first_contact(self._paths, left)
            except HpcdaskError as exc:
                return problem or str(exc)
            problem = await self._visit(path, contact, deadline, timeout)
            if not problem:
                break
        return problem

    async def _visit(self, path: Path, contact: Contact, deadline: float, timeout: float) -> str:
        """Go to rank 0 and stay to the end, or write to it; return why neither was possible."""
        station = Station(self._found["identity"], contact.token)
        letter = _letter_path(path, self._world.rank)
        is_written = False
        try:
            self._found["ports"] = await station.listen(self._ports)
            self._found["towards"] = _own_address_towards(contact)
            while True:
                comm, attempts = await self._call_on(station, contact)
                if comm is not None:
                    line = station.talk(comm)
                    await asyncio.wait({line.ended}, timeout=timeout)
                    return ""
                self._found["attempts"] = attempts
                is_written = is_written or await self._write(letter, contact.id)
                # Meanwhile others may try to reach us.
                for _ in range(_LOOKS_PER_CALL):
                    await asyncio.sleep(PAUSE)
                    if not await _is_there(path, contact.id):
                        is_read = is_written and not letter.exists()
                        return "" if is_read else _unreachable(contact, attempts)
                if time.monotonic() > deadline:
                    return _unreachable(contact, attempts)
        finally:
            await station.close()
            if is_written:
                with suppress(OSError):
                    letter.unlink(missing_ok=True)

    async def _call_on(
        self, station: Station, contact: Contact
    ) -> tuple[Comm | None, list[Attempt]]:
        """Try all addresses of rank 0 until one lets us in."""
        attempts: list[Attempt] = []
        for address in contact.address.split(","):
            try:
                return await self._register(station, address, contact.id), attempts
            except (CommClosedError, HandshakeError) as exc:
                reason = reason_of(exc, self._one_dial)
                attempts.append({"address": address, "reason": reason})
        return None, attempts

    async def _register(self, station: Station, address: str, id: str) -> Comm:
        comm = await station.dial(address, self._one_dial)
        here = self._world
        comm.send(RegisterRank(here.rank, here.size, PROTOCOL_VERSION, self._found))
        try:
            answer = await asyncio.wait_for(comm.receive(), self._one_dial)
            if type(answer) is Refused:
                raise LaunchError(f"rank 0 refuses rank {here.rank}: {answer.reason}")
            if type(answer) is not Registered or answer.scheduler_id != id:
                raise CommClosedError("rank 0: somebody else answers there")
        except asyncio.TimeoutError:
            comm.close()
            raise CommClosedError("rank 0: it connects, but does not answer") from None
        except BaseException:
            comm.close()
            raise
        return comm

    async def _write(self, letter: Path, id: str) -> bool:
        content = json.dumps({"rank": self._world.rank, "contact": id, "found": self._found})
        try:
            await with_patience(replace_private, letter, content)
        except OSError:  # then rank 0 only sees that we do not come
            return False
        return True


def _own_address_towards(contact: Contact) -> str:
    """What a worker here would advertise: the address from which it reaches the scheduler."""
    target = parse_address(contact.address.partition(",")[0])
    try:
        return address_towards(target.host, target.port)
    except InterfaceNotFoundError:  # there is no way, which dialling tells better
        return ""


def _unreachable(contact: Contact, attempts: Iterable[Attempt]) -> str:
    tried = "; ".join(f"{each['address']}: {each['reason']}" for each in attempts)
    return f"cannot reach rank 0 on {contact.host}: {tried}"


async def _first_contact(paths: Sequence[Path], timeout: float) -> tuple[Path, Contact]:
    """The contact that appears first in one of the places."""
    waits = {
        asyncio.ensure_future(wait_for_contact(path, timeout, log=lambda text: None)): path
        for path in paths
    }
    try:
        running = set(waits)
        problem: BaseException | None = None
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                problem = each.exception()
                if problem is None:
                    return waits[each], each.result()
        assert problem is not None
        raise problem
    finally:
        for each in waits:
            each.cancel()
        await asyncio.wait(waits)


async def _is_there(path: Path, id: str) -> bool:
    """Whether the contact in a place is still that of the examination `id`."""
    reader = SchedulerFileReader(path)
    try:
        contact = await with_patience(reader.probe, time.time())
    except (HpcdaskError, OSError):
        return False
    return contact is not None and contact.id == id
