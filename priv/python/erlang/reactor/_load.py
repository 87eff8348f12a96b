"""Finds what the command line is to serve, and says in one line why it cannot."""

from __future__ import annotations

import importlib
import sys
import traceback
from types import ModuleType

from erlang.reactor import Protocol, ProtocolFactory, _checked


class LoadError(Exception):
    """There is no such protocol. Its text is one line.

    :param file: where the fault lies, if that is known.
    """

    def __init__(self, text: str, file: str | None = None) -> None:
        super().__init__(text)
        self.file = file


def load(named: str) -> ProtocolFactory:
    """Import the class that ``MODULE:CLASS`` names; the class may be dotted.

    :raises LoadError: there is none, or its module cannot be imported.
    """
    module_name, colon, name = named.partition(":")
    if not (colon and module_name and name) or module_name.startswith("."):
        raise LoadError(f"name the protocol as MODULE:CLASS, not {named!r}")
    module = _import(module_name)
    target: object = module
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise LoadError(f"{module_name} has no {name!r}{_candidates(module)}") from None
    try:
        return _checked(target)
    except TypeError as error:
        raise LoadError(f"{named} is no protocol: {error}") from None


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Not one that it imports in turn.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise LoadError(f"there is no module {error.name!r}") from None
        raise _failure(name, error) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failure(name, error) from None


def _failure(name: str, error: BaseException) -> LoadError:
    if isinstance(error, SyntaxError):
        text, file, line = error.msg, error.filename, error.lineno
    else:
        file, line = _place(error)
        text = " ".join(str(error).split())
    where = f" ({file}, line {line})" if file else ""
    return LoadError(f"{name} cannot be imported: {type(error).__name__}: {text}{where}", file)


def _place(error: BaseException) -> tuple[str | None, int | None]:
    """Where it was raised, outside the import system."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith("<frozen ") and frame.filename != importlib.__file__:
            return (None, None) if frame.filename == __file__ else (frame.filename, frame.lineno)
    return None, None


def _candidates(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Protocol) and value is not Protocol
    ]
    return f"; it has {', '.join(names)}" if names else ""


def files() -> list[str]:
    """The files that this program is made of, without those of Python and of installed packages."""
    apart = tuple(f"{folder}/" for folder in {sys.prefix, sys.base_prefix, sys.exec_prefix})
    found = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return sorted({file for file in found if file and not file.startswith(apart)})
