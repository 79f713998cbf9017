"""One measurement in a process of its own: ``python -m benchmarks.one SYSTEM ROW``.

Prints one line of JSON, ``{series: [values]}``. The environment must be the system's (see
`System.environ`); ``python -m benchmarks`` provides it.
"""

import sys


def main(system_name: str, row_name: str) -> None:
    # Imported here: spawned workers import this file again, and their start is measured.
    import importlib
    import json

    from .rows import ROWS
    from .systems import POOL, SYSTEMS

    row, module = ROWS[row_name], importlib.import_module(SYSTEMS[system_name].module)
    measure = row.pool if system_name == POOL else row.measure
    print(json.dumps(measure(module)))


if __name__ == "__main__":
    main(*sys.argv[1:])
