"""Python's log records, warnings and uncaught exceptions, handed to OTP's logger."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

import _erlang


class OtpHandler(logging.Handler):
    """Hands every record to OTP's logger: level, message, traceback, where it comes from."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging` for each record. Errors go where `logging` puts those of handlers."""
        try:
            _erlang.log(
                record.levelno,
                _encodable(record.getMessage().rstrip("\n")),
                _encodable(record.name),
                _encodable(record.pathname),
                str(record.lineno),
                _encodable(_traceback_of(record)),
            )
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


def start(level: str) -> None:
    """Put the handler and the hooks in place; may be called again with another level."""
    root = logging.getLogger()
    if not any(isinstance(handler, OtpHandler) for handler in root.handlers):
        root.addHandler(OtpHandler())
    root.setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("python").critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):
        return  # As threading itself has it.
    name = args.thread.name if args.thread is not None else "?"
    error = args.exc_value if args.exc_value is not None else args.exc_type()
    logging.getLogger("threading").error(
        "uncaught exception in thread %s", name, exc_info=(args.exc_type, error, args.exc_traceback)
    )


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value if args.exc_value is not None else args.exc_type()
    logging.getLogger("python").error(
        "%s in %s",
        args.err_msg or "exception ignored",
        type(args.object).__qualname__,
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def _traceback_of(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    return record.stack_info or ""


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
