"""The functions that workers run. Nothing heavy is imported here: a worker's start is measured."""


def noop(_index: int) -> None:
    """Cost nothing, so that all the time measured is the engine's."""


def increment(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def make_rows(source: int, count: int, nbytes: int) -> list[bytes]:
    return [bytes([source % 256]) * nbytes for _ in range(count)]


def pick(rows: list[bytes], index: int) -> bytes:
    return rows[index]


def total_nbytes(rows: list[bytes]) -> int:
    return sum(map(len, rows))
