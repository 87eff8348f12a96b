"""Erlang, seen from the Python that runs inside its VM.

`send` and `whereis` reach Erlang processes, `call` the functions that Erlang has registered; they
are importable from here too, by name. `Pid`, `Ref` and `Atom` are the kinds of Erlang term that
Python has no type for, `Connection` is one that both sides know. `erlang.reactor` serves sockets.
"""

from __future__ import annotations

import _erlang
from erlang._functions import ErlangError, Function, call
from erlang._terms import Atom, Connection, Interrupted, Pid, Ref

__all__ = [
    "Atom",
    "Connection",
    "ErlangError",
    "Function",
    "Interrupted",
    "Pid",
    "Ref",
    "call",
    "send",
    "whereis",
]


def send(to: Pid | Atom | str, term: object) -> None:
    """Send a message to an Erlang process.

    :param to: the process, or the name that it is registered under on this node.
    :param term: the message. What Erlang gets for it stands in the table of conversions.
    :raises LookupError: no process is registered under that name. A `Pid` whose process has ended
        is no error: the message is dropped, as in Erlang.
    :raises TypeError, ValueError: the message, or a part of it, cannot become an Erlang term.
    :raises OSError: this is a forked child, which has no Erlang node.

    Never waits, and may be called from any Python thread.
    """
    _erlang.send(to, term)


def whereis(name: Atom | str) -> Pid | None:
    """Find the process that is registered under a name on this node.

    :param name: the name; as a str it need not be an existing atom.
    :return: the process, or None if there is none of that name.
    :raises TypeError: the name is neither an `Atom` nor a str.
    :raises OSError: this is a forked child, which has no Erlang node.
    """
    return _erlang.whereis(name)


def __getattr__(name: str) -> Function:
    if _erlang.function_exists(name):
        return Function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_erlang.function_names()})
