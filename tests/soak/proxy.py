"""A TCP proxy before the server's socket, which cuts, stalls and delays connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading

CHUNK = 65536
RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which close() sends a reset instead of a farewell."""


class Proxy:
    """Listens on a free port of loopback and forwards to a Unix socket, in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.delay = 0.0
        """Seconds before each piece of data."""
        self.stalled_until = 0.0
        """On the clock of the loop; nothing moves before."""
        self.writers: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._run, name="proxy", daemon=True).start()

    def cut(self, part: float, dice: random.Random) -> int:
        """Reset so many of the connections (0 to 1); return how many."""
        return self._call(lambda: self._cut(part, dice))

    def stall(self, seconds: float) -> None:
        """Forward nothing for some seconds."""

        def begin() -> int:
            self.stalled_until = self.loop.time() + seconds
            return 0

        self._call(begin)

    def _call(self, function) -> int:
        async def run() -> int:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def _cut(self, part: float, dice: random.Random) -> int:
        chosen = [writer for writer in self.writers if dice.random() < part]
        for writer in chosen:
            if found := writer.get_extra_info("socket"):
                with contextlib.suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        return len(chosen)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._serve, sock=self.listener))
        self.loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            their_reader, their_writer = await asyncio.open_unix_connection(self.path)
        except OSError:
            writer.transport.abort()
            return
        self.writers.add(writer)
        await asyncio.gather(self._pump(reader, their_writer), self._pump(their_reader, writer))
        self.writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(CHUNK):
                wait = max(self.delay, self.stalled_until - self.loop.time())
                if wait > 0:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
