"""What a client keeps of its submissions, to make them again to a scheduler that has lost them.

Nothing is searched while all goes well: the state of each pending future refers to the recipe that
its key is made by, a recipe to those that it builds on, and what is referred to no more is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hpcdask.messages import Blob, Frames, Function, TaskSpec
from hpcdask.messages.client import SubmitTasks

if TYPE_CHECKING:
    from hpcdask.client.future import FutureState

#: Position, priority, retries and restriction of most tasks that are submitted one at a time.
_USUAL = (0, 0.0, 0, None)


class Recipe:
    """The tasks of one message, until the last future that came of it is done.

    Its fields are those of the `SubmitTasks` itself, in half the memory: a client that submits one
    task at a time has as many of these as of futures.
    """

    __slots__ = (
        "__weakref__",
        "functions",
        "how",
        "inputs",
        "pending",
        "submission",
        "tasks",
        "wanted",
    )

    def __init__(self, message: SubmitTasks) -> None:
        self.submission = message.submission
        self.functions = message.functions
        self.tasks = message.tasks
        self.wanted = message.wanted
        how = message.first, message.priority, message.retries, message.restriction
        self.how = _USUAL if how == _USUAL else how
        self.inputs: tuple[Recipe, ...] = ()  # of what was pending when this was submitted
        self.pending = 0  # futures; `FutureState.end` counts them

    def future_keys(self) -> Iterable[str]:
        """Keys that the client had futures of."""
        return [key for key, _, _, _ in self.tasks] if self.wanted is None else self.wanted

    @property
    def first(self) -> int:
        """Position of its first task within the submission."""
        return self.how[0]

    def again(self, submission: int, first: int, wanted: tuple[str, ...], want: int) -> SubmitTasks:
        """The message anew; that it is the last of its submission is said by another."""
        _, priority, retries, restriction = self.how
        how = (first, priority, retries, False, want, restriction)
        return SubmitTasks(submission, self.functions, self.tasks, wanted, *how)


class Retained:
    """The recipes of one client.

    Parameters
    ----------
    futures : dict
        The client's, by key.
    """

    def __init__(self, futures: dict[str, FutureState]) -> None:
        self._futures = futures
        #: Graphs of which the client is still sending: submission -> recipe of the last chunk.
        self._unfinished: dict[int, Recipe] = {}
        #: By a function's id a recipe that has it, so that others need no pickle of their own.
        self._with_function: weakref.WeakValueDictionary[bytes, Recipe] = (
            weakref.WeakValueDictionary()
        )

    def keep(self, message: SubmitTasks) -> SubmitTasks:
        """Keep what a message submits; call it under the client's lock, before it is sent.

        Returns
        -------
        SubmitTasks
            The message to send, whose buffers nobody can change any more.
        """
        has_buffers = _has_buffers(message)
        if has_buffers:
            message = message._replace(tasks=tuple(map(_task_with_own_buffers, message.tasks)))
        recipe = Recipe(message)
        self._share_functions(recipe)
        if has_buffers:
            message = message._replace(functions=recipe.functions)
        recipe.inputs = self._inputs(message, recipe)
        states = map(self._futures.get, recipe.future_keys())
        # A key may have a recipe already: a graph may ask for what is being computed.
        new = [s for s in states if s is not None and s.recipe is None and s.status == "pending"]
        for state in new:
            state.recipe = recipe
        recipe.pending = len(new)
        return message

    def _inputs(self, message: SubmitTasks, recipe: Recipe) -> tuple[Recipe, ...]:
        """Recipes that this one needs, the earlier chunks of its own graph among them."""
        found: dict[Recipe, None] = {}
        if message.wanted is not None:
            earlier = self._unfinished.pop(message.submission, None)
            if earlier is not None:
                found[earlier] = None
            if not message.final:
                self._unfinished[message.submission] = recipe
        futures = self._futures
        for _, _, _, dependencies in message.tasks:
            for key in dependencies:
                state = futures.get(key)
                if state is not None and state.recipe is not None:
                    found[state.recipe] = None
        return tuple(found) if found else ()

    def _share_functions(self, recipe: Recipe) -> None:
        if len(recipe.functions) == 1:
            function_id = recipe.functions[0].function_id
            known = self._with_function.get(function_id)
            if known is not None:
                recipe.functions = known.functions
                return
            self._with_function[function_id] = recipe
        if any([type(function.code) is Frames for function in recipe.functions]):
            recipe.functions = tuple(map(_function_with_own_buffers, recipe.functions))

    def recipes(self) -> list[Recipe]:
        """All that is needed to compute what is pending, in the order of submission."""
        states = self._futures.values()
        found = dict.fromkeys([s.recipe for s in states if s.recipe is not None])
        found.update(dict.fromkeys(self._unfinished.values()))
        to_follow = list(found)
        while to_follow:
            for recipe in to_follow.pop().inputs:
                if recipe not in found:
                    found[recipe] = None
                    to_follow.append(recipe)
        return sorted(found, key=lambda recipe: (recipe.submission, recipe.first))

    def is_unfinished(self, submission: int) -> bool:
        """Whether further chunks of that graph will follow."""
        return submission in self._unfinished


def _has_buffers(message: SubmitTasks) -> bool:
    blobs = [arguments for _, _, arguments, _ in message.tasks]
    blobs += [function.code for function in message.functions]
    return Frames in set(map(type, blobs))


# What the user's program could change before the tasks are submitted again is copied.


def _task_with_own_buffers(task: TaskSpec) -> TaskSpec:
    return task._replace(arguments=owned(task.arguments))


def _function_with_own_buffers(function: Function) -> Function:
    return function._replace(code=owned(function.code))


def owned(blob: Blob) -> Blob:
    """Copy those buffers of a blob that the user's program could change."""
    if type(blob) is not Frames:
        return blob
    return Frames([part if _is_constant(part) else bytearray(part) for part in blob.parts])


def _is_constant(part: bytes | bytearray | memoryview) -> bool:
    return type(part) is bytes or (type(part) is memoryview and part.readonly)
