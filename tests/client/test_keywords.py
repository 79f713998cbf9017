"""Names are those of distributed, so that a program ports by its import line."""

from __future__ import annotations

import inspect

import pytest

import hpcdask

distributed = pytest.importorskip("distributed")

#: What we have beyond: a limit to every wait, and the cluster's token.
OURS = {"timeout", "token", "token_file", "auth", "reconnect_timeout"}

PAIRS = [
    *((f"Client.{name}", ()) for name in ("submit", "map", "gather", "scatter", "cancel", "run")),
    *((f"Client.{name}", ()) for name in ("wait_for_workers", "who_has")),
    ("Client.run_on_scheduler", ("wait",)),
    # It has `names` among its **kwargs.
    ("Client.retire_workers", ("names",)),
    *((f"Client.{name}", ()) for name in ("has_what", "nthreads", "processing", "shutdown")),
    *((f"Client.{name}", ()) for name in ("restart", "close", "scheduler_info", "get")),
    *((f"Client.{name}", ()) for name in ("retry", "replicate", "rebalance", "nbytes")),
    *((f"Client.{name}", ()) for name in ("restart_workers", "call_stack", "profile", "story")),
    *((f"Client.{name}", ()) for name in ("get_task_stream", "get_versions", "futures_of")),
    *((f"Client.{name}", ()) for name in ("dump_cluster_state", "write_scheduler_file")),
    *((f"Client.{name}", ()) for name in ("current", "as_current", "get_executor")),
    # How long each size is measured.
    ("Client.benchmark_hardware", ("duration",)),
    ("get_task_stream.__init__", ()),
    ("default_client", ()),
    # Theirs go to the bar by **kwargs.
    ("progress", ("interval", "width", "file")),
    *((f"Client.{name}", ()) for name in ("compute", "persist", "normalize_collection")),
    ("Client.__init__", ()),
    *((f"Future.{name}", ()) for name in ("result", "exception", "traceback")),
    # Among its **kwargs.
    ("Future.cancel", ("force",)),
    *((f"Future.{name}", ()) for name in ("add_done_callback", "release", "done", "cancelled")),
    ("Future.__init__", ()),
    *((f"as_completed.{name}", ()) for name in ("__init__", "add", "update", "next_batch")),
    *((f"as_completed.{name}", ()) for name in ("batches", "clear", "count", "is_empty")),
    *((f"Client.{name}_dataset", ()) for name in ("publish", "get", "unpublish")),
    *((f"Client.{name}", ()) for name in ("list_datasets", "get_metadata", "set_metadata")),
    *((f"Client.{name}", ()) for name in ("log_event", "get_events", "subscribe_topic")),
    ("Client.unsubscribe_topic", ()),
    *((f"Queue.{name}", ()) for name in ("__init__", "get", "put", "qsize", "close")),
    *((f"Variable.{name}", ()) for name in ("__init__", "get", "set", "delete")),
    *((f"Event.{name}", ()) for name in ("__init__", "wait", "set", "clear", "is_set")),
    *((f"MultiLock.{name}", ()) for name in ("__init__", "acquire", "release", "locked")),
    # Earlier versions had `client`.
    *((f"Lock.{name}", ("client",)) for name in ("__init__", "acquire", "release", "locked")),
    *((f"Semaphore.{name}", ("client",)) for name in ("__init__", "acquire", "release")),
    *((f"Semaphore.{name}", ()) for name in ("get_value", "close")),
    ("wait", ()),
    ("futures_of", ()),
    ("fire_and_forget", ()),
    ("get_client", ()),
    ("get_worker", ()),
    ("secede", ()),
    ("rejoin", ()),
    ("worker_client", ()),
    # These reach their workers by **kwargs.
    # `nanny` is a name that early versions had.
    ("LocalCluster.__init__", ("memory_limit", "local_directory", "nanny")),
    ("LocalCluster.get_logs", ()),
    ("LocalCluster.scale", ()),
    ("LocalCluster.close", ()),
    ("LocalCluster.wait_for_workers", ()),
    ("SpecCluster.__init__", ()),
]


def parameters(module: object, dotted: str) -> set[str]:
    for name in dotted.split("."):
        module = getattr(module, name)
    signature = inspect.signature(module)  # type: ignore[arg-type]
    return {
        p.name
        for p in signature.parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


@pytest.mark.parametrize(("name", "known"), PAIRS, ids=[name for name, _ in PAIRS])
def test_our_keywords_exist_in_distributed(name: str, known: tuple[str, ...]) -> None:
    ours, theirs = parameters(hpcdask, name), parameters(distributed, name)
    assert ours - theirs - OURS - set(known) == set()


def test_adapt_takes_what_theirs_takes() -> None:
    ours = parameters(hpcdask, "LocalCluster.adapt")
    decides = parameters(distributed, "deploy.Adaptive.__init__") - {"self", "cluster"}
    theirs = parameters(distributed, "LocalCluster.adapt") | decides
    assert theirs <= ours
    # As dask-jobqueue has them, and two of our own.
    assert ours - theirs == {"minimum_jobs", "maximum_jobs", "keep_idle", "pool"}


def test_an_ssh_cluster_takes_what_theirs_takes() -> None:
    theirs = parameters(distributed, "SSHCluster") - {"worker_module"}  # which is deprecated
    assert theirs <= parameters(hpcdask, "SSHCluster.__init__")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *((f"Client.{name}", set()) for name in ("submit", "map", "gather", "scatter", "cancel")),
        *((f"Client.{name}", set()) for name in ("retry", "replicate", "rebalance", "nbytes")),
        *((f"Client.{name}", set()) for name in ("run", "call_stack", "profile", "story")),
        *((f"Client.{name}", set()) for name in ("restart_workers", "get_versions", "current")),
        ("Client.dump_cluster_state", set()),
        # Its figures need no bokeh.
        ("Client.get_task_stream", {"bokeh_resources"}),
        ("as_completed.__init__", set()),
        ("wait", set()),
    ],
)
def test_their_keywords_are_all_taken(name: str, missing: set[str]) -> None:
    assert parameters(distributed, name) - parameters(hpcdask, name) == missing
