"""A controller and a fake batch system in virtual time, from a seed: `live_through(seed)`.

The controller is the real one. Simulated are the commands that carry out what it asks for, the
scheduler that workers register with, a user, and all that may go wrong with any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from event_trace import EventTrace
from queue_checks import QueueChecks
from virtual_clock import Timer, VirtualClock
from virtual_queue import VirtualQueue

from hpcdask.jobqueue.controller import (
    AskEnds,
    Cancel,
    Controller,
    Find,
    Limits,
    Retire,
    Shape,
    Submit,
)

#: Things that are done to a cluster before its troubles end.
N_DEEDS = 25
#: Seconds in which a cluster without troubles has to have what is wanted, or to be gone.
_PATIENCE = 2 * 3600.0


class QueueSeedFailed(AssertionError):
    """What went wrong, how to see it again, and what happened shortly before."""


class QueueSimulation:
    """A user, a controller, and a batch system that is not always well."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.clock = VirtualClock()
        self.trace = EventTrace()
        self.n_requests = 0
        self.limits = Limits(
            max_array=random.choice([2, 1000]),
            lead=random.choice([20.0, 60.0]),
            max_history=random.choice([10, 1000]),
        )
        walltime = random.choice([400.0, 1800.0, 36000.0])
        self.queue = VirtualQueue(self.clock, random, walltime, self.join, self.leave, self.note)
        self.shapes = {
            name: Shape(
                n_workers=random.choice([1, 1, 3]), walltime=walltime, margin=self.queue.margin
            )
            for name in ["cpu", "gpu"][: random.choice([1, 1, 2])]
        }
        self.controller = self._new_controller()
        self.registered: set[str] = set()
        self.checks = QueueChecks(self)
        # How commands work at present.
        self.interval = random.choice([5.0, 20.0])  # between two listings
        self.latency = 0.3
        self.listing = "right"  # or "fails", "is empty", "omits some"
        self.ends = "right"  # or "fail"
        self.finding = "right"  # or "fails"
        self.submission = "right"  # or "fails", "is unclear"
        self.cancelling = "right"  # or "does nothing"
        self._alarm: Timer | None = None
        self.clock.after(self.interval, self._list, idle=True)

    def _new_controller(self) -> Controller:
        controller = Controller(self.limits, first_request=self.n_requests + 1)
        for name, shape in self.shapes.items():
            controller.add_pool(name, shape)
        return controller

    def begin_session(self) -> None:
        """Let the controller be gone, and another take over what it knows of."""
        before, self.controller = self.controller, self._new_controller()
        for name in sorted(self.registered):
            self.tell("worker_joined", name)
        for pool in self.shapes:
            ids, leaving = before.to_adopt(pool)
            self.tell("adopt", pool, ids, leaving=leaving)
            self.tell("scale", pool, before.wanted(pool))

    def note(self, text: str, *details: Any) -> None:
        self.trace.note(self.clock.now, "!!", text, *details)

    def draw(self, usual: float) -> float:
        return self.queue.draw(usual)

    # -- The shell --------------------------------------------------------------------------------

    def tell(self, event: str, *args: Any, **options: Any) -> None:
        """Let something happen to the controller, and do what it asks for."""
        now = self.clock.now
        self.trace.note(now, "--", event, *[_brief(arg) for arg in args])
        with self.checks.watching(event, *args, **options):
            getattr(self.controller, event)(now, *args, **options)
        actions, self.controller.outbox = self.controller.outbox, []
        for action in actions:
            self.trace.message(now, "controller", "shell", action)
            if isinstance(action, Submit):
                self.n_requests = action.request
            self.checks.asked(action)
            self.clock.after(self.draw(self.latency), self.carry_out, action)
        self.controller.validate()
        self._set_alarm()

    def _set_alarm(self) -> None:
        at = self.controller.wake_at()
        if self._alarm is not None:
            self._alarm.cancel()
        if at is not None:
            assert at > self.clock.now, "an alarm in the past"
            self._alarm = self.clock.after(at - self.clock.now, self._wake, at, idle=True)

    def _wake(self, at: float) -> None:
        self.clock.now = at  # sums of floats differ a little from what is to be met
        self.tell("tick")

    def carry_out(self, action: Any) -> None:
        if isinstance(action, Submit):
            self._submit(action)
        elif isinstance(action, Find):
            if self.finding == "right":
                ids = self.queue.find(action.request)
                self._answer("found", action.request, ids)
        elif isinstance(action, Cancel):
            if self.cancelling == "right":
                self.queue.cancel(action.ids)
        elif isinstance(action, Retire):
            for name in action.workers:
                if self.random.random() < 0.8:  # else it cannot
                    self.clock.after(self.draw(3.0), self.queue.process_ends, name)
            self.clock.after(10.0, self.tell, "retired", action.id)
        elif isinstance(action, AskEnds) and self.ends == "right":
            self._answer("ends_known", self.queue.ends(action.ids))

    def _answer(self, event: str, *args: Any) -> None:
        self.clock.after(self.draw(self.latency), self.tell, event, *args)

    def _submit(self, action: Submit) -> None:
        if self.submission == "fails":
            self._answer("submit_failed", action.request, "the queue is full")
            return
        is_unclear = self.submission == "is unclear"
        if is_unclear and self.random.random() < 0.5:  # nothing has come of it
            self._answer("submit_unclear", action.request, "no answer within 30 s")
            return
        ids = self.queue.submit(
            action.request, action.pool, action.count, self.shapes[action.pool].n_workers
        )
        if is_unclear:
            self._answer("submit_unclear", action.request, "no answer within 30 s")
            if self.random.random() < 0.3:  # it has answered in the end
                self.clock.after(self.draw(30.0), self.tell, "submitted", action.request, ids)
        else:
            self._answer("submitted", action.request, ids)

    def _list(self) -> None:
        asked = self.controller.to_list
        delay = self.draw(self.latency)
        if self.listing == "fails":
            self.clock.after(delay, self.tell, "listing_failed", "no answer", idle=True)
        elif asked:
            statuses = self.queue.statuses(asked)
            if self.listing == "is empty":
                statuses = {}
            elif self.listing == "omits some":
                statuses = {id: s for id, s in statuses.items() if self.random.random() < 0.5}
            self.clock.after(delay, self._listed, statuses, asked, idle=True)
        self.clock.after(delay + self.interval, self._list, idle=True)

    def _listed(self, statuses: Any, asked: list[str]) -> None:
        self.tell("listed", statuses, asked=asked)

    # -- The scheduler ----------------------------------------------------------------------------

    def join(self, name: str) -> None:
        if name not in self.registered:
            self.registered.add(name)
            self.tell("worker_joined", name)

    def leave(self, name: str) -> None:
        if name in self.registered:
            self.registered.remove(name)
            self.tell("worker_left", name)

    # -- From the start to the end ----------------------------------------------------------------

    def run(self, n_deeds: int = N_DEEDS) -> None:
        """Live through troubles, then without, then end."""
        from queue_faults import DEEDS, recover, scale

        for name in self.shapes:
            scale(self, name)
        deeds = [d for d in DEEDS for _ in range(d.weight) if self.random.random() < d.odds]
        for _ in range(n_deeds):
            self.random.choice(deeds)(self)
            self.pass_time(10 ** self.random.uniform(-1, 2.3))
        if self.random.random() < 0.7:
            recover(self)
            for name in self.shapes:
                self.tell("scale", name, self.random.randint(0, 6))
            self.until(self.checks.has_what_is_wanted, "the wanted jobs are there")
            self.checks.check_calm()
            self.pass_time(2 * self.limits.grace)
            if self.checks.has_what_is_wanted():
                self.checks.check_zombies()
        self.note("close")
        self.tell_all()
        self.tell("close")
        self.pass_time(self.random.uniform(0, 60))
        recover(self)
        self.until(lambda: self.controller.is_over, "the controller is done")
        self.checks.check_nothing_is_queued()
        self.pass_time(1000.0)  # for the last zombie
        assert not self.registered
        self.checks.check_nothing_is_left()

    def tell_all(self) -> None:
        """End those lies that nobody could notice: what is not told now is never asked again."""
        self.listing, self.queue.slow_listing = "right", 0.0
        for job in self.queue.there():
            job.appears = self.clock.now

    def pass_time(self, seconds: float) -> None:
        self.until(lambda: False, "", seconds)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = _PATIENCE) -> None:
        """Let time pass until something is so, or for so long if that is nothing."""
        is_over = False

        def ring() -> None:
            nonlocal is_over
            is_over = True

        bell = self.clock.after(seconds, ring)
        while not is_over:
            if what and condition():
                bell.cancel()
                return
            self.clock.step()
        assert not what, f"it is not so within {seconds:g} s that {what}"


