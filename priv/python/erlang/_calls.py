"""What the call threads run: `py:exec`, `py:eval` and `py:call`, and how their errors are told."""

from __future__ import annotations

import contextlib
import importlib
import sys
import textwrap
import traceback

import __main__


def execute(code: str) -> None:
    """Run statements in `__main__`; their common indentation is taken off."""
    exec(compile(textwrap.dedent(code), "<py:exec>", "exec"), vars(__main__))


def evaluate(expression: str, local_names: dict[object, object]) -> object:
    """Evaluate an expression in `__main__`, with some more names.

    They are put before those of `__main__`, not into a local scope of their own: comprehensions and
    lambdas within the expression would not see a local scope.
    """
    compiled = compile(textwrap.dedent(expression).strip(), "<py:eval>", "eval")
    if not local_names:
        return eval(compiled, vars(__main__))
    names = vars(__main__).copy()
    for name, value in local_names.items():
        if not isinstance(name, str):
            raise TypeError(f"a local name is a str, not {type(name).__name__}")
        names[name] = value
    return eval(compiled, names)


def call(module: str, function: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Call a function, or a method by its dotted name, of a module that is imported if need be."""
    target: object = importlib.import_module(module)
    for name in function.split("."):
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"{module}.{function} is not callable")
    return target(*args, **kwargs)


def describe(error: BaseException) -> tuple[str, str, str]:
    """Tell an exception as class, message and traceback, whatever its own methods do."""
    return _class_of(error), _message_of(error), _traceback_of(error)


def flush() -> None:
    """Flush the standard streams: this process, a forked child, is about to end."""
    for stream in (sys.stdout, sys.stderr):
        # Nobody is left to tell.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _class_of(error: BaseException) -> str:
    kind = type(error)
    try:
        module = str(kind.__module__)
        name = str(kind.__qualname__)
    except BaseException:
        return "BaseException"
    return name if module == "builtins" else f"{module}.{name}"


def _message_of(error: BaseException) -> str:
    try:
        return _encodable(str(error))
    except BaseException as failure:
        return f"<its str() raises {type(failure).__name__}>"


def _traceback_of(error: BaseException) -> str:
    # The first entry is this file's.
    tail = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        return _encodable("".join(traceback.format_exception(type(error), error, tail)))
    except BaseException:
        pass
    try:
        return _encodable("".join(traceback.format_tb(tail)))
    except BaseException:
        return ""


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
