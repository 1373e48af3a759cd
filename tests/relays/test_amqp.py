"""The encoding of AMQP messages, read back by the client library."""

from __future__ import annotations

import pytest

from outbox.relays import amqp

rstream = pytest.importorskip("rstream")


def read(data):
    """Return content type, application properties and body as rstream decodes them."""
    message = rstream.amqp_decoder(data)
    properties = {
        name.decode(): value.decode() for name, value in message.application_properties.items()
    }
    return message.properties.content_type.decode(), properties, bytes(message.body)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
@pytest.mark.parametrize("letter", ["a", "ü", "\N{GRINNING FACE}"])
def test_a_message_is_read_back_as_it_was(letter, size):
    """Texts and bodies of any size and script, with sizes of one byte and of four."""
    names = amqp.Names("cloudEvents_")
    values = {"id": letter * size, "subject": "", letter * 3: "1"}
    encoded = {names[name]: value for name, value in values.items()}
    body = letter.encode() * size
    wanted = {f"cloudEvents_{name}": value for name, value in values.items()}

    assert read(amqp.message("application/json", encoded, body)) == (
        "application/json",
        wanted,
        body,
    )


def test_many_properties_fit():
    """More than 255 bytes and 127 pairs of properties, as routing functions may add."""
    wanted = {f"name-{number}": "x" * number for number in range(300)}
    encoded = {amqp.text(name): value for name, value in wanted.items()}

    assert read(amqp.message("text/plain", encoded, b"")) == ("text/plain", wanted, b"")
