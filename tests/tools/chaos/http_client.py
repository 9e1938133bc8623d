"""HTTP over kept-alive connections, as lean as a sender of many thousands needs it."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from processes import HOST
from proxies import OUTSIDE

Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Lost(Exception):
    """No whole answer came: what became of the request is unknown."""


class Request(NamedTuple):
    """What is asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    def written(self) -> bytes:
        """As it goes over the wire."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {OUTSIDE}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    retry_after: str = ""


class Connections:
    """Idle connections by port; `turn` bounds how many requests are under way."""

    def __init__(self, most: int) -> None:
        self.turn = asyncio.Semaphore(most)
        self._idle: dict[int, list[Connection]] = defaultdict(list)

    async def ask(self, port: int, asked: Request, seconds: float) -> Answer:
        """Send a request; give its answer. Raises Lost."""
        try:
            async with asyncio.timeout(seconds):
                return await self._over(port, asked.written())
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise Lost(type(error).__name__) from None

    async def _over(self, port: int, request: bytes) -> Answer:
        reader, writer = self._taken(port) or await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            await writer.drain()
            answer, keep = await _read(reader)
        except BaseException:
            writer.transport.abort()
            raise
        if keep:
            self._idle[port].append((reader, writer))
        else:
            writer.close()
        return answer

    def _taken(self, port: int) -> Connection | None:
        while self._idle[port]:
            reader, writer = self._idle[port].pop()
            # One that the other side closed while it was idle is not a lost answer.
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            with suppress(OSError):
                writer.close()
        return None


async def _read(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ")[1])
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = await _chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status, body, headers.get("retry-after", "")), headers.get(
        "connection", ""
    ).lower() != "close"


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
