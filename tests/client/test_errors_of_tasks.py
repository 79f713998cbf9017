"""What goes wrong in a task, on its way there, or on the way back, and what its caller sees."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path

import pytest

from hpcdask import Client, LocalCluster, RemoteError, SerializationError, TaskExitError, wait
from hpcdask.errors import HpcdaskError


class OwnError(Exception):
    pass


class TwoArgumentsError(Exception):
    """Pickles well, and then cannot be loaded by pickle alone."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class KeywordError(ValueError):
    def __init__(self, *, code: int = 0) -> None:
        super().__init__("with a code")
        self.code = code


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raise_it(exc: BaseException) -> None:
    raise exc


def raise_type(kind: type[BaseException], *args: object) -> None:
    raise kind(*args)


def outer() -> None:
    inner()


def inner() -> None:
    raise OwnError("from within")  # the line that a reader looks for


def test_an_error_has_its_own_type_and_the_remote_lines(client: Client) -> None:
    with pytest.raises(OwnError, match="from within") as caught:
        client.submit(outer).result(timeout=10)
    text = "".join(traceback.format_exception(caught.value))
    assert "in outer" in text
    assert "in inner" in text
    assert 'raise OwnError("from within")  # the line that a reader looks for' in text
    assert "execution.py" not in text, "our own frames are of no use"


def test_an_error_tells_its_key_and_worker(client: Client) -> None:
    future = client.submit(outer)
    exc = future.exception(timeout=10)
    assert exc.key == future.key
    assert exc.worker in client.nthreads(timeout=5)
    if sys.version_info >= (3, 11):
        assert exc.__notes__ == [f"hpcdask: task {future.key!r} on {exc.worker}"]


def test_an_error_is_that_of_all_that_depends_on_it(client: Client) -> None:
    bad = client.submit(outer)
    futures = client.map(lambda x, y: (x, y), range(3), y=bad)
    last = client.submit(list, futures)
    wait(last, timeout=10)
    exc = last.exception(timeout=1)
    assert isinstance(exc, OwnError)
    assert exc.key == bad.key
    with pytest.raises(OwnError):
        client.gather(futures, timeout=10)


def test_a_later_dependant_of_an_error_fails_too(client: Client) -> None:
    bad = client.submit(outer)
    wait(bad, timeout=10)
    assert isinstance(client.submit(str, bad).exception(timeout=10), OwnError)


def test_the_same_error_may_be_raised_twice(client: Client) -> None:
    future = client.submit(outer)
    for _ in range(2):
        with pytest.raises(OwnError) as caught:
            future.result(timeout=10)
        assert len(traceback.extract_tb(caught.value.__traceback__)) < 12


@pytest.mark.parametrize(
    "kind",
    [
        StopIteration,
        StopAsyncIteration,
        asyncio.TimeoutError,
        TimeoutError,
        MemoryError,
        BaseException,
    ],
)
def test_an_exception_of_any_kind_is_only_the_tasks(
    client: Client, cluster: LocalCluster, kind: type[BaseException]
) -> None:
    pids = {worker.pid for worker in cluster.workers.values()}
    future = client.submit(raise_type, kind, 3, pure=False)
    exc = future.exception(timeout=10)
    assert type(exc) is kind
    assert exc.args == (3,)
    for ask in (future.result, lambda timeout: client.gather([future], timeout=timeout)):
        with pytest.raises(kind):
            ask(timeout=10)
    assert client.submit(abs, -1, pure=False).result(timeout=10) == 1
    assert {worker.pid for worker in cluster.workers.values()} == pids


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_what_ends_programs_is_only_an_error_of_the_task(
    client: Client, cluster: LocalCluster, kind: type[BaseException]
) -> None:
    async def raise_later() -> None:
        await asyncio.sleep(0)
        raise kind(3)

    pids = {worker.pid for worker in cluster.workers.values()}
    for function in (raise_later, lambda: raise_type(kind, 3), lambda: sys.exit(3)):
        future = client.submit(function, pure=False)
        with pytest.raises(TaskExitError, match="3, which has ended only") as caught:
            future.result(timeout=10)
        assert isinstance(caught.value, Exception), "who expects an error catches it"
        assert isinstance(future.exception(timeout=10), TaskExitError)
        with pytest.raises(TaskExitError):
            client.gather([future], timeout=10)
    assert client.submit(abs, -1, pure=False).result(timeout=10) == 1
    assert {worker.pid for worker in cluster.workers.values()} == pids


@pytest.mark.parametrize("kind", [StopIteration, ValueError])
def test_an_exception_of_a_coroutine_is_only_the_tasks(
    client: Client, kind: type[BaseException]
) -> None:
    async def raise_later() -> None:
        await asyncio.sleep(0)
        raise kind(3)

    expected = RuntimeError if kind is StopIteration else kind  # as in any coroutine
    with pytest.raises(expected):
        client.submit(raise_later, pure=False).result(timeout=10)
    assert len(client.nthreads(timeout=5)) == 2


def test_an_exception_of_a_called_function_is_only_the_calls(client: Client) -> None:
    for kind in (SystemExit, KeyboardInterrupt, OwnError):
        expected = OwnError if kind is OwnError else TaskExitError
        with pytest.raises(expected):
            client.run(raise_type, kind, 3, timeout=10)
        with pytest.raises(expected):
            client.run_on_scheduler(raise_type, kind, 3, timeout=10)
        with pytest.raises(expected):
            client.run(raise_type, kind, 3, nanny=True, timeout=10)
    assert len(client.nthreads(timeout=5)) == 2


