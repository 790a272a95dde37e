"""Addresses of the internet that may be fetched from.

A URL in a search result is chosen by whoever wrote the page. What counts is where its host resolves
to at the moment of connecting: every address must be public, and the connection goes to an address
that was checked, so that a name which resolves differently a second later ("DNS re-binding") gains
nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import idna

from tools_server.failures import ToolError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

PORTS = {'http': 80, 'https': 443}
MOST_HOST_CHARS = 253
# Addresses that carry an IPv4 address of their own: what they lead to is what must be public.
_NAT64 = ipaddress.ip_network('64:ff9b::/96')
# Public according to the registries or to Python's list of them, and yet of the network this
# machine stands in: a cloud's metadata, anycast of the next NAT or tunnel, site-local addresses of
# old, examples in documents.
_NEARBY = [
    *map(ipaddress.ip_network, ('168.63.129.16/32', '192.0.0.0/24', '192.88.99.0/24')),
    *map(ipaddress.ip_network, ('fd00:ec2::254/128', 'fec0::/10', '3fff::/20')),
]


class Target(NamedTuple):
    """Destination of a request: the parts of its URL and the addresses that were checked."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, also the one that is embedded in it."""
    try:
        ip: Address = ipaddress.ip_address(address.partition('%')[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is None and (ip in _NAT64 or int(ip) >> 32 == 0):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    if any(ip.version == network.version and ip in network for network in _NEARBY):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def ascii_host(host: str) -> str:
    """The form of a host's name that resolvers and certificates know.

    Raises:
        ToolError: 'refused'; it has none.
    """
    if host.isascii():
        return host
    problem: Exception | None = None
    # As browsers do: by today's rules where a name keeps them, else by those of 2003, which allow
    # signs as well.
    for encode in (lambda: idna.encode(host, uts46=True), lambda: host.encode('idna')):
        try:
            if len(host) <= MOST_HOST_CHARS:
                return encode().decode('ascii').lower()
        except (UnicodeError, ValueError) as error:
            problem = error
    raise ToolError('refused', f'the host {host[:80]!r} is no name') from problem


def target(url: str, *, allow_private: bool = False, resolver: Resolve = resolve) -> Target:
    """Checks a URL and resolves its host.

    Args:
        url: comes from the web and may be anything.
        allow_private: also this machine, its network and any port; for tests.
        resolver: host and port to IP addresses.

    Raises:
        ToolError: 'refused' for another scheme, a port other than 80 and 443, credentials in the
            URL, or a host of which any address is not public; 'unavailable' for a host that does
            not resolve.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ToolError('refused', 'the address is malformed') from None
    if parts.scheme not in PORTS or not host:
        raise ToolError('refused', 'only http and https addresses are fetched')
    if any(ord(c) < 33 or ord(c) == 127 for c in url.strip()) or '\\' in parts.netloc:
        raise ToolError('refused', 'the address is malformed')
    if parts.username is not None or parts.password is not None:
        raise ToolError('refused', 'addresses with a user name are not fetched')
    port = PORTS[parts.scheme] if port is None else port
    if not allow_private and port not in PORTS.values():
        raise ToolError('refused', f'port {port} is not fetched from; only 80 and 443 are')
    host = ascii_host(host)
    try:
        addresses = tuple(resolver(host, port))
    except (OSError, UnicodeError, ValueError):
        addresses = ()
    if not addresses:
        raise ToolError('unavailable', f'the host {host[:80]} is not known')
    if not allow_private and not all(map(is_public, addresses)):
        raise ToolError('refused', f'the host {host[:80]} is not on the public internet')
    path = (parts.path or '/') + (f'?{parts.query}' if parts.query else '')
    return Target(parts.scheme, host, port, path, addresses)
