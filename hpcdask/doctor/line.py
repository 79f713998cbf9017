"""A connection on which either side asks and the other one answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hpcdask.comm import Comm
from hpcdask.errors import CommClosedError, LaunchError
from hpcdask.messages import Blob, Message
from hpcdask.messages.doctor import Examine, Examined, RegisterRank
from hpcdask.peers import Requests

log = logging.getLogger("hpcdask.doctor")

#: Does what it is asked to and returns plain data, at once or later.
Answer = Callable[[str, Any, Blob], Any | Awaitable[Any]]
OnRegister = Callable[["Line", RegisterRank], None]


class Line:
    """One connection.

    Parameters
    ----------
    comm : Comm
        It is started.
    answer : callable
        Answers what the other side asks.
    on_register : callable, optional
        Is told if the other side registers.

    Attributes
    ----------
    ended : asyncio.Future
        Done when the connection has ended.
    """

    def __init__(self, comm: Comm, answer: Answer, on_register: OnRegister | None = None) -> None:
        self.comm = comm
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer, self._on_register = answer, on_register
        self._requests = Requests()
        self._answering: set[asyncio.Task[None]] = set()
        comm.start(self._on_batch, self._on_closed)

    async def ask(
        self, what: str, arguments: Any = None, load: Blob = b"", *, timeout: float
    ) -> Any:
        """Ask the other side and return what it has found.

        Raises
        ------
        CommClosedError
            If the connection ends, or no answer comes in time.
        LaunchError
            If the other side could not do it.
        """
        if self.comm.closed:
            raise CommClosedError(f"connection with {self.comm.peer} is closed")
        number, future = self._requests.new()
        self.comm.send(Examine(number, what, arguments, load))
        try:
            answer = await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            raise CommClosedError(f"no answer within {timeout:.2g} s") from None
        if answer.error:
            raise LaunchError(answer.error)
        return answer.found

    def close(self) -> None:
        """End it; what was sent still arrives."""
        for task in self._answering:
            task.cancel()
        self.comm.close()
        self._has_ended()

    def _on_batch(self, messages: list[Message]) -> None:
        for message in messages:
            if type(message) is Examined:
                self._requests.answered(message)
            elif type(message) is RegisterRank and self._on_register is not None:
                self._on_register(self, message)
            elif type(message) is Examine:
                self._do(message)
            else:
                self.comm.abort(f"a {type(message).__name__} is nothing to ask a doctor")

    def _do(self, message: Examine) -> None:
        try:
            found = self._answer(message.what, message.arguments, message.load)
        except Exception as exc:
            log.exception("cannot do %r", message.what)
            self.comm.send(Examined(message.request, None, repr(exc)))
            return
        if not asyncio.iscoroutine(found):
            self.comm.send(Examined(message.request, found, ""))
            return
        task = asyncio.ensure_future(self._answer_later(message, found))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer_later(self, message: Examine, finding: Awaitable[Any]) -> None:
        try:
            answer = Examined(message.request, await finding, "")
        except Exception as exc:
            log.exception("cannot do %r", message.what)
            answer = Examined(message.request, None, repr(exc))
        self.comm.send(answer)

    def _on_closed(self, reason: CommClosedError) -> None:
        self._requests.fail(reason)
        for task in self._answering:
            task.cancel()
        self._has_ended()

    def _has_ended(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
