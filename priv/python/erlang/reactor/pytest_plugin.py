"""The fixture ``drive`` for pytest: `erlang.reactor.testing.drive`, with an end.

pytest finds it by itself where the distribution is installed; elsewhere it is named with
``-p erlang.reactor.pytest_plugin``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from erlang.reactor import ProtocolFactory, testing

__all__ = ["StartDrive", "drive"]

StartDrive: TypeAlias = Callable[..., testing.Drive]
"""What the fixture is: the function `erlang.reactor.testing.drive`."""


@pytest.fixture
def drive() -> Iterator[StartDrive]:
    """Make protocols with simulated connections, which end with the test. What a callback raised
    fails it, unless the test has asked for it."""
    with ExitStack() as stack:

        def start(factory: ProtocolFactory, **options: Any) -> testing.Drive:
            return stack.enter_context(testing.drive(factory, **options))

        yield start
