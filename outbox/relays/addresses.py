"""Where a webhook may connect: a name is resolved once, and the checked address is used."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from .sink import unavailable

Resolver = Callable[[str, int], list[str]]
"""Takes a host name and a port; returns its IP addresses."""


def system_resolver(host: str, port: int) -> list[str]:
    """Return the addresses of a name, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


def checked_address(
    host: str, port: int, *, allow_private: bool, resolve: Resolver = system_resolver
) -> str:
    """Return an address of a host that a webhook may connect to.

    Raises DestinationUnavailable when the name has no address, or one that is not public.
    """
    try:
        addresses = resolve(host, port)
    except OSError as error:
        raise unavailable(f"the name {host!r} has no address: {error}") from error
    if not addresses:
        raise unavailable(f"the name {host!r} has no address")
    for address in addresses:
        if not (allow_private or is_public(address)):
            raise unavailable(
                f"{host!r} is at {address}, which is no public address: use another URL, or "
                "Webhook(…, allow_private=True) for a receiver in your own network"
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if mapped is not None and not mapped.is_global:
        return False
    return ip.is_global and not ip.is_multicast
