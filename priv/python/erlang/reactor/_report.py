"""Failures of protocols, told to `logging`."""

from __future__ import annotations

import logging
import sys

_log = logging.getLogger("erlang.reactor")


def report(
    callback: str,
    protocol: str,
    fd: int,
    peer: str,
    listener: str,
    failure: tuple[str, str, str],
) -> None:
    """Log one failure. Called by the native code, on the thread that serves.

    :param callback: the callback that failed; ``factory`` for what makes protocols.
    :param failure: class, message and traceback of the exception.

    The record has the attributes ``callback``, ``protocol``, ``fd``, ``peer`` and ``listener``.
    """
    if not _log.isEnabledFor(logging.ERROR):
        return
    kind, message, traceback = failure
    about = {
        "callback": callback,
        "protocol": protocol,
        "fd": fd,
        "peer": peer,
        "listener": listener,
    }
    text = "%s.%s%s: %s: %s"
    of = f" of {peer}" if peer else ""
    arguments = (protocol, callback, of, kind, message)
    file = sys.modules[__name__].__file__ or "?"
    record = _log.makeRecord(_log.name, logging.ERROR, file, 0, text, arguments, None, extra=about)
    # Where `logging` keeps a traceback that it has written out.
    record.exc_text = traceback.rstrip("\n") or None
    _log.handle(record)


def report_shortage(missing: str) -> None:
    """Say why clients have to wait. Called by the native code, once a second while they do."""
    _log.warning("cannot accept clients: %s; trying again and again", missing)
