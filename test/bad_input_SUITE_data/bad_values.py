"""Answers that are no action, and exceptions of every kind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import erlang
import erlang.reactor as reactor


class Hostile:
    """Every special method that somebody might call on a value raises."""

    def _refuse(self, *_args: object) -> NoReturn:
        raise SystemExit("do not touch")

    __eq__ = __ne__ = __lt__ = __hash__ = __bool__ = __len__ = _refuse  # type: ignore[assignment]
    __repr__ = __str__ = __bytes__ = __index__ = __iter__ = __call__ = _refuse  # type: ignore[assignment]


class HostileStr(str):
    """A str that raises when it is compared, hashed or printed."""

    def _refuse(self, *_args: object) -> NoReturn:
        raise SystemExit("do not touch")

    __eq__ = __ne__ = __hash__ = __repr__ = __str__ = __len__ = _refuse  # type: ignore[assignment]
    __getitem__ = __contains__ = encode = _refuse  # type: ignore[assignment]


class HostileBytearray(bytearray):
    """A bytearray that raises when it is asked for anything."""

    def _refuse(self, *_args: object) -> NoReturn:
        raise SystemExit("do not touch")

    __len__ = __bool__ = __eq__ = __repr__ = __getitem__ = __iter__ = _refuse  # type: ignore[assignment]
    __delitem__ = __setitem__ = __bytes__ = _refuse  # type: ignore[assignment]


class Repr:
    """Its repr() is whatever it was made with."""

    def __init__(self, text: Any) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class NamelessType(type):
    """Its classes have no name that could be read."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__", "__name__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Nameless(metaclass=NamelessType):
    pass


