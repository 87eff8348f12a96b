"""What other threads ask for comes to the reactor through a bounded queue."""

from __future__ import annotations

from clients import Serve

COUNTING = """
    written = 0

    def data_received(self, data):
        if data == b"hold":
            self.hold()
        self.tell("data", data=data.decode())

    def write_ready(self):
        self.written += 1
        return "read_pending"
    """


def test_what_was_asked_for_while_the_reactor_was_held_is_done(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()
    """)
    holder = server.connect()
    others = [server.connect() for _ in range(50)]
    for client in others:
        client.send(b"")
    holder.send(b"x")
    holder.next("data_received")
    holder.next("held")
    for number, client in enumerate(others):
        assert client.evaluate(f"self.write_buffer.extend(b'%03d' % {number})") is None
        assert client.evaluate("reactor.resume(self, 'write_pending')") is True
    holder.release()
    for number, client in enumerate(others):
        assert client.receive(3) == b"%03d" % number


def test_a_full_queue_is_an_error_and_loses_nothing_of_what_it_took(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()

        def write_ready(self):
            self.calls = getattr(self, "calls", 0) + 1
            return "read_pending"

        def flood(self):
            taken = 0
            try:
                while True:
                    reactor.resume(self, "write_pending")
                    taken += 1
            except RuntimeError as error:
                return [taken, str(error)]
    """)
    holder, flooded, other = (server.connect() for _ in range(3))
    holder.send(b"x")
    holder.next("data_received")
    holder.next("held")
    taken, text = flooded.evaluate("self.flood()")
    assert taken > 1000
    assert "flooded" in text or "full" in text or "overload" in text, text
    # An end is not queued behind anything, and bytes of one's own can be written.
    assert other.evaluate("reactor.resume(self, 'abort')") is True
    assert flooded.evaluate("self.write(b'not queued')") == 10
    assert flooded.receive(10) == b"not queued"
    holder.release()
    assert other.lost() == "aborted"
    server.fence()
    assert flooded.evaluate("self.calls") == taken
    # There is room again.
    assert flooded.evaluate("reactor.resume(self, 'write_pending')") is True
    server.fence()
    assert flooded.evaluate("self.calls") == taken + 1


def test_requests_of_many_threads_come_in_the_order_of_each(serve: Serve) -> None:
    server = serve("""
        threads = 8
        each = 100

        def connection_made(self, fd, info):
            self.lock = threading.Lock()
            self.lines = []
            for number in range(self.threads):
                threading.Thread(target=self.work, args=(number,)).start()

        def work(self, number):
            for count in range(self.each):
                with self.lock:
                    self.write_buffer += b"%d %d\\n" % (number, count)
                while True:
                    try:
                        reactor.resume(self, "write_pending")
                        break
                    except RuntimeError:
                        pass

        def write_ready(self):
            with self.lock:
                del self.write_buffer[:self.write(self.write_buffer)]
            return "continue" if self.write_buffer else "read_pending"
    """)
    client = server.connect()
    lines = client.socket.makefile("rb")
    counts = dict.fromkeys(range(8), 0)
    for _ in range(800):
        number, count = map(int, lines.readline().split())
        assert counts[number] == count
        counts[number] += 1
    assert set(counts.values()) == {100}


def test_timeouts_set_by_many_threads_end_with_the_last_one(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            self.threads = [threading.Thread(target=self.work) for _ in range(8)]
            for thread in self.threads:
                thread.start()

        def work(self):
            for _ in range(200):
                self.set_timeout(3600)
                self.set_timeout(None)

        def timeout_expired(self):
            return "close"
    """)
    client = server.connect()
    server.fence()
    client.evaluate("[thread.join() for thread in self.threads] and None")
    client.nothing()
    client.evaluate("self.set_timeout(0.001)")
    client.next("timeout_expired")
    assert client.lost() == "timeout"


def test_other_threads_may_go_on_while_the_connection_ends(serve: Serve) -> None:
    server = serve("""
        def connection_made(self, fd, info):
            for _ in range(4):
                threading.Thread(target=self.work).start()

        def work(self):
            try:
                while True:
                    self.write(b"x")
                    self.set_timeout(3600)
                    self.pause_reading()
                    self.resume_reading()
                    reactor.resume(self, "read_pending")
            except (BrokenPipeError, RuntimeError):
                self.tell("ended")
    """)
    for _ in range(10):
        client = server.connect()
        assert client.receive(10) == b"x" * 10
        client.reset()
        assert client.skip_to("connection_lost")["reason"] in ("reset", "eof")


def test_messages_of_another_thread_arrive_as_they_are_and_in_order(serve: Serve) -> None:
    server = serve("""
        sent = [[number] for number in range(1000)]
        got = []

        def message_received(self, message):
            self.got.append(message)
            return "continue"

        def work(self):
            def send():
                self.results = [reactor.send(self, each) for each in self.sent]

            thread = threading.Thread(target=send)
            thread.start()
            thread.join()
            return self.results == [True] * len(self.sent)

        def came(self):
            return list(map(id, self.got)) == list(map(id, self.sent))
    """)
    client = server.connect()
    assert client.evaluate("self.work()") is True
    for number in range(1000):
        assert client.next("message_received")["message"] == [number]
    assert client.evaluate("self.came()") is True


def test_messages_beyond_what_may_wait_are_an_error(serve: Serve) -> None:
    server = serve("""
        def data_received(self, data):
            self.hold()

        def flood(self):
            taken = 0
            try:
                while reactor.send(self, taken):
                    taken += 1
            except RuntimeError as error:
                return [taken, str(error)]
    """)
    holder, flooded = server.connect(), server.connect()
    holder.send(b"x")
    holder.next("data_received")
    holder.next("held")
    taken, text = flooded.evaluate("self.flood()")
    assert taken > 1000
    assert "full" in text
    holder.release()
    for number in range(taken):
        assert flooded.next("message_received")["message"] == number


def test_no_message_reaches_what_is_over(serve: Serve) -> None:
    server = serve("""
        def connection_lost(self):
            self.tell("sent", result=reactor.send(self, 1))
    """)
    client = server.connect()
    client.close()
    assert client.skip_to("sent")["result"] is False
