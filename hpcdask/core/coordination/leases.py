"""Leases of locks, of several locks at once, and of semaphores, in the order of asking.

Each of these names is a place that so many leases may hold at a time. A lease that needs several
places stands in the lines of all of them from one moment on. So the lines have one common order,
the oldest lease that waits never waits for one that waits itself, and none is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TypeAlias

from hpcdask.core.coordination.answers import Kind, Outbox, Ticket

#: Kind ("lock", "semaphore", ...) and name: a lock and a semaphore of one name are two things.
Name: TypeAlias = tuple[str, str]

#: Kinds whose places are there until they are closed; others are while somebody uses them.
LASTING = frozenset({"semaphore"})


class Lease:
    """Somebody's right, or wish, to hold `count` of some places."""

    __slots__ = ("count", "got", "names", "ticket")

    def __init__(self, ticket: Ticket, names: tuple[Name, ...], count: int) -> None:
        self.ticket, self.names, self.count = ticket, names, count
        self.got: list[Name] = []

    @property
    def is_granted(self) -> bool:
        return len(self.got) == self.count


class Place:
    """What at most `limit` leases hold at a time.

    Attributes
    ----------
    holders : dict of Lease
        Some may still wait for other places.
    waiting : OrderedDict of Lease
        In the order of their coming; empty while there is room, but for a pause.
    """

    __slots__ = ("holders", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.holders: dict[Lease, None] = {}
        self.waiting: OrderedDict[Lease, None] = OrderedDict()

    @property
    def has_room(self) -> bool:
        return len(self.holders) < self.limit


class Leases(Kind):
    """All leases, by the ticket of the request that asked for them."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.places: dict[Name, Place] = {}
        self.is_paused = False
        self._of_client: dict[str, dict[Ticket, Lease]] = {}

    # -- Events -----------------------------------------------------------------------------------

    def asked(
        self, ticket: Ticket, names: tuple[Name, ...], count: int, limit: int, declares: bool
    ) -> None:
        """A client wants to hold `count` of these.

        Parameters
        ----------
        limit : int
            Leases of each that may be held at a time; all who use it must say the same.
        declares : bool
            Whether a lasting place that is not there is made; else it was closed.

        Raises
        ------
        ValueError
            If the limit is another one, or `count` more than there are names.
        RuntimeError
            If it was closed.
        """
        names = tuple(dict.fromkeys(names))
        if limit < 1 or not 0 <= count <= len(names):
            raise ValueError(f"cannot hold {count} of {len(names)}, each {limit} times")
        for name in names:
            self._check(name, limit, declares)
        lease = self._add(ticket, names, count)
        for name in names:
            if lease.is_granted:
                break
            place = self._place(name, limit)
            if place.has_room and not self.is_paused:
                place.holders[lease] = None
                lease.got.append(name)
            else:
                place.waiting[lease] = None
        if lease.is_granted:
            self._granted(lease)

    def released(self, ticket: Ticket, request: int) -> None:
        """A client gives back the lease that it got by `request`."""
        lease = self._of_client.get(ticket.client, {}).get(Ticket(ticket.client, request))
        if lease is not None:
            self._end(lease)
        self.outbox.answer(ticket, lease is not None)

    def counted(self, ticket: Ticket, name: Name) -> None:
        """A client asks how many leases of a place are held."""
        place = self.places.get(name)
        self.outbox.answer(ticket, 0 if place is None else len(place.holders))

    def closed(self, ticket: Ticket, name: Name) -> None:
        """A client ends a semaphore, for all; the answer is how many leases of it were held."""
        place = self.places.pop(name, None)
        if place is None:
            self.outbox.answer(ticket, 0)
            return
        for lease in place.waiting:
            self._remove(lease)
            self.outbox.answer(lease.ticket, _closed(name))
        for lease in place.holders:
            self._remove(lease)
        self.outbox.answer(ticket, len(place.holders))

    def withdrawn(self, ticket: Ticket) -> None:
        """A client waits no longer for a lease, or did not take it."""
        lease = self._of_client.get(ticket.client, {}).get(ticket)
        if lease is not None:
            self._end(lease)

    def client_lost(self, client: str) -> None:
        """A client is gone for good."""
        for lease in list(self._of_client.get(client, {}).values()):
            self._end(lease)

    # -- After a return ---------------------------------------------------------------------------

    def kept(self, client: str, requests: Collection[int]) -> None:
        """A client is back, and holds, or waits for, the leases of these requests only."""
        for ticket, lease in list(self._of_client.get(client, {}).items()):
            if ticket.request not in requests:
                self._end(lease)

    def held_before(
        self, client: str, held: Mapping[int, tuple[tuple[Name, ...], int, int]]
    ) -> None:
        """A client holds these, by the request: names, count and limit, as for `asked`.

        From a scheduler before this one, or after a long absence. What has been given to others
        meanwhile is lost to it, and it gets to know that when it gives it back.
        """
        known = self._of_client.get(client, {})
        for request, (names, count, limit) in held.items():
            ticket = Ticket(client, request)
            free = [name for name in dict.fromkeys(names) if self._is_free(name, limit)]
            if ticket in known or len(free) < count:
                continue
            lease = self._add(ticket, names, count)
            lease.got = free[:count]
            for name in lease.got:
                self._place(name, limit).holders[lease] = None

    def pause(self) -> None:
        """Give no lease, since clients may come back that hold some already."""
        self.is_paused = True

    def go_on(self) -> None:
        """All are back: who has asked meanwhile gets what is free."""
        self.is_paused = False
        for name in list(self.places):
            if name in self.places:
                self._let_in(name)

    def _is_free(self, name: Name, limit: int) -> bool:
        place = self.places.get(name)
        return place is None or (place.has_room and place.limit == limit)

    # -- Places -----------------------------------------------------------------------------------

    def _check(self, name: Name, limit: int, declares: bool) -> None:
        place = self.places.get(name)
        if place is None and name[0] in LASTING and not declares:
            raise _closed(name)
        if place is not None and place.limit != limit:
            raise ValueError(
                f"{name[0]} {name[1]!r} is used with a limit of {place.limit} already, and not of "
                f"{limit}: use one limit, or another name"
            )

    def _place(self, name: Name, limit: int) -> Place:
        place = self.places.get(name)
        if place is None:
            place = self.places[name] = Place(limit)
        return place

    def _granted(self, lease: Lease) -> None:
        """It has what it needs, and stands in no further line."""
        for name in lease.names:
            place = self.places.get(name)
            if place is not None and lease in place.waiting:
                del place.waiting[lease]
                self._forget_unused(name)
        self.outbox.answer(lease.ticket, True)

    def _end(self, lease: Lease) -> None:
        """Leave all places and lines, and let the next ones in."""
        self._remove(lease)
        for name in lease.names:
            place = self.places.get(name)
            if place is None:
                continue
            place.waiting.pop(lease, None)
            place.holders.pop(lease, None)
            self._let_in(name)
            self._forget_unused(name)

    def _forget_unused(self, name: Name) -> None:
        place = self.places[name]
        if not place.holders and not place.waiting and name[0] not in LASTING:
            del self.places[name]

    def _let_in(self, name: Name) -> None:
        """Let the next ones have what is free."""
        place = self.places[name]
        while place.waiting and place.has_room and not self.is_paused:
            lease, _ = place.waiting.popitem(last=False)
            place.holders[lease] = None
            lease.got.append(name)
            if lease.is_granted:
                self._granted(lease)

    def _add(self, ticket: Ticket, names: tuple[Name, ...], count: int) -> Lease:
        lease = Lease(ticket, names, count)
        self._of_client.setdefault(ticket.client, {})[ticket] = lease
        return lease

    def _remove(self, lease: Lease) -> None:
        mine = self._of_client[lease.ticket.client]
        del mine[lease.ticket]
        if not mine:
            del self._of_client[lease.ticket.client]


def _closed(name: Name) -> RuntimeError:
    return RuntimeError(f"{name[0]} {name[1]!r} was closed; make a new one to use the name again")
