"""How the values of settings are read: durations, sizes, switches, lists, tables.

What comes from the environment is text, and so is every scalar of a YAML file, as it stands there:
``01:30:00`` is a walltime and not 5400, ``0755`` is not 493. What comes from a program may be the
value itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hpcdask.errors import ConfigError
from hpcdask.host import parse_bytes, parse_timedelta, parse_walltime
from hpcdask.resources import checked_resources, parse_resources

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NULL = ("", "none", "null")

#: For a kind that has no value which means "nothing".
REFUSED = object()


class Kind(NamedTuple):
    """What a setting may be.

    A table has entries of their own, which come together from several places.
    """

    name: str  # for messages and documentation, as in "it takes a duration"
    read: Callable[[Any], Any]  # raises ConfigError
    null: Any = REFUSED  # what null stands for, if the setting has a default to switch off
    is_table: bool = False
    is_path: bool = False  # ~ and $NAME in it are filled in where it is used


def is_null(raw: object) -> bool:
    """Whether a value says that there is none."""
    return raw is None or (isinstance(raw, str) and raw.strip().lower() in _NULL)


def _text(raw: Any) -> str:
    if isinstance(raw, (list, dict, bool)):
        raise ConfigError(f"{raw!r} is no text")
    return str(raw).strip()


def _count(raw: Any) -> int:
    try:
        number = int(_text(raw))
    except ValueError:
        number = -1
    if number < 0:
        raise ConfigError(f"{raw!r} is no number of things: give 0, 1, 2, ...")
    return number


def _positive(raw: Any) -> int:
    number = _count(raw)
    if not number:
        raise ConfigError(f"{raw!r} is too few: give at least 1")
    return number


def _interval(raw: Any) -> float:
    seconds = parse_timedelta(raw)
    if not seconds:
        raise ConfigError(f"{raw!r} is no time at all: give more")
    return seconds


def _walltime(raw: Any) -> int:
    return parse_walltime(_text(raw))


def _switch(raw: Any) -> bool:
    word = str(raw).strip().lower()
    if word not in _TRUE + _FALSE:
        raise ConfigError(f"{raw!r} is neither true nor false")
    return word in _TRUE


def _ports(raw: Any) -> str:
    from hpcdask.comm.addresses import parse_ports

    text = _text(raw)
    parse_ports(text)
    return text


def _memory(raw: Any) -> str:
    text = _text(raw)
    if text.lower() != "auto":
        parse_bytes(text)
    return text


def _workers(raw: Any) -> str:
    text = _text(raw)
    try:
        return text if text == "auto" else str(int(text))
    except ValueError:
        raise ConfigError(f"{raw!r} is neither a number nor 'auto'") from None


def _compression(raw: Any) -> str | None:
    name = str(raw).strip().lower()
    if name in _FALSE:
        return None
    if name not in ("auto", "lz4", "zstd"):
        raise ConfigError(f"{raw!r} is no compression; set auto, lz4, zstd or none")
    return name


def _log_format(raw: Any) -> str:
    text = _text(raw)
    try:
        logging.Formatter(text)
    except ValueError as exc:
        raise ConfigError(f"{raw!r} is no format of log lines: {exc}") from None
    return text


def one_of(*words: str) -> Kind:
    """One of a few words."""

    def read(raw: Any) -> str:
        word = _text(raw).lower()
        if word not in words:
            raise ConfigError(f"{raw!r} is none of {', '.join(words)}")
        return word

    return Kind(f"one of {', '.join(words)}", read)


def _list(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        raw = _json(raw, list)
    if isinstance(raw, str):
        raw = [word.strip() for word in raw.split(",") if word.strip()]
    if not isinstance(raw, (list, tuple)):
        raise ConfigError(f"{raw!r} is no list")
    return tuple(_text(item) for item in raw)


def _variables(raw: Any) -> dict[str, str]:
    if isinstance(raw, str):
        raw = _json(raw, dict)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{raw!r} is no table of variables, as {{NAME: value}}")
    for name in raw:
        if not str(name).isidentifier():
            raise ConfigError(f"{name!r} is no name of a variable")
    return {str(name): _text(value) for name, value in raw.items()}


def _amounts(raw: Any) -> dict[str, float]:
    if isinstance(raw, str):
        return parse_resources(raw)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{raw!r} are no resources, as {{GPU: 1}} or 'GPU=1'")
    amounts: dict[str, Any] = {}
    for name, amount in raw.items():
        try:
            amounts[name] = float(amount)
        except (TypeError, ValueError):
            amounts[name] = amount  # whose refusal says what it should be
    return dict(checked_resources(amounts))


def _json(text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no JSON: {exc}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{text!r} is JSON, but no {kind.__name__}")
    return value


TEXT = Kind("text", _text)
PATH = Kind("path", _text, is_path=True)
COUNT = Kind("number", _count)
POSITIVE = Kind("number from 1 up", _positive)
SWITCH = Kind("true or false", _switch)
DURATION = Kind("duration", parse_timedelta)
INTERVAL = Kind("duration above 0", _interval)
WALLTIME = Kind("time as in 1:30:00 or 90min", _walltime)
#: Where 0, like null, is for ever.
PATIENCE = Kind("duration", parse_timedelta, null=0.0)
SIZE = Kind("size", parse_bytes)
PORTS = Kind("port or range", _ports)
MEMORY = Kind("size, fraction or auto", _memory, null="0")
WORKERS = Kind("number or auto", _workers)
COMPRESSION = Kind("auto, lz4, zstd or none", _compression, null=None)
LOG_FORMAT = Kind("format", _log_format)
LIST = Kind("list", _list, null=())
VARIABLES = Kind("table of text", _variables, null={}, is_table=True)
AMOUNTS = Kind("table of numbers", _amounts, null={}, is_table=True)
