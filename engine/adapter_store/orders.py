"""Orders: the steps of an adapter's life that AdapterPolicy decides on and others carry out.

LLM carries an order out in its own thread; AsyncAdapters sends messages to processes and waits for their answers. What
takes several steps is an operation, a generator of orders: it gets the reply to each order, or the order's failure
raised at the `yield`. So the policy writes an operation once, and each of the two carries it out in its own way.
"""

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from blora.adapters import AdapterRejected, ImageTable

from .source import Source

Result = TypeVar("Result")


# Orders that are done when they have been sent.


@dataclass(frozen=True, slots=True)
class Unpin:
    """The engine may evict an adapter."""

    digest: str


@dataclass(frozen=True, slots=True)
class DropImage:
    """Drop an image, which can be read again, here and in the engine."""

    digest: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Keep no image of an adapter, and have the engine free it. An engine confirms: see `note_unloaded`."""

    digest: str


@dataclass(frozen=True, slots=True)
class AbortRequests:
    """End the requests that named an adapter and got one of these contents."""

    name: str
    digests: frozenset[str]


# Orders that take time.


@dataclass(frozen=True, slots=True)
class BringBack:
    """Carry out `read_again` for those of these adapters that have no image in host memory."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """Read an adapter again, and `check` that it is the same. The reply is the image, for GiveImage."""

    digest: str
    source: Source

    def check(self, found: str) -> None:
        """found: the digest that was read. Raises AdapterRejected for another adapter."""
        if found != self.digest:
            raise AdapterRejected(self.source.folder, [f"its digest is {found}"])


@dataclass(frozen=True, slots=True)
class GiveImage:
    """Keep an image and give it to the engine. On failure the image is closed."""

    table: ImageTable
    image: Any  # an AdapterImage or a PackedAdapter: the policy passes it on


@dataclass(frozen=True, slots=True)
class GiveKeptImage:
    """Give another engine an image that is kept. The reply is None, or the error that the engine met."""

    table: ImageTable


@dataclass(frozen=True, slots=True)
class Pin:
    """Have the engine make an adapter resident and keep it so. The reply is False when there is no room now."""

    digest: str


@dataclass(frozen=True, slots=True)
class Warm:
    """Have the engine make an adapter resident. The reply is False when there is no room now."""

    digest: str


@dataclass(frozen=True, slots=True)
class AwaitUnloaded:
    """Wait until none of these adapters is on its way out."""

    digests: tuple[str, ...]


Immediate = Unpin | DropImage | Unload | AbortRequests
Order = Immediate | BringBack | ReadAgain | GiveImage | GiveKeptImage | Pin | Warm | AwaitUnloaded
Operation = Generator[Order, Any, Result]


def carry_out(operation: Operation[Result], do: Callable[[Order], Any]) -> Result:
    """Runs an operation to its end. do: carries out an order and returns the reply."""
    proceed = partial(operation.send, None)
    while True:
        try:
            order = proceed()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            proceed = partial(operation.send, do(order))
        except BaseException as error:
            proceed = partial(operation.throw, error)


async def carry_out_async(operation: Operation[Result], do: Callable[[Order], Awaitable[Any]]) -> Result:
    """`carry_out` with an asynchronous `do`. An order may fail by being cancelled, too."""
    proceed = partial(operation.send, None)
    while True:
        try:
            order = proceed()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            proceed = partial(operation.send, await do(order))
        except BaseException as error:
            proceed = partial(operation.throw, error)