def _brief(what: Any) -> str:
    """An argument of an event, for the trace."""
    if isinstance(what, dict):
        return ", ".join(f"{id} {(s.end or s.phase).value}" for id, s in what.items()) or "nothing"
    return str(what)


def live_through(seed: int, n_deeds: int = N_DEEDS) -> QueueSimulation:
    """Run a cluster in a batch system with faults from a seed.

    Raises
    ------
    QueueSeedFailed
        If the controller contradicted itself, or did what it must not do.
    """
    simulation = QueueSimulation(seed)
    with failing_as_reported(simulation, n_deeds):
        simulation.run(n_deeds)
    return simulation


@contextmanager
def failing_as_reported(simulation: QueueSimulation, n_deeds: int) -> Iterator[None]:
    """Tell of any failure how it is seen again."""
    try:
        yield
    except Exception as exc:
        option = "" if n_deeds == N_DEEDS else f" --deeds {n_deeds}"
        command = f"python tests/simulation/replay_queue.py {simulation.seed}{option} --trace"
        lines = simulation.trace.lines()[-40:]
        where = f"seed {simulation.seed}, at {simulation.clock.now:.3f} s: {exc!r:.2000}"
        raise QueueSeedFailed("\n".join([where, f"replay: {command}", *lines])) from exc


__all__ = ["N_DEEDS", "QueueSeedFailed", "QueueSimulation", "live_through"]
