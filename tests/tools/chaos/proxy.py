"""A program: TCP lanes between ports, each of which can be delayed, held up, or cut.

It takes one command a line, as JSON, and answers each with a line:
{"lane": name, "listen": port, "target": port}    open a lane
{"lane": name, "target": port}                    lead new connections elsewhere
{"lane": name, "mode": "pass"}                    the default
{"lane": name, "mode": "delay", "seconds": s}     hold each piece up for a while
{"lane": name, "mode": "cut", "after": n}         reset each connection after n more bytes
{"lane": name, "mode": "hole"}                    take everything, pass on nothing, until `pass`
"""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

HOST = "127.0.0.1"


class Cut(Exception):
    """This connection is over."""


class Lane:
    """Connections to one port, led to another."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.turn(mode="pass")

    def turn(self, mode: str, after: int = 0, seconds: float = 0) -> None:
        """Change what happens to what passes, on open connections too."""
        self._after = after if mode == "cut" else None
        self._seconds = seconds if mode == "delay" else 0
        self._left: dict[object, int] = {}
        if not hasattr(self, "_open"):
            self._open = asyncio.Event()
        (self._open.clear if mode == "hole" else self._open.set)()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection; both sides are closed when either is."""
        try:
            there, back = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        connection = object()
        pumps = [
            asyncio.ensure_future(self._pump(reader, back, connection)),
            asyncio.ensure_future(self._pump(there, writer, connection)),
        ]
        done, pending = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        for pump in pending:
            pump.cancel()
        broken = any(pump.exception() for pump in done)
        for each in (writer, back):
            if broken:
                each.transport.abort()  # a reset, as when a machine is gone
            else:
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: object
    ) -> None:
        while piece := await reader.read(65536):
            if self._seconds:
                await asyncio.sleep(self._seconds)
            await self._open.wait()
            passed = self._passed(connection, piece)
            writer.write(passed)
            await writer.drain()
            if len(passed) < len(piece):
                raise Cut
        with suppress(OSError):
            writer.write_eof()

    def _passed(self, connection: object, piece: bytes) -> bytes:
        if self._after is None:
            return piece
        left = self._left.get(connection, self._after)
        self._left[connection] = max(0, left - len(piece))
        return piece[:left]


async def main() -> None:
    """Obey until the input ends."""
    loop, lanes = asyncio.get_running_loop(), {}
    loop.set_exception_handler(lambda *_: None)  # broken connections are the point
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        told: dict[str, Any] = json.loads(line)
        name = told.pop("lane")
        if "listen" in told:
            lanes[name] = Lane(told["target"])
            await asyncio.start_server(lanes[name].join, HOST, told["listen"], backlog=512)
        elif "target" in told:
            lanes[name].target = told["target"]
        else:
            lanes[name].turn(**told)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
