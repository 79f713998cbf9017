"""Hypothesis drives a desk with clients that lose their connection, give up and die at any time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcdask.core.coordination.answers import Answer, Stored, Ticket
from hpcdask.core.coordination.desk import Desk
from hpcdask.core.coordination.leases import Name

NAMES: list[Name] = [("lock", "x"), ("lock", "y"), ("semaphore", "s")]
LIMITS = {NAMES[0]: 1, NAMES[1]: 1, NAMES[2]: 2}
X, Y, S = NAMES
WISHES = [((X,), 1), ((X,), 1), ((Y,), 1), ((X, Y), 2), ((Y, X), 2), ((X, Y), 1), ((S,), 1)]
QUEUES = ["p", "q"]
ROOM = {"p": 0, "q": 2}


class Client:
    """A client as `hpcdask.client.operations` has it, and the two ways of its connection."""

    def __init__(self, machine: DeskMachine, name: str) -> None:
        self.machine, self.name = machine, name
        self.to_desk: deque[Callable[[], None]] = deque()
        self.to_client: deque[tuple[int, Answer]] = deque()
        self.is_connected = True
        self.waiting: dict[int, Callable[[Ticket], None]] = {}
        self.late: set[int] = set()
        self.withdrawn: set[int] = set()
        self.wishes: dict[int, tuple[tuple[Name, ...], int, int]] = {}
        self.leases: dict[int, tuple[tuple[Name, ...], int, int]] = {}
        self.releasing: dict[int, int] = {}  # request -> lease
        self.takes: set[int] = set()
        self.unconfirmed: dict[int, list[bytes]] = {}  # taken, and the desk may not know

    def send(self, message: Callable[[], None]) -> None:
        if self.is_connected:
            self.to_desk.append(message)

    def ask(self, number: int, event: Callable[[Ticket], None]) -> None:
        self.waiting[number] = event
        self.send(lambda: event(Ticket(self.name, number)))

    def give_up(self, number: int) -> None:
        self.late.add(number)
        self.send(lambda: self.machine.desk.given_up(Ticket(self.name, number)))

    def withdraw(self, number: int) -> None:
        del self.waiting[number]
        self.withdrawn.add(number)
        self.send(lambda: self.machine.desk.withdrawn(Ticket(self.name, number)))

    def confirm(self, number: int) -> None:
        def message() -> None:
            self.unconfirmed.pop(number, None)
            self.machine.desk.confirmed(Ticket(self.name, number))

        self.send(message)

    def hear(self) -> None:
        number, answer = self.to_client.popleft()
        if number not in self.waiting:
            return
        del self.waiting[number]
        assert not isinstance(answer, Exception), answer
        if number in self.wishes and answer is True:
            self.leases[number] = self.wishes[number]
        elif number in self.releasing:
            self.leases.pop(self.releasing.pop(number), None)
        elif number in self.machine.puts_by_request and answer is True:
            self.machine.accepted.add(self.machine.puts_by_request[number])
        elif number in self.takes and isinstance(answer, list):
            values = [stored.value for stored in answer]
            self.machine.received.update(values)
            self.unconfirmed[number] = values
        self.confirm(number)

    def cut(self) -> None:
        self.is_connected = False
        self.to_desk.clear()
        self.to_client.clear()

    def come_back(self) -> None:
        self.is_connected = True
        waiting, withdrawn, leases = set(self.waiting), set(self.withdrawn), dict(self.leases)

        def resume() -> None:
            self.unconfirmed.clear()
            self.withdrawn -= withdrawn
            self.machine.desk.client_resumed(self.name, waiting, withdrawn, leases, {})

        self.send(resume)
        for number, event in self.waiting.items():
            self.send(lambda n=number, e=event: e(Ticket(self.name, n)))  # type: ignore[misc]
            if number in self.late:
                self.send(
                    lambda n=number: self.machine.desk.given_up(  # type: ignore[misc]
                        Ticket(self.name, n)
                    )
                )


class DeskMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.numbers = iter(range(1, 10**6))
        self.received: Counter[bytes] = Counter()
        self.stored: list[Stored] = []
        self.puts_by_request: dict[int, bytes] = {}
        self.accepted: set[bytes] = set()  # as their clients know
        self.released: list[Any] = []
        self.names = iter(range(10**6))
        self.clients: list[Client] = [Client(self, f"c{next(self.names)}") for _ in range(3)]

    def client(self, index: int) -> Client:
        return self.clients[index]

    def desk_reads(self, client: Client) -> None:
        client.to_desk.popleft()()
        self.deliver()

    def deliver(self) -> None:
        answers, released = self.desk.take()
        by_name = {client.name: client for client in self.clients}
        for ticket, answer in answers:
            client = by_name.get(ticket.client)
            if client is not None and client.is_connected:
                client.to_client.append((ticket.request, answer))
        self.released += released

    # -- Rules ------------------------------------------------------------------------------------

    indices = st.integers(0, 2)

    @rule(index=indices, wish=st.sampled_from(WISHES))
    def wants_leases(self, index: int, wish: tuple[tuple[Name, ...], int]) -> None:
        names, needed = wish
        self.wants(index, names, needed, LIMITS[names[0]])

    def wants(self, index: int, names: tuple[Name, ...], needed: int, limit: int) -> None:
        number, client, leases = next(self.numbers), self.client(index), self.desk.leases
        client.wishes[number] = names, needed, limit
        what = leases, leases.asked, names, needed, limit, True
        client.ask(number, lambda ticket: self.desk.operate(ticket, *what))

    @rule(index=indices, which=st.integers(0, 5))
    def releases(self, index: int, which: int) -> None:
        client, leases = self.client(index), self.desk.leases
        held = [lease for lease in client.leases if lease not in client.releasing.values()]
        if held:
            number, lease = next(self.numbers), held[which % len(held)]
            client.releasing[number] = lease
            what = leases, leases.released, lease
            client.ask(number, lambda ticket: self.desk.operate(ticket, *what))

    @rule(index=indices, name=st.sampled_from(QUEUES))
    def puts(self, index: int, name: str) -> None:
        number, client, queues = next(self.numbers), self.client(index), self.desk.queues
        value = b"%d" % number
        self.puts_by_request[number] = value

        def event(ticket: Ticket) -> None:
            def put(ticket: Ticket) -> None:
                stored = Stored(value, value)
                self.stored.append(stored)
                queues.put(ticket, name, stored, ROOM[name])

            self.desk.operate(ticket, queues, put)

        client.ask(number, event)

    @rule(index=indices, name=st.sampled_from(QUEUES), count=st.sampled_from([1, 1, 3, -1]))
    def takes(self, index: int, name: str, count: int) -> None:
        number, client, queues = next(self.numbers), self.client(index), self.desk.queues
        client.takes.add(number)
        what = queues, queues.taken, name, count
        client.ask(number, lambda ticket: self.desk.operate(ticket, *what))

    @rule(index=indices, which=st.integers(0, 5), for_good=st.booleans())
    def waits_no_longer(self, index: int, which: int, for_good: bool) -> None:
        client = self.client(index)
        # Who releases waits until it is done.
        waiting = [number for number in client.waiting if number not in client.releasing]
        if waiting:
            number = waiting[which % len(waiting)]
            client.withdraw(number) if for_good else client.give_up(number)

    @rule(index=indices, count=st.integers(1, 4))
    def desk_hears(self, index: int, count: int) -> None:
        client = self.client(index)
        for _ in range(min(count, len(client.to_desk))):
            self.desk_reads(client)

    @rule(index=indices, count=st.integers(1, 4))
    def client_hears(self, index: int, count: int) -> None:
        client = self.client(index)
        for _ in range(min(count, len(client.to_client))):
            client.hear()

    @rule(confirmed=st.booleans())
    def all_is_heard(self, confirmed: bool) -> None:
        if confirmed:
            self.settle()
        for client in self.clients:
            while client.to_desk:
                self.desk_reads(client)
        for client in self.clients:
            while client.to_client:
                client.hear()

    @rule(index=indices)
    def connection_ends(self, index: int) -> None:
        self.client(index).cut()

    @precondition(lambda self: any(not client.is_connected for client in self.clients))
    @rule()
    def clients_come_back(self) -> None:
        for client in self.clients:
            if not client.is_connected:
                client.come_back()

    @rule()
    def leases_are_given_or_not(self) -> None:
        if self.desk.leases.is_paused:
            self.desk.leases.go_on()
            self.deliver()
        else:
            self.desk.leases.pause()

    @rule(index=indices)
    def client_dies(self, index: int) -> None:
        client = self.client(index)
        # What it had taken, and the desk does not know of, will be taken again.
        for values in client.unconfirmed.values():
            self.received.subtract(values)
        self.clients[index] = Client(self, f"c{next(self.names)}")
        self.desk.client_lost(client.name)
        self.deliver()
        places = self.desk.leases.places.values()
        left = [lease for place in places for lease in (*place.holders, *place.waiting)]
        assert all(lease.ticket.client != client.name for lease in left)

    # -- What holds at any time -------------------------------------------------------------------

    @invariant()
    def no_lease_is_held_by_too_many(self) -> None:
        believed: Counter[Name] = Counter()
        for client in self.clients:
            for lease, (names, needed, _) in client.leases.items():
                if needed == len(names) and lease not in client.releasing.values():
                    believed.update(names)
        for name, place in self.desk.leases.places.items():
            assert len(place.holders) <= place.limit == LIMITS[name]
            assert self.desk.leases.is_paused or not (place.waiting and place.has_room)
            assert place.holders or place.waiting or name[0] == "semaphore"
            assert not any(lease.is_granted for lease in place.waiting)
        assert all(count <= LIMITS[name] for name, count in believed.items())

    @invariant()
    def the_lines_have_one_order(self) -> None:
        """Of two that wait for the same places one is first everywhere."""
        lines = [list(place.waiting) for place in self.desk.leases.places.values()]
        for line in lines:
            for other in lines:
                common = [lease for lease in line if lease in other]
                assert common == [lease for lease in other if lease in line]

    @invariant()
    def no_value_is_received_twice(self) -> None:
        assert all(count <= 1 for count in self.received.values())

    @invariant()
    def queues_do_not_keep_apart_values_and_those_who_wait(self) -> None:
        for queue in self.desk.queues.queues.values():
            assert not (queue.items and queue.taking)
            assert not (queue.putting and queue.has_room)

    def teardown(self) -> None:
        """All come back and hear all: who waits for a lease gets it, and no value is lost."""
        for client in self.clients:
            if not client.is_connected:
                client.come_back()
        self.desk.leases.go_on()
        self.deliver()
        self.settle()
        for _ in range(10_000):
            held = [
                (index, lease)
                for index, client in enumerate(self.clients)
                for lease in client.leases
            ]
            if not held:
                break
            index, lease = held[0]
            self.releases(index, list(self.clients[index].leases).index(lease))
            self.settle()
        assert not any(
            number in client.wishes for client in self.clients for number in client.waiting
        )
        assert all(not place.holders for place in self.desk.leases.places.values())
        assert self.desk.leases._of_client == {}
        in_queues = Counter(
            stored.value
            for queue in self.desk.queues.queues.values()
            for stored in (*queue.items, *(s for t in queue.taking.values() for s in t.got))
        )
        done = self.received + in_queues
        assert all(done[value] == 1 for value in self.accepted)
        assert all(count <= 1 for count in done.values())
        for client in list(self.clients):
            self.desk.client_lost(client.name)
        self.deliver()
        self.drain()
        assert self.desk._open == {}
        assert (self.desk.queues.queues, self.desk.queues._where) == ({}, {})
        assert all(stored.uses == 0 for stored in self.stored)
        assert len(self.released) == len(self.stored)

    def settle(self) -> None:
        while any(client.to_desk or client.to_client for client in self.clients):
            for client in self.clients:
                while client.to_desk:
                    self.desk_reads(client)
                while client.to_client:
                    client.hear()

    def drain(self) -> None:
        queues = self.desk.queues
        for name in QUEUES:
            ticket = Ticket("last", next(self.numbers))
            self.desk.operate(ticket, queues, queues.taken, name, -1)
            self.desk.confirmed(ticket)
        self.deliver()


TestDesk = DeskMachine.TestCase
TestDesk.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
