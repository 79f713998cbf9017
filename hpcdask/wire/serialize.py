"""Objects to blobs and back: pickle protocol 5 with out-of-band buffers, cloudpickle where needed.

Pickles are only ever opened by the process that uses the object, never on the way.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any, cast

from hpcdask.errors import SerializationError
from hpcdask.messages import Blob, Frames
from hpcdask.wire.first_imports import is_half_an_import, wait_for_imports
from hpcdask.wire.memory import room

#: Buffers below this stay inside their pickle, and pickles below it inside their message.
OUT_OF_BAND = 32 * 1024
#: The version whose byte code this is.
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
#: Containers longer than this are not searched for large bytes.
_SEARCHED = 256

#: Times that a pickle is read whose names are just being imported by other threads.
_TRIES = 4
#: The opcode by which protocols 4 and 5 look up a name in a module.
_STACK_GLOBAL = pickle.STACK_GLOBAL

#: Starts a pickle in which large bytes are persistent ids; plain pickles start with 0x80.
WITH_LARGE_BYTES = b"L"


def dumps(obj: object, polite: bool = False) -> Blob:
    """Pickle any object; large buffers within it are referred to, not copied.

    Parameters
    ----------
    obj : object
        Functions and classes of ``__main__`` and closures go by value.
    polite : bool
        Let other threads run meanwhile, which takes a little longer.

    Returns
    -------
    bytes or Frames
        Frames if it has a part of at least `OUT_OF_BAND` bytes.

    Raises
    ------
    SerializationError
        If neither pickle nor cloudpickle can.
    """
    blob = _dumps_by_reference(obj, polite)
    return _dumps_by_value(obj, polite) if blob is None else blob


def _dumps_by_reference(obj: object, polite: bool = False) -> Blob | None:
    """Pickle with functions and classes as names, or None if these would not do."""
    if polite or _has_large_bytes(obj):
        return _pickled_with(_LargeBytesPickler if _has_large_bytes(obj) else _Pickler, obj, polite)
    buffers: list[memoryview] = []
    try:
        data = pickle.dumps(obj, protocol=5, buffer_callback=_collector(buffers))
    except Exception:  # lambdas, closures, local classes, and whatever __reduce__ raises
        return None
    if not _names_would_do(data):
        return None
    return _blob(data, buffers)


def _names_would_do(data: bytes | bytearray) -> bool:
    """Whether the reader can import what is named in a pickle, as far as is known here."""
    if b"__main__" in data:  # the reader's is another module
        return False
    # Another thread may be importing it just now: nobody has told it anything then.
    listed = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    by_value = listed() if listed is not None else ()
    return not by_value or not any([name.encode() in data for name in by_value])


def _dumps_by_value(obj: object, polite: bool = False) -> Blob:
    return cast(Blob, _pickled_with(_by_value_pickler(), obj, polite))


def _unpicklable(obj: object, exc: Exception) -> SerializationError:
    from hpcdask.wire import unpicklable  # not before something goes wrong

    def problem(part: object) -> Exception | None:
        pickler = _by_value_pickler()
        try:
            pickler(io.BytesIO(), protocol=5, buffer_callback=lambda _: False).dump(part)
        except Exception as problem:
            return problem
        return None

    part = unpicklable.find(obj, exc, problem)
    return unpicklable.error(part, f"an object of type {type(obj).__qualname__}")


def loads(blob: Blob, polite: bool = False, imported: int = 0) -> Any:
    """Rebuild an object; arrays share the memory of the blob's buffers.

    Parameters
    ----------
    polite : bool
        As of `dumps`.
    imported : int
        Names in the pickle that are known to be of modules which are imported.

    Raises
    ------
    Exception
        Whatever rebuilding raises, for example ModuleNotFoundError.
    """
    is_plain = type(blob) is bytes and blob[:1] != WITH_LARGE_BYTES and not polite
    if is_plain and cast(bytes, blob).count(_STACK_GLOBAL) <= imported:
        return pickle.loads(cast(bytes, blob))  # quicker, and there is nothing to import
    for _ in range(_TRIES - 1):
        try:
            return _loads_once(blob, polite)
        except (ImportError, AttributeError, RuntimeError) as exc:
            if not is_half_an_import(exc):
                raise
            wait_for_imports()
    return _loads_once(blob, polite)


def _loads_once(blob: Blob, polite: bool) -> Any:
    pickled, *buffers = blob.parts if isinstance(blob, Frames) else [blob]
    if polite:
        return LargeBytesUnpickler(_PoliteReader(pickled), buffers=buffers).load()
    if pickled[:1] == WITH_LARGE_BYTES:
        return LargeBytesUnpickler(io.BytesIO(memoryview(pickled)[1:]), buffers=buffers).load()
    return _Unpickler(io.BytesIO(pickled), buffers=buffers).load()


def _collector(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # neither C- nor Fortran-contiguous
            return True
        if raw.nbytes < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    return keep_in_band


def _blob(data: bytes | bytearray, buffers: list[memoryview]) -> Blob:
    if buffers or len(data) >= OUT_OF_BAND:
        return Frames([data, *buffers])
    return bytes(data)


# -- Large bytes ----------------------------------------------------------------------------------
# Protocol 5 sends arrays out of band, but bytes and bytearray in band, with a copy, and knows no
# memoryview. A pickler with `persistent_id` can catch them, but is called for every object; so it
# is used only where a look at the outermost containers finds some, or where functions go by value.


def _has_large_bytes(obj: object, depth: int = 3) -> bool:
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        return len(cast(bytes, obj)) >= OUT_OF_BAND
    if kind is memoryview:
        return True
    if not depth or kind not in (tuple, list, dict):
        return False
    items = cast("dict[Any, Any]", obj).values() if kind is dict else cast("list[Any]", obj)
    return len(items) <= _SEARCHED and any(_has_large_bytes(item, depth - 1) for item in items)


class _LargeBytes:
    """Mix-in for a pickler: bytes-like objects go out of band."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: dict[int, Any] = {}  # keeps what it names alive, so no id comes twice

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        is_large = (kind is bytes or kind is bytearray) and len(obj) >= OUT_OF_BAND
        if not is_large and kind is not memoryview:
            return None
        # The very same tuple again is what tells the reader that it is the same object.
        known = self._seen.get(id(obj))
        if known is None:
            known = self._seen[id(obj)] = _described(obj), obj
        return known[0]


