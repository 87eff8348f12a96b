"""What the call threads run: `py:exec`, `py:eval` and `py:call`, and how their errors are told."""

from __future__ import annotations

import contextlib
import importlib
import sys
import textwrap

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


def flush() -> None:
    """Flush the standard streams: this process, a forked child, is about to end."""
    for stream in (sys.stdout, sys.stderr):
        # Nobody is left to tell.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
