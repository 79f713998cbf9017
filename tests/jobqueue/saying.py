"""What commands of batch systems have said, as tests write it down."""

from __future__ import annotations

from hpcdask.jobqueue.status import Answer


def said(out: str = "", err: str = "", code: int = 0) -> Answer:
    return Answer(code, out, err)