def _described(obj: bytes | bytearray | memoryview) -> tuple[Any, ...]:
    """Arguments of `_rebuilt`."""
    if not isinstance(obj, memoryview):
        return type(obj).__name__, pickle.PickleBuffer(obj)
    memoryview(bytes(obj.itemsize)).cast(cast(Any, obj.format))  # raises what reading would raise
    flat = obj
    if not obj.c_contiguous:
        flat = memoryview(obj.tobytes() if obj.readonly else bytearray(obj.tobytes()))
    return "memoryview", pickle.PickleBuffer(flat), obj.format, obj.shape


_Pickler = pickle.Pickler


class _LargeBytesPickler(_LargeBytes, pickle.Pickler):
    pass


@cache
def _by_value_pickler() -> Any:
    import cloudpickle  # 40 ms, and many processes never need it

    reducers = cloudpickle.Pickler.dispatch_table
    made_by = this_pickles()

    def reduce_code(code: CodeType) -> tuple[Any, ...]:
        """Keep the name of the file: tracebacks of tasks are to show the user's own lines.

        cloudpickle 3.1.3 puts another in its place. So the pickle, and with it the key of a pure
        call, depends on the file; that of a notebook's cell is another in each kernel.
        """
        _, arguments = reducers[CodeType](code)
        # A string of its own: one that the pickle has already would be referred to, and whether
        # two are the same object depends on more than the function.
        file = "".join(code.co_filename)
        return _code, (made_by, *[file if _is_no_file(a) else a for a in arguments])

    traits = {"dispatch_table": ChainMap({CodeType: reduce_code}, *reducers.maps)}
    return type("_ByValuePickler", (_LargeBytes, cloudpickle.Pickler), traits)


def _code(made_by: str, *arguments: Any) -> CodeType:
    """Rebuild code, if it is of this Python: that of another one would end the process.

    Parameters
    ----------
    made_by : str
        As "Python 3.11, cloudpickle 3.1.2", of who pickled it; `pickled_by` looks for it.
    """
    if not made_by.startswith(f"Python {_PYTHON},"):
        raise SerializationError(
            f"this code was pickled by {made_by}, and this is Python {_PYTHON} "
            f"({sys.executable}): it goes only between processes of one minor version. "
            "Start client and workers from the same environment."
        )
    return CodeType(*arguments)


def pickled_by(blob: Blob) -> str:
    """Who has pickled the code in a pickle, as "Python 3.11, cloudpickle 3.1.2"; "" if nobody."""
    import re

    pickled = blob.parts[0] if isinstance(blob, Frames) else blob
    found = re.search(rb"Python \d+\.\d+, cloudpickle [\w.+-]+", pickled)
    return found[0].decode() if found else ""


def this_pickles() -> str:
    """The same of this process."""
    import cloudpickle

    return f"Python {_PYTHON}, cloudpickle {cloudpickle.__version__}"


def _is_no_file(argument: object) -> bool:
    """Whether it is what cloudpickle puts in the place of a file name."""
    return type(argument) is str and argument == "<dynamic-code>"


