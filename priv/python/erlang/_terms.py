"""The Erlang terms that Python has no type for, connections, and the exception that Erlang raises.

The native code knows these classes by identity and reads their slots, so they are final.
"""

from __future__ import annotations

from typing import final

import _erlang


class _Handle:
    """Something that only Erlang can make and look into: kept in the external term format."""

    __slots__ = ("_external",)

    _external: bytes

    def __init__(self, external: bytes) -> None:
        self._external = external

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self) and isinstance(other, _Handle):
            return self._external == other._external
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._external)

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return type(self), (self._external,)


@final
class Pid(_Handle):
    """An Erlang process, on this node or another.

    Comes from Erlang, and goes back as the same pid. Equal pids are the same process.
    """

    __slots__ = ()
    __module__ = "erlang"

    def __repr__(self) -> str:
        # The last twelve bytes are id, serial and creation.
        number = int.from_bytes(self._external[-12:-8], "big")
        serial = int.from_bytes(self._external[-8:-4], "big")
        return f"<erlang.Pid {number}.{serial}>"


@final
class Ref(_Handle):
    """An Erlang reference. Comes from Erlang, and goes back as the same reference."""

    __slots__ = ()
    __module__ = "erlang"

    def __repr__(self) -> str:
        return f"<erlang.Ref {self._external[-12:].hex()}>"


@final
class Atom:
    """An atom, for Erlang's eyes: a plain str becomes a binary, an `Atom` an atom.

    :param name: the atom's name.
    :raises ValueError: there is no such atom. Atoms are never collected, so Python may make none.

    Only from Python to Erlang: an atom that comes from Erlang is a str.
    """

    __slots__ = ("_name",)
    __module__ = "erlang"

    _name: str

    def __init__(self, name: str) -> None:
        if not _erlang.atom_exists(name):
            raise ValueError(f"there is no atom {name!r}")
        self._name = name

    @property
    def name(self) -> str:
        """The atom's name."""
        return self._name

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, Atom) else NotImplemented

    def __hash__(self) -> int:
        return hash((Atom, self._name))

    def __repr__(self) -> str:
        return f"erlang.Atom({self._name!r})"

    def __str__(self) -> str:
        return self._name

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Atom, (self._name,)


@final
class Connection:
    """One connection of a reactor, known to Erlang as a reference.

    Comes from `erlang.reactor.Protocol.connection`, or from Erlang, and goes to Erlang and back
    as the same. It may be kept for as long as one likes: it keeps nothing open, and when the
    connection is over it never becomes another one.
    """

    __slots__ = ("_handle",)
    __module__ = "erlang"

    _handle: _erlang.Connection

    def __init__(self, handle: _erlang.Connection) -> None:
        self._handle = handle

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Connection):
            return _erlang.connection_id(self._handle) == _erlang.connection_id(other._handle)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((Connection, _erlang.connection_id(self._handle)))

    def __repr__(self) -> str:
        return f"<erlang.Connection {_erlang.connection_id(self._handle)}>"


class Interrupted(KeyboardInterrupt):
    """Raised in Python code whose Erlang caller has given up: a timeout, an interrupt, its death.

    A KeyboardInterrupt, so that `except Exception` lets it through and clean-up code runs.
    """

    __module__ = "erlang"
