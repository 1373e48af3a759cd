"""Webhooks: each message is a signed POST, and the next one goes when it is answered.

Signed by Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`. The
attributes of CloudEvents are headers. A redirect is not followed: it could lead to an address that
is not allowed, and would take the signature along.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from ..exceptions import InvalidGroup
from .addresses import Resolver, checked_address, system_resolver
from .sink import Origin, Record, library, refused, unavailable

REFUSED = 400, 406, 409, 411, 412, 413, 414, 415, 422, 431
"""Statuses that mean a wrong request; every other one but 2xx means a failing receiver."""
ANSWER_BYTES = 200
SECRET_PREFIX = "whsec_"
SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in '%"')


class Webhook:
    """Posts records to `url`, one by one, signed with `secret` ("whsec_…").

    `secret`: several sign each request with all of them, while one is replaced by another.
    `allow_private`: also addresses that are not public. `timeout`: seconds for connecting and for
    the answer. `headers`: for each request, such as an authorization.
    Needs the extra `webhooks`; raises MissingExtra, InvalidGroup for a bad URL or secret.
    """

    most_together: int | None = 20

    def __init__(
        self,
        url: str,
        *,
        secret: str | Sequence[str],
        allow_private: bool = False,
        timeout: float = 15.0,
        headers: dict[str, str] | None = None,
        resolve: Resolver = system_resolver,
    ) -> None:
        self._urllib3 = library("urllib3", "webhooks")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidGroup(f"Webhook: {url!r} is no URL like https://example.com/hook.")
        self.to, self.allow_private, self.timeout = url, allow_private, timeout
        self.headers, self.resolve = dict(headers or {}), resolve
        self._keys = [_key(each) for each in ([secret] if isinstance(secret, str) else secret)]
        self._pools: dict[tuple[str, str, int], Any] = {}

    def __repr__(self) -> str:
        parts = urlsplit(self.to)
        return f"Webhook({parts.scheme}://{parts.hostname}{parts.path})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return None: a receiver does not say what it has; it knows doubles by `webhook-id`."""
        return None

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Post the records, each after the answer to the one before it."""
        for sent, record in enumerate(records):
            try:
                answer = self._post(record)
            except Exception as error:
                if hasattr(error, "sent"):
                    error.sent = sent
                    raise
                raise unavailable(error, sent) from error
            if not 200 <= answer.status < 300:
                self._refuse(answer, record, sent)
            answer.drain_conn()

    def close(self) -> None:
        """Give up the connections; the name is resolved and checked again at the next request."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _post(self, record: Record) -> Any:
        parts = urlsplit(record.to)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return self._pool(parts).urlopen(
            "POST",
            path,
            body=record.data,
            headers={**_headers(record), **self.headers, "host": parts.netloc.rpartition("@")[2]}
            | self._signature(record.id, record.data),
            redirect=False,
            retries=False,
            preload_content=False,
        )

    def _pool(self, parts: Any) -> Any:
        """Return the connections to the checked address of a host."""
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        known = self._pools.get((parts.scheme, host, port))
        if known is not None:
            return known
        address = checked_address(
            host, port, allow_private=self.allow_private, resolve=self.resolve
        )
        options = {"timeout": self._urllib3.Timeout(self.timeout), "maxsize": 1}
        if parts.scheme == "https":
            options |= {"server_hostname": host, "assert_hostname": host}
            pool = self._urllib3.HTTPSConnectionPool(address, port, **options)
        else:
            pool = self._urllib3.HTTPConnectionPool(address, port, **options)
        self._pools[parts.scheme, host, port] = pool
        return pool

    def _signature(self, name: str, body: bytes) -> dict[str, str]:
        now = str(int(time.time()))
        text = f"{name}.{now}.".encode() + body
        signatures = [
            "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
            for key in self._keys
        ]
        return {
            "webhook-id": name,
            "webhook-timestamp": now,
            "webhook-signature": " ".join(signatures),
        }

    def _refuse(self, answer: Any, record: Record, sent: int) -> None:
        text = answer.read(ANSWER_BYTES).decode(errors="replace").strip()
        answer.close()
        what = f"{self!r} answered {answer.status} {answer.reason or ''}".strip()
        if answer.status in REFUSED:
            size = f" to {len(record.data)} bytes" if answer.status == 413 else ""
            raise refused(sent, f"{what}{size}: {text}")
        if 300 <= answer.status < 400:
            text = f"redirects are not followed: use the URL {answer.headers.get('location')!r}"
        raise unavailable(f"{what}: {text}", sent, _retry_after(answer.headers.get("retry-after")))


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError, AttributeError):
        key = b""
    if not key:
        raise InvalidGroup("Webhook: the secret is no base64 text like whsec_….")
    return key


def _headers(record: Record) -> dict[str, str]:
    headers = {f"ce-{name}": quote(value, safe=SAFE) for name, value in record.attributes.items()}
    headers["content-type"] = headers.pop("ce-datacontenttype", "application/json")
    return headers | {name: quote(value, safe=SAFE + " ") for name, value in record.headers.items()}


def _retry_after(text: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
