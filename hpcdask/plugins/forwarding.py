"""Records of workers' loggers, handled where a client is."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

from hpcdask.plugins.base import WorkerPlugin
from hpcdask.plugins.output import this_process

if TYPE_CHECKING:
    from hpcdask.worker import Worker

#: Of what is set on a record by others, only these types are sent.
_PLAIN = (str, int, float, bool, type(None))


class ForwardLogging(WorkerPlugin):
    """Logs an event for each record that a logger of a worker handles.

    Parameters
    ----------
    logger_name : str or None
        The logger, with all below it; None for the root.
    level : int
        Lowest level to send.
    topic : str
        Of the events.
    """

    def __init__(self, logger_name: str | None, level: int | str, topic: str) -> None:
        self.logger_name, self.level, self.topic = logger_name, level, topic

    def setup(self, worker: Worker) -> None:
        """Listen to the logger."""
        self._handler = _Sender(worker, self.topic, self.level)
        logging.getLogger(self.logger_name).addHandler(self._handler)

    def teardown(self, worker: Worker) -> None:
        """Listen no more."""
        logging.getLogger(self.logger_name).removeHandler(self._handler)


class _Sender(logging.Handler):
    def __init__(self, worker: Worker, topic: str, level: int | str) -> None:
        super().__init__(level)
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sent = as_plain(record)
            sent["worker"], sent["worker_process"] = self._worker.address, this_process()
            self._worker.log_event(self._topic, sent)
        except Exception:
            self.handleError(record)


def as_plain(record: logging.LogRecord) -> dict[str, Any]:
    """What makes a record, of types that any process can read."""
    sent = {name: value for name, value in record.__dict__.items() if isinstance(value, _PLAIN)}
    sent["msg"], sent["args"], sent["exc_info"] = record.getMessage(), None, None
    if record.exc_info and not record.exc_text:
        kind, exc, trace = record.exc_info
        sent["exc_text"] = "".join(traceback.format_exception(kind, exc, trace)).rstrip()
    return sent


def handle_forwarded(event: tuple[float, Any]) -> None:
    """Have the logger of the same name handle a record; a client's handler of such events."""
    sent = event[1]
    if sent["worker_process"] != this_process():  # else it has handled it already
        record = logging.makeLogRecord(sent)
        logging.getLogger(record.name).handle(record)
