"""What a client does once it is connected, before its user has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdask.messages.shared import Subscribe
from hpcdask.plugins.output import SHOWN

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection


def show_output(client: Connection) -> None:
    """Show what tasks print and warn of from now on."""
    for topic, handler in SHOWN.items():
        if topic not in client._subscriptions:  # else the user has a handler of his own
            client._subscriptions.add(topic, handler)
            client._send(Subscribe(topic))


async def set_up_preloads(client: Connection) -> None:
    """Import what is configured, and call its ``dask_setup``; raises LaunchError."""
    names = client.settings["client.preload"]
    if names:
        from hpcdask.service import Preloads  # here, since few have any

        argv = client.settings["client.preload-argv"]
        client._preloads = Preloads(client, list(names), list(argv))
        client._preloads.load()
        await client._preloads.setup()
