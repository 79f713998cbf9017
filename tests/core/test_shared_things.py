"""Locks, queues, variables, events and datasets as the scheduler keeps them; nothing is sent."""

from __future__ import annotations

from typing import Any

import pytest

from hpcdask.core.coordination.answers import Stored, Ticket
from hpcdask.core.coordination.desk import Desk
from hpcdask.core.coordination.leases import Name
from hpcdask.core.coordination.metadata import Metadata
from hpcdask.core.coordination.topics import Topics

X, Y, Z = ("lock", "x"), ("lock", "y"), ("lock", "z")


class Clients:
    """Asks a desk on behalf of clients, and notes what they are answered."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.answers: dict[Ticket, list[Any]] = {}
        self.let_go: list[Any] = []
        self._last = 0

    def ask(self, client: str, kind: str, event: str, *what: Any) -> Ticket:
        self._last += 1
        ticket = Ticket(client, self._last)
        self.again(ticket, kind, event, *what)
        return ticket

    def again(self, ticket: Ticket, kind: str, event: str, *what: Any) -> None:
        state = getattr(self.desk, kind)
        self.desk.operate(ticket, state, getattr(state, event), *what)
        self.note()

    def note(self) -> None:
        answers, released = self.desk.take()
        for ticket, answer in answers:
            plain = [s and s.value for s in answer] if isinstance(answer, list) else answer
            self.answers.setdefault(ticket, []).append(plain)
        self.let_go += [stored.hold for stored in released]

    def of(self, ticket: Ticket) -> Any:
        """The answer, which must be the only one; None if there is none."""
        answers = self.answers.get(ticket, [None])
        assert len(answers) == 1
        return answers[0]

    def told(self, event: str, *what: Any) -> None:
        getattr(self.desk, event)(*what)
        self.note()

    # -- In short ---------------------------------------------------------------------------------

    def lock(self, client: str, *names: Name, needed: int | None = None, limit: int = 1) -> Ticket:
        wants = len(names) if needed is None else needed
        return self.ask(client, "leases", "asked", names, wants, limit, True)

    def release(self, lease: Ticket) -> Any:
        return self.of(self.ask(lease.client, "leases", "released", lease.request))

    def put(self, client: str, value: bytes, limit: int = 0, name: str = "q") -> Ticket:
        return self.ask(client, "queues", "put", name, Stored(value, value), limit)

    def take(self, client: str, number: int = 1, name: str = "q") -> Ticket:
        return self.ask(client, "queues", "taken", name, number)

    def size(self) -> Any:
        return self.of(self.ask("asker", "queues", "counted", "q"))


@pytest.fixture
def clients() -> Clients:
    return Clients()


# -- Leases ----------------------------------------------------------------------------------------


def test_a_lock_goes_to_those_who_wait_in_the_order_of_asking(clients: Clients) -> None:
    first, second, third = (clients.lock(name, X) for name in "abc")
    assert (clients.of(first), clients.of(second), clients.of(third)) == (True, None, None)
    assert clients.release(first) is True
    assert (clients.of(second), clients.of(third)) == (True, None)
    assert clients.release(second) is True
    assert clients.of(third) is True
    assert clients.release(third) is True
    assert clients.release(third) is False
    assert clients.desk.leases.places == {}


def test_who_gives_up_is_passed_over(clients: Clients) -> None:
    first, second, third = (clients.lock(name, X) for name in "abc")
    clients.told("given_up", second)
    assert clients.of(second) is False
    clients.release(first)
    assert clients.of(third) is True


def test_who_gives_up_too_late_has_it(clients: Clients) -> None:
    first = clients.lock("a", X)
    clients.told("given_up", first)
    assert clients.of(first) is True


def test_a_lock_that_nobody_came_to_get_goes_on(clients: Clients) -> None:
    first, second = clients.lock("a", X), clients.lock("b", X)
    clients.told("withdrawn", first)
    assert clients.of(second) is True


def test_all_that_a_dead_client_held_and_waited_for_is_free(clients: Clients) -> None:
    held = [clients.lock("a", X), clients.lock("a", Y, Z)]
    clients.lock("b", Z)
    clients.lock("a", Z)
    waiting = [clients.lock("c", X), clients.lock("c", Y), clients.lock("c", Z)]
    for lease in held:
        assert clients.of(lease) is True
        clients.told("confirmed", lease)
    clients.told("client_lost", "a")
    assert [clients.of(lease) for lease in waiting] == [True, True, None]
    clients.told("client_lost", "b")
    assert clients.of(waiting[2]) is True


def test_a_semaphore_has_so_many_leases(clients: Clients) -> None:
    name = ("semaphore", "s")
    leases = [clients.lock(client, name, limit=2) for client in "abcd"]
    assert [clients.of(lease) for lease in leases] == [True, True, None, None]
    assert clients.of(clients.ask("x", "leases", "counted", name)) == 2
    clients.release(leases[1])
    assert [clients.of(lease) for lease in leases] == [True, True, True, None]


def test_a_semaphore_that_others_use_with_another_limit_is_refused(clients: Clients) -> None:
    clients.lock("a", ("semaphore", "s"), limit=2)
    refused = clients.of(clients.lock("b", ("semaphore", "s"), limit=3))
    assert isinstance(refused, ValueError)
    assert "limit of 2" in str(refused)


def test_a_closed_semaphore_takes_nobody_who_knew_it(clients: Clients) -> None:
    name = ("semaphore", "s")
    held, waiting = clients.lock("a", name), clients.lock("b", name)
    assert clients.of(clients.ask("c", "leases", "closed", name)) == 1
    assert isinstance(clients.of(waiting), RuntimeError)
    assert clients.release(held) is False
    late = clients.of(clients.ask("b", "leases", "asked", (name,), 1, 1, False))
    assert isinstance(late, RuntimeError)
    assert "was closed" in str(late)
    assert clients.of(clients.lock("b", name, limit=5)) is True


def test_locks_that_are_wanted_in_two_orders_are_had_one_after_the_other(clients: Clients) -> None:
    first, second = clients.lock("a", X, Y), clients.lock("b", Y, X)
    assert (clients.of(first), clients.of(second)) == (True, None)
    clients.release(first)
    assert clients.of(second) is True


def test_who_wants_many_locks_is_not_overtaken(clients: Clients) -> None:
    held = clients.lock("a", Y)
    both, later = clients.lock("b", X, Y), clients.lock("c", X)
    assert clients.of(later) is None  # though x is free: else `both` might wait for ever
    clients.release(held)
    assert (clients.of(both), clients.of(later)) == (True, None)
    clients.release(both)
    assert clients.of(later) is True


def test_some_of_several_locks_are_had_and_the_others_left_alone(clients: Clients) -> None:
    clients.lock("a", X)
    some = clients.lock("b", X, Y, Z, needed=2)
    assert clients.of(some) is True
    assert isinstance(clients.of(clients.lock("b", X, needed=2)), ValueError)
    next_of_x = clients.lock("c", X)
    clients.told("client_lost", "a")
    assert clients.of(next_of_x) is True


def test_no_lock_at_all_is_had_at_once(clients: Clients) -> None:
    none = clients.lock("a")
    assert clients.of(none) is True
    assert clients.release(none) is True


# -- After a loss ----------------------------------------------------------------------------------


def test_a_request_that_is_sent_again_is_not_carried_out_again(clients: Clients) -> None:
    put = clients.put("a", b"1")
    clients.again(put, "queues", "put", "q", Stored(b"1"), 0)
    assert clients.answers[put] == [True, True]
    assert clients.size() == 1
    take = clients.take("a")
    clients.again(take, "queues", "taken", "q", 1)
    assert clients.answers[take] == [[b"1"], [b"1"]]


def test_what_a_client_held_it_still_holds_when_it_is_back(clients: Clients) -> None:
    lease, waiting = clients.lock("a", X), clients.lock("a", Y)
    clients.told("confirmed", lease)
    lost, other = clients.lock("a", Z), clients.lock("b", X)
    held = {lease.request: ((X,), 1, 1)}
    clients.told("client_resumed", "a", {waiting.request}, set(), held, {})
    assert clients.of(other) is None
    assert clients.of(clients.lock("b", Y)) is None
    assert clients.of(clients.lock("b", Z)) is True  # of `lost` the client has said nothing
    assert clients.release(lost) is False
    assert clients.release(lease) is True


def test_a_new_scheduler_learns_who_holds_a_lock_unless_it_was_given_away(clients: Clients) -> None:
    clients.lock("b", Y)
    clients.told("client_resumed", "a", set(), set(), {7: ((X,), 1, 1), 8: ((Y,), 1, 1)}, {})
    assert clients.of(clients.lock("b", X)) is None
    assert clients.release(Ticket("a", 8)) is False
    assert clients.release(Ticket("a", 7)) is True


def test_a_new_scheduler_gives_no_lock_before_those_are_back_who_may_hold_it(
    clients: Clients,
) -> None:
    leases = clients.desk.leases
    leases.pause()
    early, some = clients.lock("b", X), clients.lock("b", Y, Z, needed=1)
    without = clients.lock("c", X)
    clients.told("given_up", without)
    clients.told("client_resumed", "a", set(), set(), {7: ((X,), 1, 1)}, {})
    leases.go_on()
    clients.note()
    assert [clients.of(lease) for lease in (early, some, without)] == [None, True, False]
    assert clients.release(some) is True
    assert clients.release(Ticket("a", 7)) is True
    assert clients.of(early) is True
    assert list(leases.places) == [X]


def test_a_value_is_the_takers_if_only_its_confirmation_was_lost(clients: Clients) -> None:
    clients.put("a", b"1")
    clients.put("a", b"2")
    taken, withdrawn = clients.take("b"), clients.take("b")
    clients.told("client_resumed", "b", set(), {withdrawn.request}, {}, {})
    assert clients.of(taken) == [b"1"]
    assert clients.let_go == [b"1"]
    assert clients.of(clients.take("c")) == [b"2"]


# -- Queues ----------------------------------------------------------------------------------------


def test_values_go_in_their_order_to_takers_in_theirs(clients: Clients) -> None:
    first, pair = clients.take("a"), clients.take("b", 2)
    for value in (b"1", b"2"):
        clients.put("c", value)
    assert (clients.of(first), clients.of(pair)) == ([b"1"], None)
    later = clients.take("d")
    clients.put("c", b"3")
    assert (clients.of(pair), clients.of(later)) == ([b"2", b"3"], None)


def test_a_full_queue_lets_the_next_in_when_one_is_taken(clients: Clients) -> None:
    puts = [clients.put("a", value, limit=2) for value in (b"1", b"2", b"3", b"4")]
    assert [clients.of(put) for put in puts] == [True, True, None, None]
    assert clients.size() == 2
    assert clients.of(clients.take("b")) == [b"1"]
    assert [clients.of(put) for put in puts] == [True, True, True, None]
    # More than ever fit into it at a time.
    assert clients.of(clients.take("b", 3)) == [b"2", b"3", b"4"]


def test_all_that_there_is_may_be_nothing(clients: Clients) -> None:
    assert clients.of(clients.take("a", -1)) == []
    clients.put("b", b"1")
    clients.put("b", b"2")
    assert clients.of(clients.take("a", -1)) == [b"1", b"2"]
    assert clients.of(clients.take("a", 0)) == []


def test_what_does_not_reach_its_taker_goes_back_in_its_order(clients: Clients) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        clients.put("a", value)
    clients.take("b")
    clients.take("b", 2)
    clients.told("client_lost", "b")
    assert clients.of(clients.take("c", 4)) == [b"1", b"2", b"3", b"4"]


def test_a_taker_that_gives_up_leaves_what_it_had_of_a_batch(clients: Clients) -> None:
    batch, next_one = clients.take("a", 3), clients.take("b", 2)
    clients.put("c", b"1")
    clients.put("c", b"2")
    clients.told("given_up", batch)
    assert (clients.of(batch), clients.of(next_one)) == (False, [b"1", b"2"])


def test_futures_in_a_queue_are_let_go_when_the_taker_has_them(clients: Clients) -> None:
    clients.put("a", b"1")
    clients.told("client_lost", "a")
    take = clients.take("b")
    assert clients.let_go == []
    clients.told("confirmed", take)
    assert clients.let_go == [b"1"]
    assert clients.desk.queues.queues == {}


def test_a_queue_ends_when_the_last_of_its_objects_is_closed(clients: Clients) -> None:
    queues = clients.desk.queues
    for client, limit in (("a", 0), ("b", 1), ("b", 5)):
        queues.opened(client, "q", limit)
    clients.put("a", b"1")
    full = clients.put("a", b"2")
    queues.closed("b", "q")
    queues.closed("b", "q")
    queues.closed("b", "q")  # once too often
    assert clients.size() == 1
    queues.closed("a", "q")
    clients.note()
    assert isinstance(clients.of(full), RuntimeError)
    assert sorted(clients.let_go) == [b"1", b"2"]
    assert clients.size() == 0


def test_a_client_that_goes_ends_no_queue(clients: Clients) -> None:
    clients.desk.queues.opened("a", "q", 2)
    clients.put("a", b"1")
    clients.told("client_lost", "a")
    assert clients.of(clients.take("b")) == [b"1"]


def test_a_value_of_a_closed_queue_does_not_come_back(clients: Clients) -> None:
    clients.desk.queues.opened("a", "q", 0)
    clients.put("a", b"1")
    clients.take("b")
    clients.desk.queues.closed("a", "q")
    clients.told("client_lost", "b")
    assert clients.let_go == [b"1"]
    assert clients.desk.queues.queues == {}


def test_a_returned_client_has_as_many_objects_as_it_says(clients: Clients) -> None:
    clients.desk.queues.opened("a", "q", 0)
    clients.desk.queues.opened("a", "gone", 0)
    clients.told("client_resumed", "a", set(), set(), {}, {"q": (3, 0), "new": (1, 4)})
    queues = clients.desk.queues.queues
    assert {name: (q.handles, q.limit) for name, q in queues.items()} == {
        "q": (3, 0),
        "new": (1, 4),
    }


# -- Variables, events, datasets -------------------------------------------------------------------


def test_a_variable_is_awaited_until_it_is_set_and_gives_what_was_set_last(
    clients: Clients,
) -> None:
    early, gone = (clients.ask(c, "variables", "asked", "v") for c in "ab")
    clients.told("given_up", gone)
    clients.ask("c", "variables", "set", "v", Stored(b"1", b"1"))
    assert (clients.of(early), clients.of(gone)) == ([b"1"], False)
    clients.ask("c", "variables", "set", "v", Stored(b"2", b"2"))
    assert clients.let_go == []  # it is on its way still
    clients.told("confirmed", early)
    assert clients.let_go == [b"1"]
    assert clients.of(clients.ask("a", "variables", "asked", "v")) == [b"2"]
    clients.ask("a", "variables", "deleted", "v")
    clients.told("client_lost", "a")
    assert clients.let_go == [b"1", b"2"]
    assert clients.of(clients.ask("b", "variables", "asked", "v")) is None


def test_an_event_wakes_all_who_wait_and_stays_set(clients: Clients) -> None:
    waits = [clients.ask(client, "flags", "awaited", "e") for client in "abc"]
    clients.told("client_lost", "c")
    assert clients.of(clients.ask("a", "flags", "asked", "e")) is False
    clients.ask("d", "flags", "changed", "e", True)
    assert [clients.of(wait) for wait in waits] == [True, True, None]
    assert clients.of(clients.ask("a", "flags", "awaited", "e")) is True
    clients.ask("d", "flags", "changed", "e", False)
    assert clients.of(clients.ask("a", "flags", "asked", "e")) is False


def test_datasets_are_published_all_or_none(clients: Clients) -> None:
    def publish(override: bool, **values: bytes) -> Any:
        stored = {name: Stored(value, value) for name, value in values.items()}
        return clients.of(clients.ask("a", "datasets", "publish", stored, override))

    assert publish(False, x=b"1") is True
    clash = publish(False, y=b"2", x=b"3")
    assert isinstance(clash, KeyError)
    assert "'x' is published already" in str(clash)
    assert clients.of(clients.ask("b", "datasets", "listed")) == ("x",)
    assert publish(True, y=b"2", x=b"3") is True
    assert clients.let_go == [b"1"]
    clients.told("client_lost", "a")
    got = clients.ask("b", "datasets", "asked", ("x", "nope", "y"))
    assert clients.of(got) == [b"3", None, b"2"]
    assert clients.of(clients.ask("b", "datasets", "unpublish", ("x", "nope"))) == 1
    assert clients.let_go == [b"1"]
    clients.told("confirmed", got)
    assert clients.let_go == [b"1", b"3"]


# -- Topics and metadata ---------------------------------------------------------------------------


def test_of_a_topic_the_last_events_are_kept_and_subscribers_hear_of_all() -> None:
    topics = Topics(2)
    topics.subscribed("a", "t")
    for number, names in enumerate((["t", "u"], ["t", "t"], ["t"])):
        topics.logged(float(number), names, b"%d" % number)
    assert [(event.time, event.message) for event in topics.about("t")] == [(1, b"1"), (2, b"2")]
    assert [event.topic for event in topics.about(None)] == ["t", "t", "u"]
    assert topics.about("nothing") == ()
    assert [(to, event.message) for to, event in topics.outbox] == [
        ("a", b"0"),
        ("a", b"1"),
        ("a", b"2"),
    ]
    topics.outbox.clear()
    topics.client_lost("a")
    topics.logged(3.0, ["t"], b"3")
    assert topics.outbox == []


def test_metadata_is_a_tree() -> None:
    metadata = Metadata()
    metadata.set(("a", "b"), b"1")
    metadata.set(("a", "c", 2), b"2")
    assert metadata.get(("a",)) == {"b": b"1", "c": {2: b"2"}}
    metadata.get(("a",))["b"] = b"changed"
    assert metadata.get(("a", "b")) == b"1"
    with pytest.raises(TypeError, match=r"at \['a', 'b'\] is a value and no dict"):
        metadata.set(("a", "b", "c"), b"3")
    for path in (("x",), ("a", "b", "c"), ("a", "c", 3)):
        with pytest.raises(KeyError, match="no metadata at"):
            metadata.get(path)
    with pytest.raises(ValueError, match="at least one key"):
        metadata.set((), b"1")
