"""From facts to findings: functions of the facts of all hosts, and of nothing else."""

from __future__ import annotations

from hpcdask.doctor.checks import connections, hosts, ranks
from hpcdask.doctor.facts import Examination
from hpcdask.doctor.findings import Finding, most_severe_first


def check(examination: Examination) -> list[Finding]:
    """All that is wrong, the worst first."""
    return most_severe_first(
        [
            *ranks.check(examination),
            *connections.check(examination),
            *hosts.check(examination),
        ]
    )
