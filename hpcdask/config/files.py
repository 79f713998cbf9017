"""The YAML files of user and site: where they are, whom they may come from, what they say.

Where there is none, all that is asked of the file system is that. Each is read once per process.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hpcdask.config.settling import Layer, Leaf, layer_of
from hpcdask.errors import ConfigError
from hpcdask.trusted_files import MAX_FILE_BYTES, read_approved, user_folder

#: What a file may have in it; a tag for anything else would have an object made of it.
_PLAIN = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
}
_MAX_DEPTH = 20


def layers(environ: Mapping[str, str]) -> list[Layer]:
    """What the files say, the strongest first.

    Raises
    ------
    ConfigError
        If one cannot be read, cannot be trusted or holds what it cannot.
    """
    return [each for place in _places(environ) for each in _layers_of(*place)]


def paths(environ: Mapping[str, str]) -> list[Path]:
    """The files that are read, the strongest first."""
    return [path for place in _places(environ) for path in _files(*place)]


def forget() -> None:
    """Read them anew when they are needed again."""
    _layers_of.cache_clear()


def _places(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Files and folders of files, the strongest first, and the variable that names each, if any."""
    for variable, usual in (
        ("HPCDASK_CONFIG", (user_folder(environ),)),
        ("HPCDASK_SITE_CONFIG", (Path(sys.prefix, "etc/hpcdask"), Path("/etc/hpcdask"))),
    ):
        if variable not in environ:
            yield from ((folder, "") for folder in usual)
        elif environ[variable]:
            yield Path(environ[variable]).expanduser(), variable


@cache
def _layers_of(place: Path, named_by: str) -> tuple[Layer, ...]:
    return tuple(_read(path) for path in _files(place, named_by))


def _files(place: Path, named_by: str) -> list[Path]:
    """The files at a place: itself, or those of a folder, of which the last by name goes first."""
    try:
        names = [name for name in os.listdir(place) if name.endswith((".yaml", ".yml"))]
    except NotADirectoryError:
        return [place]
    except FileNotFoundError:
        if named_by:
            raise ConfigError(f"there is no {place}, which {named_by} names") from None
        return []
    except OSError as exc:
        raise ConfigError(f"cannot look for configuration in {place}: {exc.strerror}") from exc
    return [place / name for name in sorted(names, reverse=True) if not name.startswith(".")]


# -- One file -------------------------------------------------------------------------------------


def _read(path: Path) -> Layer:
    try:
        text = read_approved(path, lambda status: _refuse_untrusted(path, status))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    return parse(text, str(path))


def _refuse_untrusted(path: Path, status: os.stat_result) -> None:
    """A file decides what code runs, by preload: others must not be able to write it.

    Who owns the package could as well write that, so a site's software account may own both.
    """
    why = "for it decides what code runs as you"
    if status.st_uid not in (os.geteuid(), 0, os.stat(__file__).st_uid):
        raise ConfigError(
            f"{path} belongs to user {status.st_uid}, and is neither yours nor root's: it is not "
            f"read, {why}. Copy it to a file of your own and look what is in it."
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}): it is not "
            f"read, {why}. Look what is in it, and run: chmod go-w {shlex.quote(str(path))}"
        )
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is no file of at most {MAX_FILE_BYTES} bytes")


def parse(text: str, name: str) -> Layer:
    """What the text of a file says.

    Raises
    ------
    ConfigError
        If it is no YAML, PyYAML is missing, or it has settings that there are not; with the line.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"there is a configuration file, {name}, but PyYAML, which reads it, is not installed "
            f"for {sys.executable}. Run: pip install 'hpcdask[yaml]'"
        ) from None
    try:
        # Nodes, not objects: they know their lines, and how each value was written.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(exc, "problem", None) or str(exc)
        raise ConfigError(f"{name}{line}: this is no YAML: {problem}") from None
    if node is None or node.tag.endswith(":null"):  # nothing, or comments
        return Layer()
    if node.id != "mapping":
        raise ConfigError(f"{name}: this has no keys; expected 'scheduler:' or the like in line 1")
    return layer_of(_leaves(node, (), name))


def _leaves(node: Any, path: tuple[str, ...], name: str) -> Iterator[Leaf]:
    for key, value in node.value:
        where = f"{name}:{key.start_mark.line + 1}"
        inner = (*path, str(_value(key, where)))
        if len(inner) > _MAX_DEPTH:
            raise _endless(where)
        if value.id == "mapping":
            yield from _leaves(value, inner, name)
        else:
            yield Leaf(inner, _value(value, where), where)


def _value(node: Any, where: str, depth: int = 0) -> Any:
    """Scalars as they were written, None for null; lists and dicts of these."""
    if depth > _MAX_DEPTH:
        raise _endless(where)
    if node.tag not in _PLAIN:
        raise ConfigError(f"{where}: expected a plain value, found {node.tag}")
    if node.id == "sequence":
        return [_value(item, where, depth + 1) for item in node.value]
    if node.id == "mapping":
        pairs = ((_value(k, where, depth + 1), v) for k, v in node.value)
        return {str(key): _value(value, where, depth + 1) for key, value in pairs}
    return None if node.tag.endswith(":null") else str(node.value)


def _endless(where: str) -> ConfigError:
    return ConfigError(f"{where}: this is in itself, by its alias, and has no end")
