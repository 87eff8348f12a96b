"""Erlang functions, called from Python: those that `py:register_function` has named."""

from __future__ import annotations

import keyword
import pkgutil
import sys
from typing import Any, final

import _erlang

DEFAULT_TIMEOUT_S = 5.0
"""As long as `gen_server:call` waits."""


class ErlangError(RuntimeError):
    """What an Erlang function raised, or what ended its process.

    :param kind: the class of the exception: ``error``, ``exit`` or ``throw``.
    :param reason: the term that was raised; as text if Python cannot have it.
    :param stacktrace: where it was raised, a line for each call; empty if that is not known.
    :param text: the reason as Erlang writes it.

    With kind ``exit`` and the reason ``not_running``, ``stopped`` or ``overload`` it comes from
    py_reactor itself.
    """

    __module__ = "erlang"

    def __init__(
        self, kind: str, reason: object, stacktrace: str = "", text: str | None = None
    ) -> None:
        super().__init__(kind, reason, stacktrace, text)
        self.kind = kind
        self.reason = reason
        self.stacktrace = stacktrace
        self._text = repr(reason) if text is None else text
        if stacktrace:
            self.add_note(f"In Erlang:\n{stacktrace}")

    def __str__(self) -> str:
        return f"{self.kind}: {self._text}"


@final
class Function:
    """An Erlang function, known by its name. Holding one does not keep it registered."""

    __slots__ = ("__name__",)
    __module__ = "erlang"

    __name__: str

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: object, timeout: float | None = DEFAULT_TIMEOUT_S) -> Any:
        """Call it. The same as `erlang.call` with its name."""
        return _erlang.function_call(self.__name__, args, timeout, checkpoint)

    def __eq__(self, other: object) -> bool:
        return self.__name__ == other.__name__ if isinstance(other, Function) else NotImplemented

    def __hash__(self) -> int:
        return hash((Function, self.__name__))

    def __repr__(self) -> str:
        return f"<erlang function {self.__name__}>"

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Function, (self.__name__,)


def call(name: str, /, *args: object, timeout: float | None = DEFAULT_TIMEOUT_S) -> Any:
    """Call an Erlang function that `py:register_function` has named, and wait for its result.

    :param name: the name that it is registered under.
    :param args: its arguments. What Erlang gets for them stands in the table of conversions.
    :param timeout: how many seconds to wait; None for ever.
    :return: what the function returns, converted.
    :raises ErlangError: the function raised an exception, or its process was killed.
    :raises TimeoutError: it did not answer in time; its process was killed.
    :raises LookupError: there is no function of that name.
    :raises TypeError: the function takes another number of arguments, or an argument or the result
        cannot cross.
    :raises ValueError: an argument cannot cross, or the timeout is negative or no number.
    :raises OSError: this is a forked child, which has no Erlang node.

    The function runs in an Erlang process of its own. Any Python thread may call; the thread waits
    without the GIL. In a callback of a protocol the other connections of its context wait too.
    """
    return _erlang.function_call(name, args, timeout, checkpoint)


def checkpoint() -> None:
    """Called between two sleeps of a call: an interrupt is raised here, by Python itself."""


def reserved() -> list[str]:
    """The names that no function may have: the package has them already, or Python does."""
    package = sys.modules["erlang"]
    submodules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted({*vars(package), *submodules, *keyword.kwlist})
