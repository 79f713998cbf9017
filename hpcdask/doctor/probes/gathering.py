"""All probes of one host, none of which can hold up the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from hpcdask import config
from hpcdask.doctor.facts import HostFacts
from hpcdask.doctor.options import DoctorOptions
from hpcdask.doctor.probes import grants, launch, limits, network, places, software, spawning
from hpcdask.errors import ConfigError
from hpcdask.threads import in_thread

Look = Callable[[], Any]


async def look_at_host(options: DoctorOptions, timeout: float, is_first: bool = True) -> HostFacts:
    """Look at everything, in at most twice `timeout` seconds.

    What needs to be asked once only, the first host asks.

    What does not end in time (a file server that is gone, a driver that hangs) is left behind in
    its thread, and named in `errors`.
    """
    # Alone, since it is about how long it takes.
    facts = await _looked({"spawning": partial(spawning.look, timeout)}, timeout + 1)
    rest: dict[str, Look] = {
        "software": software.look,
        "launch": partial(launch.look, is_first),
        "network": partial(network.look, options.interface, options.port_range),
        "folder": partial(places.look_at_folder, options.folder, options.is_folder_asked),
        "token": partial(places.look_at_token, os.environ, _own_token_file()),
        "scratch": partial(places.look_at_scratch, options.local_directory),
        "grants": partial(grants.look, True),
        "limits": limits.look,
    }
    others = await _looked(rest, timeout)
    errors = {**facts["errors"], **others["errors"]}
    return cast(HostFacts, {**facts, **others, "errors": errors})


def _own_token_file() -> str | None:
    """Where the user's own token file is configured to be."""
    try:
        return config.get("token-file")  # type: ignore[no-any-return]
    except ConfigError:  # of which the software tells
        return None


async def look_at_rank() -> HostFacts:
    """Look at what may differ between the ranks of a host."""
    return cast(HostFacts, await _looked({"grants": partial(grants.look, False)}, 5.0))


async def _looked(looks: Mapping[str, Look], timeout: float) -> dict[str, Any]:
    running = {subject: in_thread(look) for subject, look in looks.items()}
    await asyncio.wait(running.values(), timeout=timeout)
    facts: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for subject, outcome in running.items():
        if not outcome.done():
            outcome.cancel()
            errors[subject] = f"it did not end within {timeout:.2g} s"
        elif (problem := outcome.exception()) is not None:
            errors[subject] = str(problem) or repr(problem)
        else:
            facts[subject] = outcome.result()
    return {**facts, "errors": errors}