class _Unpickler(pickle.Unpickler):
    """Imports the package of what a pickle names first.

    Who waits for that one holds the lock of no other module; see `hpcdask.wire.first_imports`.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            importlib.import_module(module.partition(".")[0])
        return super().find_class(module, name)


class LargeBytesUnpickler(_Unpickler):
    """Reads what `dumps` wrote, behind `WITH_LARGE_BYTES`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if id(pid) not in self._seen:
            self._seen[id(pid)] = pid, _rebuilt(*pid)
        return self._seen[id(pid)][1]


def _rebuilt(kind: str, buffer: Any, *layout: Any) -> Any:
    if kind == "memoryview":
        format_, shape = layout
        flat = memoryview(buffer).cast("B")
        # There is no way to give an empty memoryview more than one dimension.
        return flat.cast(format_, shape) if flat.nbytes else flat.cast(format_)
    wanted = bytes if kind == "bytes" else bytearray
    if isinstance(buffer, memoryview) and len(buffer) == len(memoryview(buffer.obj)):
        buffer = buffer.obj
    # What came over the network is bytes or a bytearray of its own, and need not be copied again.
    return buffer if type(buffer) is wanted else wanted(buffer)


def _pickled_with(pickler_type: Any, obj: object, polite: bool) -> Blob | None:
    """Pickle with a pickler of large bytes, or a plain one; None if its names would not do."""
    by_reference = pickler_type in (_LargeBytesPickler, _Pickler)
    buffers: list[memoryview] = []
    stream = _PoliteWriter() if polite else io.BytesIO()
    if pickler_type is not _Pickler:
        stream.write(WITH_LARGE_BYTES)
    try:
        pickler_type(stream, protocol=5, buffer_callback=_collector(buffers)).dump(obj)
    except Exception as exc:
        if by_reference:
            return None
        raise _unpicklable(obj, exc) from exc
    data = stream.getvalue()
    if by_reference and not _names_would_do(data):
        return None
    return _blob(data, buffers)


# -- Letting others run ----------------------------------------------------------------------------
# Pickling and rebuilding hold the interpreter's lock from begin to end, also in a thread: a second
# or more where there are a million objects. A file that is written in Python helps: for each frame
# of 64 KiB its methods are called, and then another thread may get its turn.


class _PoliteWriter:
    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []

    def write(self, piece: bytes | memoryview) -> int:
        self._pieces.append(piece if type(piece) is bytes else bytes(piece))
        return len(piece)

    def getvalue(self) -> bytes | bytearray:
        total = sum(map(len, self._pieces))
        if total < OUT_OF_BAND:
            return b"".join(self._pieces)
        whole, position = room(total), 0
        for piece in self._pieces:
            whole[position : position + len(piece)] = piece
            position += len(piece)
        return whole


class _PoliteReader:
    def __init__(self, pickled: Any) -> None:
        self._view = memoryview(pickled)
        self._position = 1 if pickled[:1] == WITH_LARGE_BYTES else 0

    def read(self, nbytes: int) -> bytes:
        start, self._position = self._position, self._position + nbytes
        return bytes(self._view[start : self._position])

    def readinto(self, target: Any) -> int:
        piece = self._view[self._position : self._position + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def readline(self) -> bytes:
        # Only opcodes of protocol 0 end with their lines, and some within are kept for ever.
        piece = bytes(self._view[self._position : self._position + 2**16])
        line = piece[: piece.find(b"\n") + 1] or piece
        self._position += len(line)
        return line


# -- Functions -------------------------------------------------------------------------------------

_functions: dict[FunctionType, tuple[tuple[Any, ...], Blob]] = {}


def dumps_function(function: Callable[..., Any]) -> Blob:
    """Pickle a callable, remembering those that go by value and cannot change unseen.

    A function may be changed between two calls through its globals, closure, defaults or
    attributes. Only one that has none of these is remembered, together with the rest of what
    its pickle holds.
    """
    if type(function) is not FunctionType or not _is_self_contained(function):
        return dumps(function)
    traits = _traits(function)
    known = _functions.get(function)
    if known is not None and known[0] == traits:
        return known[1]
    blob = _dumps_by_reference(function)
    if blob is not None:  # a name: quick to pickle, and another function may get it
        return blob
    blob = _dumps_by_value(function)
    if len(_functions) >= 500:
        _functions.clear()
    _functions[function] = traits, blob
    return blob


def _traits(function: FunctionType) -> tuple[Any, ...]:
    return (
        function.__code__,
        function.__module__,
        function.__name__,
        function.__qualname__,
        function.__doc__,
        dict(function.__annotations__),
    )


def _is_self_contained(function: FunctionType) -> bool:
    return not (
        function.__closure__
        or function.__defaults__
        or function.__kwdefaults__
        or function.__dict__
        or _names(function.__code__) & function.__globals__.keys()
    )


def _names(code: CodeType) -> set[str]:
    """Names that a function and those nested in it may look up among their globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= _names(constant)
    return names


def function_name(function: object) -> str:
    """Return a short name for keys and averages; a partial has that of what it wraps."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name).strip("<>")[:60] or "task"
