"""The code that tasks share: which worker knows it, and when nobody needs it any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from hpcdask.core.records import FunctionRecord, Prefix, WorkerRecord
from hpcdask.messages import DefineFunction, ForgetFunctions, Function, Message

#: Unused functions that stay on the workers, so that a loop of submits sends its code once.
KEPT_FUNCTIONS = 100


class Functions:
    """Functions by id; each goes to a worker once, before its first task there.

    Parameters
    ----------
    send : callable of (str, Message)
        Puts a message for a worker into the outbox.
    """

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        self.records: dict[bytes, FunctionRecord] = {}
        self.prefixes: dict[str, Prefix] = {}
        self._send = send
        self._unused: OrderedDict[bytes, FunctionRecord] = OrderedDict()  # longest unused first

    def declare(self, function: Function) -> FunctionRecord:
        """Return the record of a function that a client sent, maybe once more."""
        record = self.records.get(function.function_id)
        if record is None:
            prefix = self.prefixes.get(function.name)
            if prefix is None:
                prefix = self.prefixes[function.name] = Prefix(function.name)
            record = FunctionRecord(function.function_id, function.code, prefix)
            self.records[function.function_id] = record
        self._unused.pop(function.function_id, None)
        return record

    def define(self, function: FunctionRecord, worker: WorkerRecord) -> None:
        """Send a function to a worker that does not know it yet."""
        function.known_by[worker] = None
        self._send(
            worker.address,
            DefineFunction(function.function_id, function.prefix.name, function.code),
        )

    def keep_or_forget(self, function: FunctionRecord) -> None:
        """Note a function that no task refers to, and forget the one longest unused."""
        if function.uses:
            return
        self._unused[function.function_id] = function
        while len(self._unused) > KEPT_FUNCTIONS:
            function_id, oldest = self._unused.popitem(last=False)
            if oldest.uses:  # again
                continue
            del self.records[function_id]
            for worker in oldest.known_by:
                self._send(worker.address, ForgetFunctions((function_id,)))

    def worker_lost(self, worker: WorkerRecord) -> None:
        """Forget what a worker knew."""
        for function in self.records.values():
            function.known_by.pop(worker, None)