def test_a_task_that_reads_its_standard_input_finds_none(client: Client) -> None:
    with pytest.raises(EOFError):
        client.submit(input).result(timeout=10)
    ran = client.submit(subprocess.run, ["cat"], stdout=subprocess.PIPE, timeout=10)
    assert ran.result(timeout=15).stdout == b""


def test_no_part_of_a_remote_line_is_underlined(client: Client) -> None:
    exc = client.submit(outer).exception(timeout=10)
    assert "^" not in "".join(traceback.format_exception(exc))


def test_exceptions_that_cannot_be_pickled_come_as_text(client: Client) -> None:
    def fail() -> None:
        raise UnpicklableError

    with pytest.raises(RemoteError, match=r"holds a lock.*cannot be pickled"):
        client.submit(fail).result(timeout=10)


def test_exceptions_whose_init_takes_other_arguments_keep_their_type(client: Client) -> None:
    def fail() -> None:
        raise TwoArgumentsError(1, 2)

    with pytest.raises(TwoArgumentsError, match=r"^1 and 2"):
        client.submit(fail).result(timeout=10)


def test_attributes_of_an_exception_come_along(client: Client) -> None:
    def fail() -> None:
        exc = KeywordError(code=7)
        exc.args = ()
        raise exc

    with pytest.raises(KeywordError) as caught:
        client.submit(fail).result(timeout=10)
    assert caught.value.code == 7


def test_exceptions_defined_in_the_program_itself_can_be_caught(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            from hpcdask import Client

            class MainError(Exception):
                pass

            def fail():
                raise MainError("mine")

            with Client(n_workers=1) as client:
                try:
                    client.submit(fail).result(timeout=10)
                except MainError as exc:
                    print("caught", exc)
            """
        )
    )
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "caught mine\n"
    assert run.stderr == ""


def test_a_result_that_cannot_be_pickled_stays_where_it_is(client: Client) -> None:
    future = client.submit(threading.Lock, pure=False)
    wait(future, timeout=10)
    assert future.status == "finished"
    with pytest.raises(SerializationError, match="lock"):
        future.result(timeout=10)
    assert client.submit(lambda lock: lock.locked(), future).result(timeout=10) is False


def test_a_result_that_cannot_be_pickled_is_told_with_function_key_and_part(client: Client) -> None:
    def connect() -> dict[str, object]:
        return {"lock": threading.Lock()}

    future = client.submit(connect, key="connection")
    with pytest.raises(SerializationError) as caught:
        future.result(timeout=10)
    assert "the result of connect (task 'connection'): it['lock'] is a" in str(caught.value)
    assert caught.value.key == "connection"


def test_what_led_to_an_error_comes_with_it(client: Client) -> None:
    def fail() -> None:
        try:
            inner()
        except OwnError as exc:
            raise ValueError("outer") from exc

    exc = client.submit(fail).exception(timeout=10)
    assert isinstance(exc.__cause__, OwnError)
    assert "in inner" in "".join(traceback.format_exception(exc))


def test_a_result_that_cannot_be_rebuilt_here_raises_here(client: Client) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return raise_it, (OwnError("cannot be rebuilt"),)

    future = client.submit(Trap)
    wait(future, timeout=10)
    with pytest.raises(OwnError, match="cannot be rebuilt"):
        future.result(timeout=10)


def test_a_module_that_the_worker_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        (tmp_path / "only_at_the_client.py").write_text("def f(x):\n    return x\nclass C: pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import only_at_the_client

        with pytest.raises(ModuleNotFoundError, match="only_at_the_client"):
            client.submit(only_at_the_client.f, 1).result(timeout=10)
        with pytest.raises(ModuleNotFoundError, match="only_at_the_client"):
            client.submit(abs, only_at_the_client.C()).result(timeout=10)
        with pytest.raises(ModuleNotFoundError, match="only_at_the_client"):
            client.scatter([only_at_the_client.C()], timeout=10)
        assert client.submit(abs, -1).result(timeout=10) == 1


def test_a_value_that_another_worker_cannot_read_fails_what_needs_it(client: Client) -> None:
    class OnlyHere:
        def __reduce__(self) -> tuple[object, ...]:
            return raise_it, (OwnError("not on this worker"),)

    one, two = client.nthreads(timeout=5)
    trap = client.submit(OnlyHere)
    wait(trap, timeout=10)
    [[home]] = client.who_has(trap, timeout=5).values()
    large = client.scatter([bytes(3_000_000)], workers=one if home == two else two, timeout=10)[0]
    with pytest.raises(OwnError, match="not on this worker"):
        client.submit(lambda x, y: None, trap, large).result(timeout=10)


def test_all_our_errors_have_one_base_and_survive_pickling() -> None:
    import hpcdask.errors as errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, Exception):
            assert issubclass(kind, HpcdaskError)
            again = pickle.loads(pickle.dumps(kind("text")))
            assert type(again) is kind
            assert str(again) == "text"


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def test_what_lies_too_deep_for_pickle_is_an_error_of_pickling(client: Client) -> None:
    with pytest.raises(SerializationError, match=r"the result of nested .* smaller pieces"):
        client.submit(nested, 100_000).result(timeout=20)
    with pytest.raises(SerializationError, match=r"of len.* smaller pieces"):
        client.submit(len, nested(100_000))
    with pytest.raises(SerializationError, match=r"of len.* smaller pieces"):
        client.map(len, [nested(100_000)])
