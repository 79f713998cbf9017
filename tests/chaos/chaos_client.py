"""A user's program: computes graphs of every shape, over and over, and checks each value.

``python chaos_client.py SCHEDULER_FILE NAME FLAKY_FOLDER`` reads orders from stdin, one line of
JSON each, and answers each with a line on stdout. It ends with stdin, so never outlives the test.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import chaos_views
from chaos_graphs import (
    SHAPES,
    as_dask,
    block,
    checksum,
    computed_here,
    flaky,
    leave_file,
    mix,
    results,
    submitted,
)

from hpcdask import Client, FutureCancelledError, LostDataError
from hpcdask.errors import CommClosedError

#: Seconds after which a result is not waited for any longer. The test itself gives up before.
_FOR_EVER = 300.0
#: Times that lost data is scattered again. Each loss takes a deed, so a loop of this many is none.
_TRIES = 30

#: One computation under way: wait for it, and return what is wrong with it, or "".
Ending = Callable[[], str]


class Program:
    """Orders, and what they take."""

    def __init__(self, client: Client, name: str, flaky_folder: str) -> None:
        self.client, self.name, self.flaky_folder = client, name, flaky_folder
        self.computations = 0

    def round(self, seed: str, seconds: float) -> dict[str, Any]:
        """Start several computations at a time, over and over; stop after so many seconds."""
        rng = random.Random(seed)
        end = time.monotonic() + seconds
        done, wrong = 0, []
        while done == 0 or (time.monotonic() < end and not wrong):
            kinds = rng.choices(self.kinds(), weights=self.weights(), k=rng.randint(1, 4))
            endings = [self.started(kind, rng) for kind in kinds]
            for kind, ending in zip(kinds, endings, strict=True):
                if problem := self.ended(ending):
                    wrong.append(f"{kind.__name__} of {self.name}: {problem}")
                done += 1
        return {"done": done, "wrong": wrong}

    def started(self, kind: Callable[..., Ending], rng: random.Random) -> Ending:
        self.computations += 1
        seed, schedulers = rng.random(), set(self.client._scheduler_ids)
        first = kind(random.Random(seed), f"{self.name}-{kind.__name__}-{self.computations}")

        def ending() -> str:
            try:
                return first()
            except (LostDataError, FutureCancelledError):
                # Of what was done when a scheduler died nobody knows how to compute it again. It
                # outlives that scheduler, but not its worker, too: that is for the user to repeat.
                if schedulers == self.client._scheduler_ids:
                    raise
            return self.started(kind, random.Random(seed))()

        return ending

    def ended(self, ending: Ending) -> str:
        try:
            return ending()
        except Exception:
            return traceback.format_exc()

    def kinds(self) -> list[Callable[..., Ending]]:
        return [self.graph, self.collection, self.map, self.retried, self.scattered, self.fickle]

    def weights(self) -> list[int]:
        # A client that will be killed leaves nothing whose key does not tell whose it was.
        return [8, 2, 2, 1, 0 if self.name.startswith("victim") else 2, 1]

    # -- Kinds of computations --------------------------------------------------------------------

    def graph(self, rng: random.Random, name: str) -> Ending:
        graph = rng.choice(SHAPES)(rng)
        futures = submitted(self.client, graph, name)
        wanted = [futures[n] for n in results(graph)]
        del futures  # the scheduler may forget what is in between as soon as it can

        def ending() -> str:
            values = computed_here(graph)
            right = [values[n] for n in results(graph)]
            return _compare(self.client.gather(wanted, timeout=_FOR_EVER), right)

        return ending

    def collection(self, rng: random.Random, name: str) -> Ending:
        graph = rng.choice(SHAPES)(rng)
        keys = [f"{name}-{n}" for n in results(graph)]
        futures = self.client.get(as_dask(graph, name), keys, sync=False)

        def ending() -> str:
            values = computed_here(graph)
            right = [values[n] for n in results(graph)]
            return _compare(self.client.gather(futures, timeout=_FOR_EVER), right)

        return ending

    def map(self, rng: random.Random, name: str) -> Ending:
        count = rng.randint(100, 3000)
        futures = self.client.map(mix, range(count), key=name)
        right = [mix(n) for n in range(count)]
        return lambda: _compare(self.client.gather(futures, timeout=_FOR_EVER), right)

    def retried(self, rng: random.Random, name: str) -> Ending:
        values = [rng.randrange(10**12) for _ in range(5)]
        futures = [
            self.client.submit(flaky, self.flaky_folder, 2, v, retries=4, key=f"{name}-{v}")
            for v in values
        ]
        right = [mix(value) for value in values]
        return lambda: _compare(self.client.gather(futures, timeout=_FOR_EVER), right)

    def scattered(self, rng: random.Random, name: str) -> Ending:
        seed, broadcast = rng.randrange(1000), rng.random() < 0.5
        data = [block(seed + n, rng.randint(1, 3_000_000)) for n in range(3)]
        right = [mix(checksum(item), n) for item in data for n in range(5)]

        def ending() -> str:
            for _ in range(_TRIES):
                # Data that only its holder had is gone with it; a scheduler that is being
                # replaced takes none. Both say so, and that is for the user to repeat.
                with contextlib.suppress(LostDataError, CommClosedError):
                    held = self.client.scatter(data, broadcast=broadcast, hash=False, timeout=60)
                    sums = [self.client.submit(checksum, item, pure=False) for item in held]
                    futures = [
                        self.client.submit(mix, s, n, pure=False) for s in sums for n in range(5)
                    ]
                    return _compare(self.client.gather(futures, timeout=_FOR_EVER), right)
            return f"data was lost {_TRIES} times"

        return ending

    def fickle(self, rng: random.Random, name: str) -> Ending:
        """Change one's mind: cancel some, release others, want the rest."""
        graph = rng.choice(SHAPES)(rng)
        wanted = {
            n: f for n, f in enumerate(submitted(self.client, graph, name)) if rng.random() < 0.3
        }
        others = self.client.map(mix, range(500), key=f"{name}-others")
        self.client.cancel(others[::2])
        del others

        def ending() -> str:
            values = computed_here(graph)
            chosen = [n for n in wanted if isinstance(values[n], int)]
            got = self.client.gather([wanted[n] for n in chosen], timeout=_FOR_EVER)
            return _compare(got, [values[n] for n in chosen])

        return ending

    # -- For the test -----------------------------------------------------------------------------

    def count_runs(self, folder: str, tasks: int) -> int:
        """Run tasks that leave a file for each run; return a sum that needs them all."""
        runs = [self.client.submit(leave_file, folder, n, key=f"run-{n}") for n in range(tasks)]
        return int(self.client.submit(sum, runs).result(timeout=_FOR_EVER))

    def workers(self) -> list[str]:
        """Addresses of the workers that the scheduler counts."""
        return sorted(self.client.nthreads(timeout=10))

    def view(self) -> dict[str, Any]:
        """What the scheduler knows, and what workers hold."""
        view: dict[str, Any] = self.client.run_on_scheduler(chaos_views.of_scheduler, timeout=10)
        view["held"] = self.client.run(chaos_views.held_keys, on_error="ignore", timeout=10)
        return view


def _compare(values: list[Any], right: list[Any]) -> str:
    if values == right:
        return ""
    wrong = [n for n, (a, b) in enumerate(zip(values, right, strict=True)) if a != b]
    return f"{len(wrong)} of {len(right)} values are wrong, at {wrong[:5]}"


def main() -> None:
    scheduler_file, name, flaky_folder = sys.argv[1:]
    with Client(scheduler_file=scheduler_file, timeout=60) as client:
        program = Program(client, name, flaky_folder)
        print("{}", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = getattr(program, order.pop("order"))(**order)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
