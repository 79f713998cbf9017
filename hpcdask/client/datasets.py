"""Published datasets: futures and collections that others find by name, also when we are gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from hpcdask.client.connection import Connection
from hpcdask.client.loop import uncarried
from hpcdask.client.operations import Delivery, operate
from hpcdask.client.packing import packed
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages.shared import DatasetValue, GetDatasets, ListDatasets, Publish, Unpublish

if TYPE_CHECKING:
    from hpcdask.client.client import Client

_NOTHING: Any = object()


class DatasetCalls(Connection):
    """The part of `hpcdask.Client` that is about published datasets."""

    def publish_dataset(
        self,
        *args: Any,
        name: Any = None,
        override: bool = False,
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Keep something on the scheduler by its name, for all clients.

        Futures in it, also those of a collection that was persisted, stay alive until it is
        unpublished, whoever leaves. What is no future is kept as it is: large data should be
        computed or scattered first.

        Parameters
        ----------
        *args : object
            What to publish as `name`; several become a tuple. Without a name: one dict of name ->
            object.
        name : str, int, float or tuple of these, optional
        override : bool
            Replace what has the name already.
        timeout : float or str, optional
            Seconds.
        **kwargs : object
            Name -> object.

        Raises
        ------
        KeyError
            If something has one of the names already; then nothing is published.

        Examples
        --------
        >>> future = client.submit(pow, 2, 5)
        >>> client.publish_dataset(future, name="power")
        >>> client.list_datasets()
        ('power',)
        >>> client.get_dataset("power").result()
        32
        >>> client.unpublish_dataset("power")
        """
        given = _named(args, name, kwargs)
        datasets = tuple([DatasetValue(_name(key), *packed(each)) for key, each in given.items()])

        async def work() -> None:
            _, done = await operate(self, Publish, datasets, override, timeout=seconds)
            if done is False:
                raise WaitTimeoutError(f"nothing was published within {seconds:g} s")
            given.clear()  # until now, since its futures must live so long

        seconds = self._seconds(timeout)
        return self._maybe_sync(work())

    def get_dataset(
        self, name: Any, default: Any = _NOTHING, *, timeout: float | str | None = None
    ) -> Any:
        """What was published by a name.

        Parameters
        ----------
        name : str, int, float, tuple of these, or list
            Of a list of names a list of datasets is returned.
        default : object, optional
            What to return if there is none.

        Raises
        ------
        KeyError
            If there is none, and no `default`.
        """
        names = tuple(map(_name, name)) if isinstance(name, list) else (_name(name),)

        async def work() -> Delivery:
            _, delivery = await operate(self, GetDatasets, names, timeout=seconds)
            if delivery is False:
                raise WaitTimeoutError(f"no dataset has come within {seconds:g} s")
            return delivery  # type: ignore[no-any-return]

        def unpacked(delivery: Delivery) -> Any:
            datasets = delivery.unpacked(missing=default)
            for each, dataset in zip(names, datasets, strict=True):
                if dataset is _NOTHING:
                    raise KeyError(f"no dataset {each!r} is published; list_datasets() tells which")
            return datasets if isinstance(name, list) else datasets[0]

        seconds = self._seconds(timeout)
        if not self.asynchronous:
            return unpacked(self._sync(work()))

        async def got() -> Any:
            return unpacked(await uncarried(work()))

        return got()

    def list_datasets(self, *, timeout: float | str | None = None) -> Any:
        """Names of all that is published, the oldest first."""

        async def work() -> tuple[Any, ...]:
            _, names = await operate(self, ListDatasets, timeout=seconds)
            if names is False:
                raise WaitTimeoutError(f"no answer within {seconds:g} s")
            return names  # type: ignore[no-any-return]

        seconds = self._seconds(timeout)
        return self._maybe_sync(work())

    def unpublish_dataset(self, name: Any, *, timeout: float | str | None = None) -> Any:
        """Forget what was published; futures that nobody else has end with it.

        Parameters
        ----------
        name : str, int, float, tuple of these, or list
            One or several. What is not published needs no more.
        """
        names = tuple(map(_name, name)) if isinstance(name, list) else (_name(name),)

        async def work() -> None:
            await self._unpublish(names, seconds)

        seconds = self._seconds(timeout)
        return self._maybe_sync(work())

    async def _unpublish(self, names: tuple[Any, ...], seconds: float | None) -> int:
        _, number = await operate(self, Unpublish, names, timeout=seconds)
        if number is False:
            raise WaitTimeoutError(f"nothing was unpublished within {seconds:g} s")
        return number  # type: ignore[no-any-return]

    @property
    def datasets(self: Any) -> Datasets:
        """What is published, as a mapping of name -> dataset."""
        return Datasets(self)


class Datasets(MutableMapping[Any, Any]):
    """Published datasets as a dict; see `Client.publish_dataset`.

    With an asynchronous client only ``await client.datasets[name]`` and ``async for`` can be used.

    Examples
    --------
    >>> client.datasets["squares"] = client.map(pow, [1, 2, 3], [2, 2, 2])
    >>> client.gather(client.datasets["squares"])
    [1, 4, 9]
    >>> del client.datasets["squares"]
    """

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getitem__(self, name: Any) -> Any:
        return self._client.get_dataset(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        self._check_sync("await client.publish_dataset(value, name=name)")
        self._client.publish_dataset(value, name=name)

    def __delitem__(self, name: Any) -> None:
        self._check_sync("await client.unpublish_dataset(name)")
        if not self._client._sync(self._client._unpublish((_name(name),), None)):
            raise KeyError(f"no dataset {name!r} is published")

    def __contains__(self, name: object) -> bool:
        self._check_sync("name in await client.list_datasets()")
        return name in self._client.list_datasets()

    def __iter__(self) -> Iterator[Any]:
        self._check_sync("async for name in client.datasets")
        return iter(self._client.list_datasets())

    def __aiter__(self) -> AsyncIterator[Any]:
        if not self._client.asynchronous:
            raise TypeError("with this client use 'for name in client.datasets'")

        async def names() -> AsyncIterator[Any]:
            for name in await self._client.list_datasets():
                yield name

        return names()

    def __len__(self) -> int:
        self._check_sync("len(await client.list_datasets())")
        return len(self._client.list_datasets())

    def _check_sync(self, instead: str) -> None:
        if self._client.asynchronous:
            raise TypeError(f"with an asynchronous client use '{instead}'")


def _named(args: tuple[Any, ...], name: Any, kwargs: dict[str, Any]) -> dict[Any, Any]:
    """What is to be published, by name."""
    if name is None and not args:
        return dict(kwargs)
    if name is None:
        if len(args) != 1 or not isinstance(args[0], dict):
            raise ValueError("give what you publish a name: publish_dataset(x, name='x')")
        return {**args[0], **kwargs}
    if not args:
        raise ValueError(f"there is nothing to publish as {name!r}")
    return {name: args[0] if len(args) == 1 else args, **kwargs}


def _name(name: Any) -> Any:
    """Check that a name can be sent and compared."""
    parts = name if isinstance(name, tuple) else (name,)
    for part in parts:
        if isinstance(part, tuple):
            _name(part)
        elif not isinstance(part, (str, int, float)):
            text = f"a dataset's name is a string, a number, or a tuple of these, not {name!r:.80}"
            raise TypeError(text)
    return name
