"""Which part of an object it is that cannot be pickled, to say so to who sends it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

from hpcdask.errors import SerializationError
from hpcdask.wire.serialize import function_name

#: Parts that are tried, after which what has been found so far is told, and how deep they lie.
_MOST, _DEEPEST = 10_000, 50
_SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})
#: What is of the moment or of this process by its nature, and what to send instead.
_INSTEAD: dict[type, str] = {
    types.GeneratorType: "Make a list of what it yields",
    types.ModuleType: "Import it in the function that runs there",
}
USUAL = "Make it in the function that runs there, or leave it out of what is sent (__getstate__)"

Problem = Callable[[object], Exception | None]


class Unpicklable(NamedTuple):
    """A part of an object that cannot be pickled; text only, so that an error can carry it."""

    steps: tuple[str, ...]  # to it, as a reader would write them behind the object's name
    kind: str  # its type
    why: str
    cure: str


def find(obj: object, exc: Exception, problem: Problem) -> Unpicklable:
    """Look for the innermost part that cannot be pickled.

    Parameters
    ----------
    obj : object
        Cannot be pickled.
    exc : Exception
        Why.
    problem : callable
        Tries to pickle an object, and returns what that raises, or None.
    """
    steps: list[str] = []
    above: list[object] = []
    # Of what is too much no part is to blame.
    n_left = 0 if _is_too_much(exc) else _MOST
    while len(steps) < _DEEPEST:
        above.append(obj)
        for step, part in islice(_parts(obj), n_left):
            n_left -= 1
            if type(part) in _SCALARS or any(part is known for known in above):
                continue
            found = problem(part)
            if found is not None:
                steps.append(step)
                obj, exc = part, found
                break
        else:
            break
    return Unpicklable(tuple(steps), _kind(obj), _why(exc), _cure(obj, exc))


def _kind(obj: object) -> str:
    kind = type(obj)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def _is_too_much(exc: Exception) -> bool:
    # cloudpickle makes an error of its own of the first.
    return isinstance(exc, MemoryError) or any(
        isinstance(each, RecursionError) for each in (exc, exc.__cause__)
    )


def _why(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".rstrip(".")


def _cure(obj: object, exc: Exception) -> str:
    if _is_too_much(exc):
        return "Send it in smaller pieces"
    for kind, cure in _INSTEAD.items():
        if issubclass(type(obj), kind):  # it may lie about its class, or raise
            return cure
    return USUAL


# -- What an object is made of --------------------------------------------------------------------


def _parts(obj: object) -> Iterator[tuple[str, object]]:
    """How a reader would write each part behind the object's name, and the part.

    Nothing that an object does when it is looked at, or asked, may end the search.
    """
    try:
        yield from _parts_of(obj)
    except Exception:
        return


def _parts_of(obj: Any) -> Iterator[tuple[str, object]]:
    kind = type(obj)
    if issubclass(kind, dict):
        for key, value in dict.items(obj):
            yield f"'s key {_short(key)}", key
            yield f"[{_short(key)}]", value
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        yield from ((f".{name}", item) for name, item in zip(kind._fields, obj, strict=False))
    elif issubclass(kind, (list, tuple)):
        yield from ((f"[{i}]", item) for i, item in enumerate(obj))
    elif issubclass(kind, (set, frozenset)):
        yield from (("'s item", item) for item in obj)
    if isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, partial):
        yield "", obj.func
        yield from ((f"'s argument {i}", item) for i, item in enumerate(obj.args))
        yield from ((f"'s argument {name}", item) for name, item in obj.keywords.items())
    elif isinstance(obj, type):
        yield from ((f".{name}", item) for name, item in list(vars(obj).items()))
    elif kind not in (dict, list, tuple, set, frozenset):
        yield from _parts_of_instance(obj)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """What a function that goes by value takes along."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f"'s variable {name}", cell.cell_contents
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f"'s global variable {name}", function.__globals__[name]
    yield from (("'s default", value) for value in function.__defaults__ or ())
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"'s default of {name}", value
    yield from ((f".{name}", value) for name, value in vars(function).items())


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _parts_of_instance(obj: Any) -> Iterator[tuple[str, object]]:
    """What pickle takes of an object, by the object's own account."""
    reduced = obj.__reduce_ex__(5)
    if not isinstance(reduced, tuple):
        return
    _, arguments, state, *more = (*reduced, None, None, None)[:5]
    # A state is that of __dict__, with that of slots beside it, or whatever __getstate__ returns.
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for each in states:
        if isinstance(each, dict):
            yield from ((f".{name}", value) for name, value in each.items())
        elif each is not None:
            yield ".__getstate__()", each
    for argument in arguments or ():
        if not isinstance(argument, type):
            yield "'s content", argument
    for items in more:
        yield from (("'s item", item) for item in items or ())


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."


# -- Saying it ------------------------------------------------------------------------------------


def error(part: Unpicklable, what: str, name: str = "it") -> SerializationError:
    """An error that names the part.

    Parameters
    ----------
    what : str
        The object, for a reader, as "argument 'model' of fit".
    name : str
        The object's name, behind which the steps stand, as "model".
    """
    culprit = f"{name}{''.join(part.steps)}" if part.steps else "it"
    culprit = f"its{culprit[4:]}" if culprit.startswith("it's ") else culprit
    article = "an" if part.kind[0] in "aeiouAEIOU" else "a"
    exc = SerializationError(
        f"cannot pickle {what}: {culprit} is {article} {part.kind} ({part.why}). {part.cure}."
    )
    exc.part = part
    return exc


def about(
    exc: SerializationError, what: str, name: str = "it", skipped: int = 0, cure: str = ""
) -> SerializationError:
    """The same error, told of an object as the user knows it.

    Parameters
    ----------
    skipped : int
        Steps that `what` and `name` stand for.
    cure : str
        In place of the usual one.
    """
    part: Unpicklable | None = exc.part
    if part is None:
        return SerializationError(f"{what}: {exc}")
    if cure and part.cure == USUAL:
        part = part._replace(cure=cure)
    return error(part._replace(steps=part.steps[skipped:]), what, name)


def about_call(
    exc: SerializationError, function: object, pickled: Literal["function", "arguments", "call"]
) -> SerializationError:
    """The error of what a call is made of, told of the function, or of the argument.

    Parameters
    ----------
    pickled : str
        A function, (args, kwargs), or a function and these.
    """
    called = function_name(function) if function is not None else "a function"
    steps: tuple[str, ...] = exc.part.steps if exc.part is not None else ()
    if pickled == "function":
        return about(exc, f"the function {called}", called)
    if len(steps) < 2:
        what = "the call" if pickled == "call" else "the arguments"
        return about(exc, f"{what} of {called}")
    first, second = int(steps[0][1:-1]) + (pickled == "arguments"), steps[1]
    if first == 0:
        return about(exc, f"the function {called}", called, skipped=1)
    name = second[2:-2] if first == 2 else _parameter(function, second)
    if name is None:
        return about(exc, f"argument {second[1:-1]} of {called}", f"args{second}", skipped=2)
    return about(exc, f"argument {name!r} of {called}", name, skipped=2)


def _parameter(function: Any, step: str) -> str | None:
    """Name of the parameter that gets a positional argument."""
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
        found = parameters[int(step[1:-1])]
    except (TypeError, ValueError, IndexError):  # some builtins do not tell; or it is in *args
        return None
    positional = (found.POSITIONAL_ONLY, found.POSITIONAL_OR_KEYWORD)
    return found.name if found.kind in positional else None
