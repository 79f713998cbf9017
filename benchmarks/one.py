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
    from .systems import SYSTEMS

    measure = ROWS[row_name].measure_for(system_name)
    if measure is None:
        sys.exit(f"row {row_name} does not run on {system_name}")
    module = importlib.import_module(SYSTEMS[system_name].module)
    print(json.dumps(measure(module)))


if __name__ == "__main__":
    main(*sys.argv[1:])
