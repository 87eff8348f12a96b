"""What is set up when Python starts inside the VM, and again when the application does."""

from __future__ import annotations

import glob
import io
import logging
import os
import sys

# The thread that imports threading first is its main thread; it must be Python's main thread, which
# this runs on, and not a thread that ends with the application.
import threading  # noqa: F401

import _erlang
from erlang import _logging


def start(python_path: list[str], log_level: str) -> None:
    """Put things in place; may be called again.

    :param python_path: folders for sys.path, after the one of this package.
    :param log_level: threshold of the root logger, as `logging` names it.
    """
    _set_path(python_path)
    _set_standard_streams()
    _logging.start(log_level)
    _warn_of_wheels()


def _set_path(python_path: list[str]) -> None:
    new = [folder for folder in python_path if folder not in sys.path]
    sys.path[1:1] = new
    # The empty entry is the current folder, whichever it is at the time of an import.
    if "" in sys.path:
        sys.path.remove("")
    sys.path.append("")


def _warn_of_wheels() -> None:
    """This application's own package comes first on sys.path, whatever is installed. But who tests
    protocols with a wheel expects that it is the same."""
    for folder in sys.path:
        for found in glob.iglob(f"{glob.escape(folder)}/py_reactor-*.dist-info"):
            version = os.path.basename(found).removeprefix("py_reactor-").removesuffix(".dist-info")
            if version != _erlang.__version__:
                logging.getLogger("erlang").warning(
                    "py_reactor %s is installed in %s, but this is py_reactor %s",
                    version,
                    folder,
                    _erlang.__version__,
                )


def _set_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    # The node's own input belongs to the Erlang shell.
    if sys.stdin is None or sys.stdin.closed or sys.stdin.fileno() == 0:
        sys.stdin = open(os.devnull)  # noqa: SIM115


def add_path(folder: str) -> None:
    """Put a folder before the others on sys.path, after this package's own."""
    if folder not in sys.path:
        sys.path.insert(1, folder)
