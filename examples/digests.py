"""Work in other threads: each message is answered with its scrypt digest.

python -m erlang.reactor serve digests:Digests
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import erlang.reactor as reactor

pool = ThreadPoolExecutor(max_workers=2)


class Digests(reactor.Protocol):
    def data_received(self, data: bytes) -> reactor.Action:
        pool.submit(self.work, data)
        return "continue"

    def work(self, data: bytes) -> None:  # in a thread of the pool
        reactor.send(self, hashlib.scrypt(data, salt=b"salt", n=2**14, r=8, p=1))

    def message_received(self, message: object) -> None:
        assert isinstance(message, bytes)
        self.write_buffer += message
