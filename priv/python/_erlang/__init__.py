"""The native module of py_reactor on plain CPython. Private: use the package `erlang`.

Inside the Erlang VM the built-in module of this name is there before anything is imported.
"""

try:
    from _erlang._native import *  # noqa: F403
except ModuleNotFoundError as error:
    raise ImportError(
        "the native part of py_reactor is missing for this Python: pip install py_reactor's folder"
    ) from error
