"""A run: rounds of computations and deeds, from a seed, until the time is up."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from pathlib import Path

import chaos_checks as checks
from chaos_clusters import CLUSTERS, Cluster
from chaos_deeds import Acts, possible
from commands import Home

#: Seconds in which deeds are begun in a round, between two of them on average, and those within
#: which the computations must have ended when everything is healed.
_ROUND, _PAUSE, _PATIENCE = 6.0, 0.5, 60.0
#: Deeds that are shown of a run that failed.
_SHOWN = 50


class Chaos:
    """One run, on one cluster."""

    def __init__(self, cluster: Cluster, seed: int, log: Path) -> None:
        self.cluster = cluster
        self.rng = random.Random(f"{seed} {cluster.kind}")
        self.started = time.monotonic()
        self.deeds: list[str] = []
        self.computations = self.rounds = self.acts = 0
        self._log = log.open("w")
        # When to go on with a deed. The number decides between two of the same moment.
        self._under_way: list[tuple[float, int, Acts]] = []
        self._numbers = itertools.count()

    def note(self, text: str) -> None:
        """Keep and print a line, with the time since the beginning."""
        line = f"{time.monotonic() - self.started:8.2f} s  {text}"
        self.deeds.append(line)
        print(line, file=self._log, flush=True)
        print(line, flush=True)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    # -- A run ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Run rounds for so many seconds, one at least."""
        self._round(with_deeds=False)
        before = checks.descriptors(self.cluster)
        end = time.monotonic() + seconds
        while True:
            self._round(with_deeds=True)
            if time.monotonic() >= end:
                break
        self.note("the end: is all as it was at the beginning?")
        checks.nothing_of_the_dead(self.cluster)
        checks.no_descriptor_leaks(self.cluster, before)

    def _round(self, with_deeds: bool) -> None:
        self.rounds += 1
        seconds = _ROUND if with_deeds else 1.0
        self.note(f"round {self.rounds} begins")
        for client in self.cluster.clients:
            client.order("round", seed=str(self.rng.random()), seconds=seconds)
        if with_deeds:
            self._do_deeds(time.monotonic() + seconds)
        self._await_answers()
        ended = self.cluster.ended()
        assert not ended, f"nobody told these to end: {ended}"
        checks.workers_are_back(self.cluster)
        checks.memory_is_released(self.cluster)

    def _await_answers(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        for client in self.cluster.clients:
            answer = client.answer(deadline - time.monotonic())
            self.computations += answer["done"]
            assert not answer["wrong"], "\n".join(answer["wrong"])
        self.note(f"all values are right; computations so far: {self.computations}")

    # -- Deeds ------------------------------------------------------------------------------------

    def _do_deeds(self, end: float) -> None:
        """Begin deeds until the time is up, and see each through: it heals what it did."""
        deeds = possible(self.cluster)
        weights = [deed.weight for deed in deeds]
        begin = time.monotonic()
        while True:
            begin += self.rng.expovariate(1 / _PAUSE)
            self._go_on(min(begin, end))
            if begin >= end:
                break
            [deed] = self.rng.choices(deeds, weights)
            # A generator of numbers of its own: how many it takes must not change what follows.
            acts = deed.acts(self.cluster, random.Random(self.rng.random()))
            self._resume(acts)
        while self._under_way:
            self._go_on(self._under_way[0][0])

    def _go_on(self, until: float) -> None:
        """Wait, and meanwhile go on with the deeds that are due."""
        while self._under_way and self._under_way[0][0] <= until:
            due, _, acts = heapq.heappop(self._under_way)
            _wait_for(due)
            self._resume(acts)
        _wait_for(until)

    def _resume(self, acts: Acts) -> None:
        for text, seconds in acts:
            self.acts += 1
            self.note(text)
            due = time.monotonic() + seconds
            heapq.heappush(self._under_way, (due, next(self._numbers), acts))
            return


def _wait_for(moment: float) -> None:
    # The pace of chaos is a matter of time, not of any condition.
    time.sleep(max(moment - time.monotonic(), 0.0))


def run(kind: str, home: Home, seed: int, seconds: float) -> Chaos:
    """Let chaos come over a cluster of this kind, and fail if it is not borne."""
    cluster: Cluster = CLUSTERS[kind](home)
    log = home.folder / "deeds.log"
    chaos = Chaos(cluster, seed, log)
    replay = f"CHAOS_SEED={seed} CHAOS_SECONDS={2 * seconds:g} make chaos"
    chaos.note(f"{kind}: seed {seed}; to run it again: {replay}")
    try:
        with cluster.running():
            try:
                chaos.run(seconds)
                cluster.close_clients()
                cluster.end()
            except Exception as exc:
                dump = home.folder / "dump.txt"
                dump.write_text(checks.dump(cluster))
                raise AssertionError(_report(chaos, exc, replay, log, dump)) from exc
        checks.nothing_is_left(cluster)
    finally:
        chaos.close()
    return chaos


def _report(chaos: Chaos, exc: Exception, replay: str, log: Path, dump: Path) -> str:
    deeds = "\n".join(chaos.deeds[-_SHOWN:])
    return (
        f"{chaos.cluster.kind} did not bear it: {exc}\n\n"
        f"the last deeds, all of them in {log}:\n{deeds}\n\n"
        f"to run it again: {replay}\n\nthe cluster's own words, in {dump}:\n"
        f"{dump.read_text()[:8_000]}"
    )
