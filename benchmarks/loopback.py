"""What the machine's loopback carries without an engine; run as a program it is the sender."""

import socket
import subprocess
import sys
from functools import partial
from statistics import median

from .measuring import expect, seconds, warmed


def loopback_rate(nbytes: int) -> float:
    """GB/s of one TCP stream between two processes, into a fresh array each time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        sender = subprocess.Popen([sys.executable, "-m", __name__, port, str(nbytes)])
        with server.accept()[0] as connection:
            times = warmed(lambda: seconds(partial(receive, connection, nbytes)))
        expect(sender.wait(30), 0)
    return nbytes / 1e9 / median(times)


def receive(connection: socket.socket, nbytes: int) -> None:
    import numpy

    connection.sendall(b"?")
    view = numpy.empty(nbytes, dtype="uint8").data
    while view:
        view = view[connection.recv_into(view) :]


def send_when_asked(port: int, nbytes: int) -> None:
    import numpy

    array = numpy.ones(nbytes, dtype="uint8")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while connection.recv(1):
            connection.sendall(array.data)


if __name__ == "__main__":
    send_when_asked(*map(int, sys.argv[1:]))
