"""What plugins derive from: a method for each event, of which a plugin overrides some."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from hpcdask.plugin_hooks import does_nothing

if TYPE_CHECKING:
    from hpcdask.core.records import WorkerRecord
    from hpcdask.nanny import Nanny
    from hpcdask.scheduler import Scheduler
    from hpcdask.worker import Worker


class WorkerPlugin:
    """Code that runs on each worker: on those that are there, and on all that come later.

    Derive from it, override some methods, and give an object to `Client.register_plugin`. A plain
    method runs in a thread of its own, an async one on the worker's event loop; but `transition`
    is always plain, and runs on the loop: it must be quick.

    Attributes
    ----------
    name : str
        By it a later plugin replaces this one. By default each has a name of its own.
    idempotent : bool
        Whether it is left out where there is one of its name already.

    Examples
    --------
    >>> class Scratch(WorkerPlugin):
    ...     name = "scratch"
    ...
    ...     def setup(self, worker):
    ...         self.folder = os.path.join(worker.local_directory, "scratch")
    ...         os.makedirs(self.folder, exist_ok=True)
    >>> results = client.register_plugin(Scratch())
    """

    idempotent: bool = False

    @does_nothing
    def setup(self, worker: Worker) -> Awaitable[None] | None:
        """Begin, on a worker that is there when the plugin is registered, or that comes later.

        One that comes runs no task before its plugins are set up.
        """

    @does_nothing
    def teardown(self, worker: Worker) -> Awaitable[None] | None:
        """End: the worker ends, or the plugin is unregistered or replaced.

        All plugins of a worker that ends have a second and a half.
        """

    @does_nothing
    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        """A task of this worker went from state to state.

        Parameters
        ----------
        key : str
        start, finish : str
            "released", "waiting", "ready", "executing", "memory" or "error"; "fetch" and "flight"
            of inputs that other workers have.
        **kwargs
            With "error" as `finish`: ``exception``, with its traceback.
        """


class NannyPlugin:
    """Code that runs in each nanny, before its worker starts.

    As `WorkerPlugin`, but the worker's process is not there yet, so that what it inherits can be
    changed. A worker without a nanny has none of it.

    Attributes
    ----------
    name, idempotent
        As of `WorkerPlugin`.
    restart : bool
        Whether workers that run already are replaced once the plugin is set up. Each hands over
        what only it holds, if there are others.

    Examples
    --------
    >>> class Niceness(NannyPlugin):
    ...     restart = True
    ...
    ...     def setup(self, nanny):
    ...         nanny.env["OMP_WAIT_POLICY"] = "passive"
    >>> results = client.register_plugin(Niceness(), name="niceness")
    """

    idempotent: bool = False
    restart: bool = False

    @does_nothing
    def setup(self, nanny: Nanny) -> Awaitable[None] | None:
        """Begin, in a nanny that is there when the plugin is registered, or that comes later."""

    @does_nothing
    def teardown(self, nanny: Nanny) -> Awaitable[None] | None:
        """End: the nanny ends, or the plugin is unregistered or replaced."""


class SchedulerPlugin:
    """Code that runs in the scheduler's process, on its event loop: it must be quick.

    Each method can be left out, and leave out keywords that it does not need. Those that may be
    async are awaited, behind the event.

    Attributes
    ----------
    name, idempotent
        As of `WorkerPlugin`.

    Examples
    --------
    >>> class Counter(SchedulerPlugin):
    ...     def __init__(self):
    ...         self.n = 0
    ...
    ...     def transition(self, key, start, finish, **kwargs):
    ...         self.n += start == "processing" and finish == "memory"
    >>> results = client.register_plugin(Counter(), name="counter")
    >>> client.gather(client.map(abs, [-1, -2]))
    [1, 2]
    >>> client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["counter"].n)
    2
    """

    idempotent: bool = False

    @does_nothing
    def start(self, scheduler: Scheduler) -> Awaitable[None] | None:
        """The plugin was registered; or the scheduler, to which a preload has added it, runs."""

    @does_nothing
    def before_close(self) -> Awaitable[None] | None:
        """The scheduler is about to end; all are still there. May take two seconds."""

    @does_nothing
    def close(self) -> Awaitable[None] | None:
        """The scheduler ends; workers were told so. May take two seconds."""

    @does_nothing
    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        client: str,
        keys: set[str],
        tasks: list[str],
        annotations: dict[str, dict[str, Any]],
        priority: dict[str, tuple[Any, ...]],
        stimulus_id: str,
        **kwargs: Any,
    ) -> None:
        """A client has submitted tasks. Of large graphs each chunk comes by itself.

        Parameters
        ----------
        client : str
            Its id.
        keys : set of str
            What the client wants.
        tasks : list of str
            All that it has sent.
        annotations : dict
            As ``{"retries": {key: 2}}``: what was asked of which task.
        priority : dict
            By key; smaller runs earlier.
        stimulus_id : str
            Names this event.
        **kwargs
            ``dependencies``: keys that each task needs, by key.
        """

    @does_nothing
    def restart(self, scheduler: Scheduler) -> None:
        """A client restarts the cluster: all tasks are forgotten, and workers are replaced."""

    @does_nothing
    def transition(
        self, key: str, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any
    ) -> None:
        """A task went from state to state.

        It is told a moment later, when what the scheduler was about to do is done: what it finds
        in the scheduler's tables may be further on.

        Parameters
        ----------
        key : str
        start, finish : str
            "released", "waiting", "queued", "no-worker", "processing", "memory", "erred" or
            "forgotten".
        stimulus_id : str
            The same of moves that were made together.
        **kwargs
            ``worker``, an address, with "processing", "memory" and "erred" as `finish`; ``nbytes``
            with "memory", and ``startstops`` of a run: a list with one dict of action, start and
            stop, in seconds since the epoch; ``exception_text`` and ``traceback_text`` with
            "erred". Of a task that has moved on some may be missing.
        """

    @does_nothing
    def add_worker(self, scheduler: Scheduler, worker: str) -> Awaitable[None] | None:
        """A worker has joined; `worker` is its address."""

    @does_nothing
    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> Awaitable[None] | None:
        """A worker has gone; `worker` is its address."""

    @does_nothing
    def add_client(self, scheduler: Scheduler, client: str) -> None:
        """A client has connected; `client` is its id. Workers whose tasks use the cluster count."""

    @does_nothing
    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client has gone and is not expected back."""

    @does_nothing
    def valid_workers_downscaling(
        self, scheduler: Scheduler, workers: list[WorkerRecord]
    ) -> list[WorkerRecord]:
        """Choose those of `workers` that `adapt` may end; each has ``address`` and ``info``."""
        return workers

    @does_nothing
    def log_event(self, topic: str, msg: Any) -> None:
        """Something was logged under a topic, by `Client.log_event` or the like."""


#: What runs each kind of plugin.
KINDS = {"worker": WorkerPlugin, "nanny": NannyPlugin, "scheduler": SchedulerPlugin}


def kind_of(plugin: object) -> str:
    """What runs a plugin: "worker", "nanny" or "scheduler".

    Raises
    ------
    TypeError
        If it is a class, or derived from none of the three.
    """
    if isinstance(plugin, type):
        raise TypeError(
            f"register_plugin() takes an object and not a class; did you mean {plugin.__name__}()?"
        )
    for kind, base in KINDS.items():
        if isinstance(plugin, base):
            return kind
    raise TypeError(
        f"a {type(plugin).__name__} is no plugin; derive it from hpcdask.WorkerPlugin, NannyPlugin "
        "or SchedulerPlugin, by which it is known where it is to run"
    )