class Liar:
    """Says that it is a str."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return str


async def _coroutine() -> str:
    return "close"


def _generator() -> Any:
    yield "close"


def closed_coroutine() -> Any:
    coroutine = _coroutine()
    coroutine.close()
    return coroutine


BAD_ACTIONS: dict[str, Callable[[], Any]] = {
    "zero": lambda: 0,
    "one": lambda: 1,
    "negative": lambda: -1,
    "huge_int": lambda: 2**100_000,
    "float": lambda: 1.5,
    "nan": lambda: float("nan"),
    "true": lambda: True,
    "false": lambda: False,
    "bytes": lambda: b"close",
    "bytearray": lambda: bytearray(b"close"),
    "empty": lambda: "",
    "upper_case": lambda: "Close",
    "trailing_space": lambda: "close ",
    "trailing_nul": lambda: "close\0",
    "other_alphabet": lambda: "сlоsе",  # noqa: RUF001
    "megabyte": lambda: "x" * 1_000_000,
    "megabytes_of_an_action": lambda: "close" * 1_000_000,
    "lone_surrogate": lambda: "\ud800",
    "action_with_surrogate": lambda: "close\udfff",
    "list": lambda: ["close"],
    "tuple": lambda: ("close",),
    "dict": lambda: {"close": "close"},
    "set": lambda: {"close"},
    "object": object,
    "class": lambda: reactor.Protocol,
    "protocol": lambda: reactor.Protocol(),
    "function": lambda: _generator,
    "generator": _generator,
    "coroutine": closed_coroutine,
    "ellipsis": lambda: ...,
    "not_implemented": lambda: NotImplemented,
    "exception": lambda: ValueError("close"),
    "module": lambda: sys,
    "atom": lambda: erlang.Atom("close"),
    "hostile": Hostile,
    "hostile_str": lambda: HostileStr("nonsense"),
    "liar": Liar,
    "nameless": Nameless,
    "repr_no_str": lambda: Repr(5),
    "repr_surrogate": lambda: Repr("\ud800"),
    "repr_megabytes": lambda: Repr("é" * 3_000_000),
    "repr_controls": lambda: Repr("\0\x1b[2J\r\n~p~n%s{}"),
}


class Unprintable(Exception):
    def _refuse(self, *_args: object) -> NoReturn:
        raise ValueError("unprintable")

    __str__ = __repr__ = _refuse  # type: ignore[assignment]


class UnprintableAndUgly(BaseException):
    def _refuse(self, *_args: object) -> NoReturn:
        raise SystemExit(7)

    __str__ = __repr__ = __hash__ = __eq__ = _refuse  # type: ignore[assignment]


class StrIsNoStr(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Secretive(Exception):
    """Its chain cannot be walked."""

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no cause for you")

    __context__ = __suppress_context__ = __notes__ = __cause__  # type: ignore[assignment]


class Modest(Exception, metaclass=NamelessType):
    """Its class cannot be named."""


class EndlessNotes(Exception):
    __notes__ = [Hostile(), "\ud800"]  # noqa: RUF012


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _recurse_in_c() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    repr(value)


def throw_it(error: BaseException) -> NoReturn:
    raise error


def _raise_chain() -> NoReturn:
    try:
        throw_it(KeyError("first"))
    except KeyError as error:
        raise ValueError("second") from error


def _raise_circle() -> NoReturn:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


def _raise_long_chain() -> NoReturn:
    error: BaseException | None = None
    for number in range(5_000):
        error, earlier = ValueError(str(number)), error
        error.__cause__ = earlier
    assert error is not None
    raise error


def _raise_deep_group() -> NoReturn:
    error: Exception = ValueError("inmost")
    for _ in range(3_000):
        error = ExceptionGroup("layer", [error])
    raise error


def _no_memory() -> None:
    bytearray(1 << 60)


def _bad_syntax() -> None:
    compile("this is (no program", "<nowhere>", "exec")


def _odd_syntax_error() -> NoReturn:
    error = SyntaxError("odd")
    error.lineno, error.offset, error.text = "one", object(), b"\xff"  # type: ignore[assignment]
    error.filename, error.end_lineno = 5, 2**100  # type: ignore[assignment]
    raise error


EXCEPTIONS: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: throw_it(ValueError("bad value")),
    "SystemExit": lambda: sys.exit(3),
    "SystemExit of a string": lambda: sys.exit("farewell"),
    "KeyboardInterrupt": lambda: throw_it(KeyboardInterrupt()),
    "GeneratorExit": lambda: throw_it(GeneratorExit()),
    "StopIteration": lambda: next(iter(())),
    "StopAsyncIteration": lambda: throw_it(StopAsyncIteration()),
    "Interrupted": lambda: throw_it(erlang.Interrupted()),
    "RecursionError": _recurse,
    "RecursionError in C": _recurse_in_c,
    "MemoryError": _no_memory,
    "MemoryError by hand": lambda: throw_it(MemoryError()),
    "BlockingIOError": lambda: throw_it(BlockingIOError(11, "raised by hand")),
    "ConnectionResetError": lambda: throw_it(ConnectionResetError(104, "raised by hand")),
    "ExceptionGroup": lambda: throw_it(ExceptionGroup("some", [KeyError(1), OSError(2, "two")])),
    "BaseExceptionGroup": lambda: throw_it(BaseExceptionGroup("all", [SystemExit(1)])),
    "ExceptionGroup deep": _raise_deep_group,
    "Unprintable": lambda: throw_it(Unprintable()),
    "UnprintableAndUgly": lambda: throw_it(UnprintableAndUgly()),
    "StrIsNoStr": lambda: throw_it(StrIsNoStr()),
    "Secretive": lambda: throw_it(Secretive("chain")),
    "Modest": lambda: throw_it(Modest("name")),
    "EndlessNotes": lambda: throw_it(EndlessNotes("notes")),
    "ValueError with surrogates": lambda: throw_it(ValueError("\ud800 \udfff")),
    "ValueError of megabytes": lambda: throw_it(ValueError("é" * 500_000)),
    "ValueError with controls": lambda: throw_it(ValueError("\0\x1b[2J\r\n~p~n%s{}")),
    "ValueError chained": _raise_chain,
    "ValueError in a circle": _raise_circle,
    "ValueError in a long chain": _raise_long_chain,
    "SyntaxError": _bad_syntax,
    "SyntaxError odd": _odd_syntax_error,
}
"""The first word of a name is the name of the class."""
