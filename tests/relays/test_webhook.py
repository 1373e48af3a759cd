"""Webhooks: the signature, the answers, and the addresses that are refused."""

from __future__ import annotations

import http.server
import threading
import time
from email.utils import formatdate

import pytest

from outbox.consuming.cursors import SLOTS
from outbox.exceptions import DestinationUnavailable, InvalidGroup, RecordRefused
from outbox.relays import Origin, Record

pytest.importorskip("urllib3", reason="the extra webhooks is not installed")

from outbox.relays import Webhook
from outbox.relays.addresses import is_public

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ORIGIN = Origin("hook", "orders", 0, SLOTS - 1, 1)


@pytest.fixture
def receiver():
    """A server that answers what the test says and keeps what it got."""

    class Hook(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answers, got = [], []

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.got.append((self.path, dict(self.headers), body))
            status, headers = self.answers.pop(0) if self.answers else (204, {})
            self.send_response(status)
            for name, value in {"content-length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hook.port = server.server_port
    yield Hook
    server.shutdown()
    server.server_close()
    thread.join()


def hook(receiver, path="/hook", **options):
    url = f"http://127.0.0.1:{receiver.port}{path}"
    return Webhook(url, **{"secret": SECRET, "allow_private": True, **options})


def record(sink, position=1, **attributes):
    attributes = {
        "id": str(position),
        "type": "Order",
        "datacontenttype": "application/json",
    } | attributes
    return Record(position, f"hook:{position}", sink.to, "a", b'{"n": 1}', attributes, {})


def test_the_signature_verifies_with_the_reference_library(receiver):
    """Each of the given secrets has signed; a changed body does not verify."""
    webhooks = pytest.importorskip("standardwebhooks.webhooks")
    other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    sink = hook(receiver, secret=[SECRET, other])
    sink.send(ORIGIN, [record(sink)])
    _, headers, body = receiver.got[0]

    for secret in (SECRET, other):
        assert webhooks.Webhook(secret).verify(body, headers) == {"n": 1}
    with pytest.raises(webhooks.WebhookVerificationError):
        webhooks.Webhook(SECRET).verify(body + b" ", headers)


def test_the_attributes_are_headers_in_ascii(receiver):
    """CloudEvents in binary mode: what is not ASCII is percent-encoded, and no line can be added."""
    sink = hook(receiver, path="/hook?a=1")
    sink.send(ORIGIN, [record(sink, subject="Zoë\r\nx: y")])
    path, headers, _ = receiver.got[0]

    assert path == "/hook?a=1"
    assert headers["content-type"] == "application/json"
    assert headers["ce-subject"] == "Zo%C3%AB%0D%0Ax:%20y"
    assert "x" not in headers


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_about_the_request_refuses_the_record(receiver, status):
    """What the receiver never takes is parked; what it has confirmed counts."""
    receiver.answers = [(204, {}), (status, {})]
    sink = hook(receiver)
    with pytest.raises(RecordRefused, match=str(status)) as caught:
        sink.send(ORIGIN, [record(sink, 1), record(sink, 2), record(sink, 3)])

    assert caught.value.sent == 1
    assert len(receiver.got) == 2


@pytest.mark.parametrize("status", [401, 404, 410, 429, 500, 503])
def test_an_answer_about_the_receiver_makes_the_relay_wait(receiver, status):
    """No record is blamed, and Retry-After is the pause."""
    receiver.answers = [(204, {}), (status, {"retry-after": "120"})]
    sink = hook(receiver)
    with pytest.raises(DestinationUnavailable, match=str(status)) as caught:
        sink.send(ORIGIN, [record(sink, 1), record(sink, 2)])

    assert (caught.value.sent, caught.value.seconds) == (1, 120.0)


def test_retry_after_may_be_a_date(receiver):
    """A date counts from now."""
    receiver.answers = [(503, {"retry-after": formatdate(time.time() + 90, usegmt=True)})]
    sink = hook(receiver)
    with pytest.raises(DestinationUnavailable) as caught:
        sink.send(ORIGIN, [record(sink)])

    assert 60 < caught.value.seconds <= 90


def test_a_redirect_is_refused(receiver):
    """The other address gets nothing, and the error names it."""
    receiver.answers = [(307, {"location": f"http://127.0.0.1:{receiver.port}/other"})]
    sink = hook(receiver)
    with pytest.raises(DestinationUnavailable, match=r"redirects are not followed.*other"):
        sink.send(ORIGIN, [record(sink)])

    assert [path for path, _, _ in receiver.got] == ["/hook"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.7", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"),
        *(
            "::1",
            "fe80::1%eth0",
            "fd00::1",
            "::ffff:10.0.0.7",
            "100.64.0.1",
            "224.0.0.1",
            "2002:a00:7::1",
        ),
    ],
)
def test_a_private_address_is_refused(receiver, address):
    """Of whatever kind, also when another address of the name is public."""
    sink = Webhook(
        "http://hook.example/", secret=SECRET, resolve=lambda host, port: ["8.8.8.8", address]
    )
    with pytest.raises(DestinationUnavailable, match="no public address"):
        sink.send(ORIGIN, [record(sink)])

    assert not is_public(address)
    assert is_public("8.8.8.8") and is_public("2001:4860:4860::8888")


def test_a_literal_private_address_is_refused(receiver):
    """An address in the URL is checked as one that a name resolves to."""
    sink = hook(receiver, allow_private=False)
    with pytest.raises(DestinationUnavailable, match="no public address"):
        sink.send(ORIGIN, [record(sink)])

    assert receiver.got == []


def test_a_name_that_moves_after_the_check_leads_nowhere_else(receiver, monkeypatch):
    """DNS rebinding: the name is resolved once, and the connection goes to the address that was checked."""
    asked, connected = [], []

    def resolve(host, port):
        asked.append(host)
        return ["8.8.8.8"] if len(asked) == 1 else ["127.0.0.1"]

    def connect(address, *arguments, **options):
        connected.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    sink = Webhook(f"http://hook.example:{receiver.port}/", secret=SECRET, resolve=resolve)
    for _ in range(2):
        with pytest.raises(DestinationUnavailable, match="not in a test"):
            sink.send(ORIGIN, [record(sink)])
    sink.close()
    with pytest.raises(DestinationUnavailable, match="no public address"):
        sink.send(ORIGIN, [record(sink)])

    assert asked == ["hook.example"] * 2
    assert connected == [("8.8.8.8", receiver.port)] * 2
    assert receiver.got == []


def test_the_host_of_the_url_is_the_host_header(receiver):
    """The receiver sees the name although the connection goes to an address."""
    sink = Webhook(
        f"http://hook.example:{receiver.port}/",
        secret=SECRET,
        allow_private=True,
        resolve=lambda host, port: ["127.0.0.1"],
    )
    sink.send(ORIGIN, [record(sink)])

    assert receiver.got[0][1]["host"] == f"hook.example:{receiver.port}"


@pytest.mark.parametrize(
    ("url", "secret"), [("ftp://x", SECRET), ("https://", SECRET), ("https://x", "no secret!")]
)
def test_a_wrong_declaration_is_refused(url, secret):
    """A bad URL or secret fails where it is declared."""
    with pytest.raises(InvalidGroup):
        Webhook(url, secret=secret)
