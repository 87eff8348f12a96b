"""The Protocol of asyncio_echo.py under uvloop, which sets TCP_NODELAY by default, too."""

from __future__ import annotations

import asyncio
import importlib

from asyncio_echo import serve

# Not a plain import: this file is type-checked where uvloop is not installed.
new_event_loop = importlib.import_module("uvloop").new_event_loop

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())
