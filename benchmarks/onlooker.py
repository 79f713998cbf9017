"""A second client, while another keeps the scheduler busy.

``python -m benchmarks.onlooker MODULE SCHEDULER_FILE`` asks the scheduler something and runs a
task, in turns, until its standard input closes; then it prints what each took as JSON.
"""

import importlib
import json
import sys
import threading
import time

from .measuring import seconds
from .tasks import noop


def watch(module_name: str, file: str, pause: float = 0.02) -> dict[str, list[float]]:
    told_to_end = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        told_to_end.set()

    threading.Thread(target=listen, daemon=True).start()
    series: dict[str, list[float]] = {"request_ms": [], "trip_ms": []}
    with importlib.import_module(module_name).Client(scheduler_file=file) as client:
        client.submit(noop, 0, pure=False).result()
        print("ready", flush=True)
        while not told_to_end.is_set():
            series["request_ms"].append(1e3 * seconds(client.nthreads))
            task = lambda: client.submit(noop, 0, pure=False).result()  # noqa: E731
            series["trip_ms"].append(1e3 * seconds(task))
            time.sleep(pause)
    return series


if __name__ == "__main__":
    print(json.dumps(watch(sys.argv[1], sys.argv[2])))
