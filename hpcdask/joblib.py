"""A backend for joblib, so that scikit-learn's ``n_jobs`` uses the cluster.

joblib finds backends only after they have been registered. While there is a client this one is (see
`hpcdask.with_dask`); importing this module does it before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from hpcdask.client.client import Client
from hpcdask.client.current import get_client
from hpcdask.client.executor import CONDITIONS
from hpcdask.client.future import Future
from hpcdask.client.submission import pack_arguments, pack_function
from hpcdask.errors import SerializationError, WaitTimeoutError
from hpcdask.places import lent_thread
from hpcdask.sizes import sizeof
from hpcdask.wire.serialize import function_name

#: Keywords that are for tasks. Each call is one of its own: none is "pure".
_SUBMIT_KWARGS = CONDITIONS - {"pure"}
#: Bytes from which an argument is put on the cluster once, and not sent with each task.
_LARGE = 100_000


class HpcdaskBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs what `joblib.Parallel` is given on a cluster.

    Its parameters are given to `joblib.parallel_config`, behind ``backend="hpcdask"``.

    Parameters
    ----------
    scheduler_host : str, optional
        Address of a scheduler. By default the client of the moment is used: in a task that of its
        worker, elsewhere the default one.
    scatter : list or tuple, optional
        Objects that are arguments of many calls, to be put on all workers at once. Others that are
        large are put on one when they are first met, and fetched from there.
    client : Client, optional
        Another client.
    wait_for_workers_timeout : float
        Seconds to wait for a first worker.
    **submit_kwargs
        For `Client.submit`: ``workers``, ``resources``, ``retries``, ``priority``.

    Raises
    ------
    TypeError
        If there is a keyword that it does not know.
    ValueError
        If there is no client.
    SerializationError
        If a call cannot be pickled.
    WaitTimeoutError
        If there is no worker in time.

    Examples
    --------
    >>> import joblib
    >>> with joblib.parallel_config(backend="hpcdask"):
    ...     joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(4))
    [0, 1, 2, 3]
    """

    # Seconds that a batch of short calls should take: a task costs a fraction of a millisecond.
    MIN_IDEAL_BATCH_DURATION = 0.05
    MAX_IDEAL_BATCH_DURATION = 0.5
    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        scheduler_host: str | None = None,
        scatter: list[Any] | tuple[Any, ...] | None = None,
        client: Client | None = None,
        wait_for_workers_timeout: float = 10,
        nesting_level: int | None = None,
        **submit_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level)
        if scatter is not None and not isinstance(scatter, (list, tuple)):
            raise TypeError(f"scatter must be a list or tuple of objects, not {scatter!r:.80}")
        unknown = sorted(submit_kwargs.keys() - _SUBMIT_KWARGS)
        if unknown:
            raise TypeError(
                f"joblib's backend hpcdask has no keyword {unknown[0]!r}; for tasks it takes "
                f"{', '.join(sorted(_SUBMIT_KWARGS))}"
            )
        self._client = client
        if scheduler_host is not None:
            self._client = get_client(scheduler_host)
        self._patience = wait_for_workers_timeout
        self._submit_kwargs = submit_kwargs
        self._pending: dict[Future, None] = {}
        # By their ids; the objects themselves are kept so that these stay theirs.
        self._everywhere: dict[int, tuple[Any, Future]] = {}
        self._of_this_call: dict[int, tuple[Any, Future]] = {}
        if scatter:
            futures = self.client.scatter(list(scatter), broadcast=True, hash=False)
            pairs = zip(scatter, futures, strict=True)
            self._everywhere = {id(value): (value, future) for value, future in pairs}

    @property
    def client(self) -> Client:
        """The client that is used, looked for when it is needed first."""
        if self._client is None:
            self._client = get_client()
        return self._client

    def __reduce__(self) -> Any:
        # In a task it is the backend of Parallel calls within it.
        return _nested, (self.nesting_level,)

    def get_nested_backend(self) -> tuple[HpcdaskBackend, int]:
        """What `Parallel` uses within a call: the same cluster."""
        return HpcdaskBackend(client=self._client, nesting_level=(self.nesting_level or 0) + 1), -1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time: with -1 as many as the cluster has threads."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs  # which may be more than there are now: clusters grow
        total = self._n_threads()
        if not total and self._patience:
            # A cluster that adapts starts workers for a task only.
            probe = self.client.submit(abs, 0, pure=False)
            try:
                probe.result(timeout=self._patience)
            except WaitTimeoutError as exc:
                raise WaitTimeoutError(
                    f"joblib's backend hpcdask waited {self._patience:g} s for a worker: {exc}; "
                    "start workers, or raise wait_for_workers_timeout= of parallel_config"
                ) from None
            total = self._n_threads()
        return max(total + 1 + (n_jobs or -1), 1)

    def _n_threads(self) -> int:
        return sum(self.client.nthreads().values())

    def configure(self, n_jobs: int = 1, parallel: Any = None, **unused: Any) -> int:
        """A call of `Parallel` begins."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def stop_call(self) -> None:
        """It ends: what was put on the cluster for it may go."""
        self._of_this_call.clear()

    def terminate(self) -> None:
        """It is over: the call and this, which refer to each other, would hold data until Python
        looks for such circles."""
        self.parallel = None

    def submit(self, func: Any, callback: Callable[[Future], Any] | None = None) -> Future:
        """Run a batch of calls as one task; `callback` is called with its future."""
        calls = [
            (
                function,
                tuple(map(self._on_cluster, args)),
                {name: self._on_cluster(arg) for name, arg in kwargs.items()},
            )
            for function, args, kwargs in func.items
        ]
        batch = _Batch(function_name(calls[0][0]))
        nested = self.get_nested_backend()
        try:
            future = self.client.submit(batch, calls, nested, pure=False, **self._submit_kwargs)
        except SerializationError:
            for function, args, kwargs in calls:  # tell it of the user's own function
                pack_function(function)
                pack_arguments(args, kwargs, function)
            raise
        self._pending[future] = None

        def done(future: Future) -> None:
            self._pending.pop(future, None)
            if callback is not None:
                callback(future)

        future.add_done_callback(done)
        return future

    def _on_cluster(self, value: Any) -> Any:
        """A future of a large argument, or the argument itself."""
        known = self._everywhere.get(id(value)) or self._of_this_call.get(id(value))
        if known is None:
            if callable(value) or sizeof(value) < _LARGE:
                return value
            known = value, self.client.scatter([value], hash=False)[0]
            self._of_this_call[id(value)] = known
        return known[1]

    def retrieve_result_callback(self, out: Future) -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: the others need not run."""
        pending, self._pending = self._pending, {}
        self.client.cancel(list(pending))

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """While `Parallel` in a task waits, the task's thread serves other tasks."""
        with lent_thread():
            yield


def _nested(nesting_level: int | None) -> HpcdaskBackend:
    return HpcdaskBackend(nesting_level=nesting_level)


class _Batch:
    """Makes some calls, and goes by the name of their function, which errors tell."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, calls: list[Any], nested: tuple[HpcdaskBackend, int]) -> list[Any]:
        backend, n_jobs = nested
        with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
            return [function(*args, **kwargs) for function, args, kwargs in calls]


joblib.register_parallel_backend("hpcdask", HpcdaskBackend)
