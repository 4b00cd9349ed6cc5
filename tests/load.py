"""A load generator: requests leave when their time has come, whether earlier ones were answered or not. One process, raw connections, few Python steps a request."""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter

CRLF = b"\r\n\r\n"


def request(body: bytes, path: str = "/predict", **headers: str) -> bytes:
    """A request's bytes; headers are written with underscores."""
    named = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, done: "Load") -> None:
        self.load, self.buffer, self.since, self.kind, self.size, self.sending = done, b"", 0.0, "", -1, False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(0)  # so that it is told when all has been sent

    def pause_writing(self) -> None:
        self.sending = True

    def resume_writing(self) -> None:
        self.sending = False
        self.rest()

    def rest(self) -> None:
        """Be free for another request, if this one was answered and sent whole: a refusal may come before the body's end."""
        if not self.kind and not self.sending and not self.transport.is_closing():
            self.rested = time.monotonic()
            self.load.idle.append(self)

    def send(self, kind: str, data: bytes, since: float) -> None:
        self.kind, self.since = kind, since
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.size < 0 and (at := self.buffer.find(CRLF)) >= 0:
            self.head = self.buffer[:at].lower()
            self.size = at + 4 + int(self.head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if 0 <= self.size <= len(self.buffer):
            status, self.buffer, self.size = int(self.head[9:12]), b"", -1
            self.load.answered(self, status, b"retry-after:" in self.head)
            if b"connection: close" in self.head:
                self.transport.close()
            else:
                self.rest()

    def connection_lost(self, error: Exception | None) -> None:
        if self.kind:
            self.load.lost(self, error)
        if self in self.load.idle:
            self.load.idle.remove(self)
        self.load.open -= 1


class Load:
    """What is sent, and what comes back."""

    def __init__(self, port: int, most: int) -> None:
        self.port, self.most, self.open, self.idle, self.skipped = port, most, 0, [], 0
        self.answers: list[tuple[str, int, float, float, bool, int]] = []  # kind, status, sent at, seconds, has Retry-After, local port
        self.errors: Counter[str] = Counter()

    def answered(self, connection: Connection, status: int, retry: bool) -> None:
        now = time.monotonic()
        self.answers.append((connection.kind, status, connection.since, now - connection.since, retry, connection.port))
        connection.kind = ""

    def lost(self, connection: Connection, error: Exception | None) -> None:
        self.answers.append((connection.kind, 0, connection.since, time.monotonic() - connection.since, False, connection.port))
        self.errors[type(error).__name__] += 1

    async def connect(self) -> Connection | None:
        """A connection that is free, or a new one; none where there are enough."""
        while self.idle:
            found = self.idle.pop()
            if time.monotonic() - found.rested > 2:
                found.transport.close()  # the service is about to close it
            elif not found.transport.is_closing():
                return found
        if self.open >= self.most:
            self.skipped += 1
            return None
        self.open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        except OSError as error:
            self.errors[f"connect: {type(error).__name__}"] += 1
            self.open -= 1
            return None
        connection.port = connection.transport.get_extra_info("sockname")[1]
        return connection

    async def one(self, kind: str, data: bytes) -> None:
        since = time.monotonic()  # a connection that is slow to come counts; a generator that is behind does not
        if connection := await self.connect():
            connection.send(kind, data, since)

    async def steady(self, requests: list[tuple[str, bytes]], rate: float, seconds: float) -> None:
        """So many requests a second, in turn."""
        began, sent, waiting = time.monotonic(), 0, set()
        while (now := time.monotonic()) - began < seconds:
            due = int((now - began) * rate)
            for sent in range(sent, due):
                task = asyncio.ensure_future(self.one(*requests[sent % len(requests)]))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            sent = max(sent, due)
            await asyncio.sleep(0.002)
        until = time.monotonic() + 20
        while (len(self.idle) < self.open or waiting) and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def closed(self, requests: list[tuple[str, bytes]], connections: int, seconds: float) -> None:
        """So many connections, each of which sends when it has been answered."""
        until = time.monotonic() + seconds

        async def worker(at: int) -> None:
            while time.monotonic() < until:
                if connection := await self.connect():
                    before = connection.since
                    connection.send(*requests[at % len(requests)], time.monotonic())
                    while connection.kind and not connection.transport.is_closing():
                        await asyncio.sleep(0.0005)
                    at += 1
                else:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(worker(at) for at in range(connections)))


def main() -> None:
    """Read what to send from standard input, as JSON; write what came back to standard output."""
    parser = argparse.ArgumentParser()
    for name in ("port", "connections"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: as many as are answered")
    options = parser.parse_args()
    requests = [(each["kind"], request(each["body"].encode(), **each.get("headers", {}))) for each in json.load(sys.stdin)]
    load = Load(options.port, options.connections)
    work = load.steady(requests, options.rate, options.seconds) if options.rate else load.closed(requests, options.connections, options.seconds)
    asyncio.run(work)
    json.dump({"answers": load.answers, "errors": load.errors, "skipped": load.skipped}, sys.stdout)


if __name__ == "__main__":
    main()
