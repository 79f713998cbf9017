"""Which client is meant where none is named."""

from __future__ import annotations

import threading

import pytest

from hpcdask import Client, LocalCluster, default_client, get_client, get_task_stream


def test_the_client_of_the_context_goes_before_the_one_made_last(cluster: LocalCluster) -> None:
    with Client(cluster) as first, Client(cluster) as second:
        assert Client.current() is default_client() is get_client() is second
        with pytest.raises(ValueError, match="outside of a 'with client"):
            Client.current(allow_global=False)
        seen: list[Client] = []
        with first.as_current() as entered:
            assert entered is first
            for found in (Client.current(), default_client(), get_client()):
                assert found is first
            assert get_task_stream().client is first
            assert default_client(second) is second
            # It is the context's: another thread has its own.
            thread = threading.Thread(target=lambda: seen.append(Client.current()))
            thread.start()
            thread.join(10)
            with second.as_current():
                assert Client.current(allow_global=False) is second
            assert Client.current(allow_global=False) is first
        assert seen == [second]
        assert Client.current() is second
        assert first.submit(lambda: get_client().name).result(timeout=10).startswith("worker-")


def test_without_a_client_there_is_none_to_be_meant() -> None:
    for ask in (Client.current, default_client, lambda: Client.current(allow_global=False)):
        with pytest.raises(ValueError, match="there is no"):
            ask()
