"""What the scheduler knows of tasks, workers and clients, and what it tells them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hpcdask.core.functions import Functions
from hpcdask.core.lanes import Lanes
from hpcdask.core.records import ClientRecord, Task, WorkerRecord
from hpcdask.core.stealing import Loaded
from hpcdask.core.tables import TaskTable
from hpcdask.messages import HeldRun, HeldValue, Message, TaskError
from hpcdask.messages.client import TaskDone, TaskFailed, WantsRead

#: Wants and tasks that are let go of within one event; the rest follows when others have had their
#: turn.
_AT_ONCE = 2000


class SchedulerTables:
    """The tables that `Transitions` change, and the messages that are to leave."""

    def __init__(self, first_attempt: int) -> None:
        self.tasks = TaskTable()
        self.workers: dict[str, WorkerRecord] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.outbox: dict[str, list[Message]] = {}
        self.functions = Functions(self.send)
        self.lanes = Lanes()
        self.loaded = Loaded()
        self._keeper = ClientRecord("", is_told=False)  # of fire_and_forget
        #: Of tasks that nobody else wanted than fire_and_forget; for the shell to tell.
        self.unseen_errors: list[tuple[str, TaskError]] = []
        self._vacated: dict[WorkerRecord, None] = {}  # runs were taken back from these
        #: Runs that returning workers go on with and that no task has claimed yet.
        self._runs: dict[str, tuple[WorkerRecord, HeldRun]] = {}
        #: Values of theirs, likewise: of each key by worker and attempt.
        self._values: dict[str, dict[tuple[WorkerRecord, int], HeldValue]] = {}
        self._to_claim: list[Task] = []  # that could run, but for which there are such values
        #: Tasks that are demanded only when all who may come back are back.
        self.held: dict[Task, None] = {}
        #: Tasks in state waiting that asked to be run again, and who has run them last.
        self.resting: dict[Task, WorkerRecord] = {}
        #: Addresses of workers that could not reach an input, each time it was tried.
        self._unreachable: dict[Task, list[str]] = {}
        #: Tasks in state released that nothing refers to, and that an event had no time to forget.
        self.doomed: dict[Task, None] = {}
        self.drop_at_once = _AT_ONCE
        self._attempt = first_attempt
        #: The latest turn that a task has had. What a client submits that has had none for long
        #: comes next, and not after the million tasks that another one sent before.
        self._turn = 0

    def send(self, address: str, message: Message) -> None:
        """Put a message into the outbox."""
        box = self.outbox.get(address)
        if box is None:
            self.outbox[address] = [message]
        else:
            box.append(message)

    def _write(self, client: ClientRecord, message: Message) -> None:
        """Send to a client, once it knows which of its wants we know of."""
        if client.wants_told != client.wants_read:
            client.wants_told = client.wants_read
            self.send(client.name, WantsRead(client.wants_read))
        self.send(client.name, message)

    def _want(self, client: ClientRecord, task: Task) -> None:
        """Note the want, and tell a client that comes late what it missed."""
        # Also if it is wanted already: the client may have begun anew with this key, and not have
        # believed what was sent before we knew that.
        task.add_client(client)
        if task.state == "memory":
            self._write(client, TaskDone(task.key, task.nbytes, None))
        elif task.state == "erred":
            assert task.error is not None
            self._write(client, TaskFailed(task.key, task.error))

    def _tell(self, task: Task, message: Message) -> None:
        for client in task.wanted_by:
            if client.is_told:
                self._write(client, message)

    def find_workers(self, names: Iterable[str]) -> list[WorkerRecord]:
        """Workers by address or name; all if `names` is empty."""
        wanted = set(names)
        workers = [worker for worker in self.workers.values() if not worker.is_leaving]
        if wanted:
            workers = [w for w in workers if w.address in wanted or w.info.name in wanted]
        return workers

    def named_workers(self, names: Collection[str]) -> list[WorkerRecord]:
        """Workers by address or name, those that leave too; all that stay if `names` is empty.

        Raises
        ------
        ValueError
            If a name is no worker's.
        """
        if not names:
            return self.find_workers(())
        wanted, found = set(names), []
        known: set[str] = set()
        for worker in self.workers.values():
            if worker.address in wanted or worker.info.name in wanted:
                found.append(worker)
                known |= {worker.address, worker.info.name}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"no worker has the address or name {', '.join(map(repr, unknown))}; "
                "scheduler_info() tells which there are"
            )
        return found
