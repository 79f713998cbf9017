"""What may be done to a cluster in a fake batch system: by its user, by others, by faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtual_queue import VirtualJob

from hpcdask.jobqueue.status import End, Phase

if TYPE_CHECKING:
    from queue_simulator import QueueSimulation


class QueueDeed:
    """Something to do; its weight says how often it comes up, its odds in how many clusters."""

    def __init__(self, act: Callable[[QueueSimulation], None], weight: int, odds: float) -> None:
        self.act, self.weight, self.odds = act, weight, odds
        self.name = act.__name__

    def __call__(self, simulation: QueueSimulation) -> None:
        simulation.note(self.name)
        self.act(simulation)


DEEDS: list[QueueDeed] = []

Act = Callable[["QueueSimulation"], None]


def deed(weight: int, odds: float = 1.0) -> Callable[[Act], QueueDeed]:
    def add(act: Act) -> QueueDeed:
        DEEDS.append(QueueDeed(act, weight, odds))
        return DEEDS[-1]

    return add


def _some(simulation: QueueSimulation, *phases: Phase) -> list[VirtualJob]:
    """One job in one of these phases, or none."""
    jobs = [job for job in simulation.queue.there() if job.phase in phases]
    return [simulation.random.choice(jobs)] if jobs else []


def _for_a_while(
    simulation: QueueSimulation, owner: Any, name: str, value: Any, usual: float = 60.0
) -> None:
    """Set something, and set it right later."""
    right = _RIGHT[name]
    setattr(owner, name, value)
    simulation.note("for a while", name, value)
    simulation.clock.after(simulation.draw(usual), setattr, owner, name, right)


#: What is set while there is no fault.
_RIGHT: dict[str, Any] = {
    "listing": "right",
    "ends": "right",
    "finding": "right",
    "submission": "right",
    "cancelling": "right",
    "latency": 0.3,
    "slow_listing": 0.0,
    "fates": ["works"],
}


def recover(simulation: QueueSimulation) -> None:
    """End all faults."""
    simulation.note("all faults end")
    for name, value in _RIGHT.items():
        owner = simulation if hasattr(simulation, name) else simulation.queue
        setattr(owner, name, value)
    simulation.queue.wait, simulation.queue.n_slots = 10.0, 100


# -- The user -------------------------------------------------------------------------------------


def scale(simulation: QueueSimulation, pool: str, n: int | None = None) -> None:
    n = simulation.random.choice([0, 1, 2, 3, 5, 8]) if n is None else n
    idle = [job.id for job in _some(simulation, Phase.RUNNING)]
    forgives = simulation.random.random() < 0.5
    simulation.tell("scale", pool, n, idle=idle, forgives=forgives)


@deed(weight=4)
def scale_some(simulation: QueueSimulation) -> None:
    scale(simulation, simulation.random.choice(list(simulation.shapes)))


@deed(weight=1)
def scale_down_and_up(simulation: QueueSimulation) -> None:
    pool = simulation.random.choice(list(simulation.shapes))
    n = simulation.controller.wanted(pool)
    scale(simulation, pool, 0)
    simulation.pass_time(simulation.draw(3.0))
    scale(simulation, pool, n)


@deed(weight=2)
def release_some(simulation: QueueSimulation) -> None:
    """Also jobs that the controller does not know, or has given back."""
    jobs = [job for job in simulation.queue.jobs.values() if simulation.random.random() < 0.3]
    simulation.tell("release", [job.id for job in jobs])


@deed(weight=1, odds=0.5)
def begin_a_session(simulation: QueueSimulation) -> None:
    """What a former one did not know is lost with it, so there must be no such thing."""
    if simulation.controller.is_certain:
        simulation.begin_session()


# -- What happens to jobs -------------------------------------------------------------------------


@deed(weight=2)
def fail_a_job(simulation: QueueSimulation) -> None:
    for job in _some(simulation, Phase.RUNNING):
        simulation.queue.end(job, simulation.random.choice([End.FAILED, End.OUT_OF_MEMORY]))


@deed(weight=1)
def let_new_jobs_fail(simulation: QueueSimulation) -> None:
    fate = simulation.random.choice(
        ["fails", "completes", "is put back", "is silent", "is one short"]
    )
    _for_a_while(simulation, simulation.queue, "fates", ["works", fate], 300.0)


@deed(weight=1)
def let_all_new_jobs_fail(simulation: QueueSimulation) -> None:
    fate = simulation.random.choice(["fails", "completes", "is put back", "is silent"])
    _for_a_while(simulation, simulation.queue, "fates", [fate], 300.0)


@deed(weight=2)
def preempt(simulation: QueueSimulation) -> None:
    for job in _some(simulation, Phase.RUNNING):
        if simulation.random.random() < 0.5:
            simulation.queue.end(job, End.PREEMPTED)
        else:
            simulation.queue.requeue(job)


@deed(weight=2)
def fail_a_node(simulation: QueueSimulation) -> None:
    """Its processes may go on."""
    for job in _some(simulation, Phase.RUNNING):
        leaves_zombies = simulation.random.random() < 0.7
        if simulation.random.random() < 0.5:
            simulation.queue.end(job, End.NODE_FAIL, leaves_zombies)
        else:
            simulation.queue.requeue(job, leaves_zombies)


@deed(weight=1)
def cancel_one_from_outside(simulation: QueueSimulation) -> None:
    for job in _some(simulation, Phase.RUNNING, Phase.PENDING):
        simulation.queue.end(job, End.CANCELLED)


@deed(weight=1, odds=0.5)
def cancel_all_from_outside(simulation: QueueSimulation) -> None:
    simulation.queue.cancel([job.id for job in simulation.queue.there()])


@deed(weight=1, odds=0.5)
def lose_a_job(simulation: QueueSimulation) -> None:
    for job in _some(simulation, Phase.RUNNING, Phase.PENDING):
        simulation.queue.vanish(job)


@deed(weight=2)
def flap_a_worker(simulation: QueueSimulation) -> None:
    if simulation.registered:
        simulation.queue.flap(simulation.random.choice(sorted(simulation.registered)))


@deed(weight=1)
def join_a_worker_by_hand(simulation: QueueSimulation) -> None:
    name = simulation.random.choice(["alice", "tcp://10.0.0.1:4711", "node-3", "0"])
    simulation.join(name)
    simulation.clock.after(simulation.draw(100.0), simulation.leave, name)


# -- What happens to commands ---------------------------------------------------------------------


@deed(weight=2)
def let_listings_fail(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "listing", "fails")


@deed(weight=2)
def let_listings_be_empty(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "listing", "is empty")


@deed(weight=1)
def let_listings_omit_some(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "listing", "omits some")


@deed(weight=1)
def let_ends_be_unknown(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "ends", "fail")


@deed(weight=1)
def let_looks_fail(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "finding", "fails")


@deed(weight=2)
def let_submissions_fail(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "submission", "fails")


@deed(weight=2)
def let_submissions_be_unclear(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "submission", "is unclear")


@deed(weight=1)
def let_cancels_do_nothing(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "cancelling", "does nothing")


@deed(weight=1)
def let_commands_be_slow(simulation: QueueSimulation) -> None:
    _for_a_while(simulation, simulation, "latency", 8.0)


@deed(weight=1)
def let_jobs_appear_late(simulation: QueueSimulation) -> None:
    delay = simulation.draw(simulation.random.choice([15.0, 150.0]))
    _for_a_while(simulation, simulation.queue, "slow_listing", delay)
