"""Settings from the environment, for what has no option of its own; read once per service."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from hpcdask.errors import ConfigError
from hpcdask.host import parse_bytes, parse_timedelta


def _compression(text: str) -> str | None:
    name = text.strip().lower()
    if name not in ("", "none", "off", "auto", "lz4", "zstd"):
        raise ConfigError(f"{text!r} is no compression; set auto, lz4, zstd or none")
    return None if name in ("", "none", "off") else name


#: Variable -> (setting, how to read it). docs/configuration.md explains each.
COMM_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "HPCDASK_COMM_MAX_MESSAGES": ("max_messages", parse_bytes),
    "HPCDASK_COMM_MAX_BUFFERS": ("max_buffers", parse_bytes),
    "HPCDASK_COMM_COMPRESSION": ("compression", _compression),
    "HPCDASK_COMM_HANDSHAKE_TIMEOUT": ("handshake_timeout", parse_timedelta),
}


def comm_settings(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Parameters of `CommOptions` that the environment sets.

    Raises
    ------
    ConfigError
        If a value cannot be read, or a variable's name begins with HPCDASK_COMM_ and is none of
        ours: a limit that was misspelt must not silently be the default.
    """
    environ = os.environ if environ is None else environ
    settings = {}
    for variable, text in environ.items():
        if not variable.startswith("HPCDASK_COMM_"):
            continue
        if variable not in COMM_VARIABLES:
            known = ", ".join(COMM_VARIABLES)
            raise ConfigError(f"the environment sets {variable}, which is none of {known}")
        name, read = COMM_VARIABLES[variable]
        try:
            settings[name] = read(text)
        except ConfigError as exc:
            raise ConfigError(f"{variable}: {exc}") from exc
    return settings
