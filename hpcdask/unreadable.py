"""What to say of a pickle that cannot be read here, and what the user can do about it."""

from __future__ import annotations

from hpcdask.core.worker_state import Execute
from hpcdask.messages import Blob
from hpcdask.network import hostname
from hpcdask.wire.serialize import pickled_by, this_pickles


def unreadable(exc: Exception, what: str, blob: Blob, address: str) -> Exception:
    """An error of the same type that says what could not be read, where, and the cure.

    Parameters
    ----------
    exc : Exception
        That reading the pickle has raised. What is no matter of what is installed, as the error of
        a class's own ``__setstate__``, stays as it is.
    what : str
        Was to be read, as "the function f".
    address : str
        Of the process that reads it.

    Examples
    --------
    >>> told = unreadable(ModuleNotFoundError("No module named 'm'", name="m"), "f", b"", "tcp://a:1")
    >>> str(told)
    "No module named 'm': tcp://a:1 on ... needs it for f. Install m where workers run ..."
    """
    where = f"{address} on {hostname()}" if address else hostname()
    told: Exception
    if isinstance(exc, ModuleNotFoundError):
        text = f"{exc.msg}: {where} needs it for {what}. {_cure(exc.name or '')}"
        told = ModuleNotFoundError(text, name=exc.name, path=exc.path)
    elif isinstance(exc, ImportError) or _is_missing_name(exc):
        told = (ImportError if isinstance(exc, ImportError) else AttributeError)(
            f"{exc}: {where} cannot read {what}, for that module there is another one than where "
            f"it comes from{_pickled_by_others(blob)}. Install the same everywhere, and restart "
            "workers that have imported an older one: client.restart()."
        )
    else:
        return exc
    return told.with_traceback(exc.__traceback__)


def unreadable_task(exc: Exception, task: Execute, is_function: bool, address: str) -> Exception:
    """The same of a task: of its function, or of its arguments."""
    part = "the function" if is_function else "the arguments of"
    what = f"{part} {task.function.name} (task {task.key!r})"
    return unreadable(exc, what, task.function.code if is_function else task.arguments, address)


def _is_missing_name(exc: Exception) -> bool:
    """Whether it is the unpickler's error about a name that a module has not."""
    return isinstance(exc, AttributeError) and str(exc).startswith("Can't get attribute")


def _pickled_by_others(blob: Blob) -> str:
    there, here = pickled_by(blob), this_pickles()
    return "" if there in ("", here) else f" ({there} there, {here} here)"


def _cure(module: str) -> str:
    package = module.partition(".")[0]
    return (
        f"Install {package} where workers run. A module of your own they find if its folder is in "
        f"PYTHONPATH when they start, or after client.upload_file('{package}.py'); or they need "
        f"not find it: cloudpickle.register_pickle_by_value({package})."
    )
