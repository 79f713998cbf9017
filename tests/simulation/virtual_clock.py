"""Virtual time: what is to happen, in the order in which it does."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Timer:
    """One thing to happen, which can be called off."""

    __slots__ = ("action", "args", "clock", "is_idle")

    def __init__(
        self, clock: VirtualClock, action: Callable[..., None], args: tuple[Any, ...], is_idle: bool
    ) -> None:
        self.clock = clock
        self.action: Callable[..., None] | None = action
        self.args = args
        self.is_idle = is_idle

    def cancel(self) -> None:
        if self.action is not None:
            self.action, self.args = None, ()
            self.clock.n_busy -= not self.is_idle


class VirtualClock:
    """Time that passes from one event to the next; equal times keep the order of their making."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.n_events = 0
        self.n_busy = 0  # timers that mean work, and not only that time passes
        self._heap: list[tuple[float, int, Timer]] = []
        self.pushes = 0

    def after(
        self, delay: float, action: Callable[..., None], *args: Any, idle: bool = False
    ) -> Timer:
        """Have something happen.

        Parameters
        ----------
        idle : bool
            It repeats for ever, and does not keep the cluster from being at rest.
        """
        timer = Timer(self, action, args, idle)
        self.pushes += 1
        self.n_busy += not idle
        heappush(self._heap, (self.now + delay, self.pushes, timer))
        return timer

    @property
    def busy_until(self) -> float:
        """When the last of what is under way by now will happen."""
        times = [at for at, _, timer in self._heap if timer.action and not timer.is_idle]
        return max(times, default=self.now)

    def step(self) -> bool:
        """Let the next thing happen; False if there is none."""
        while self._heap:
            at, _, timer = heappop(self._heap)
            action, args = timer.action, timer.args
            if action is not None:
                timer.cancel()
                self.now = at
                self.n_events += 1
                action(*args)
                return True
        return False
