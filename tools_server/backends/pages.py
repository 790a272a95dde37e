"""Fetches what a search result points to: public addresses only, a limit on bytes and time, no redirects."""

from __future__ import annotations

import ipaddress
import socket
import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import requests

from tools_server.backends.outbound import read_body
from tools_server.failures import ToolError

MAX_PAGE_BYTES = 4 * 2**20
SILENT_TAGS = {'script', 'style', 'noscript', 'template', 'svg', 'head', 'nav', 'footer'}


def fetch(url: str, timeout_s: float, allow_private: bool = False) -> bytes:
    """The bytes behind an http(s) address.

    Args:
        url: comes from the web and may point anywhere.
        timeout_s: longest time in seconds.
        allow_private: also fetch from this machine and its network; for tests.

    Raises:
        ToolError: 'refused' for an address that is not public or a status other than 200, 'timeout',
            'unavailable'.
    """
    parts = urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
        raise ToolError('refused', 'only http and https addresses are fetched')
    try:
        if not allow_private:
            _require_public(parts.hostname, parts.port or (443 if parts.scheme == 'https' else 80))
        deadline = time.monotonic() + timeout_s
        with requests.get(url, timeout=timeout_s, stream=True, allow_redirects=False) as response:
            if response.status_code != 200:
                raise ToolError('refused', f'{parts.hostname} answered with status {response.status_code}')
            return read_body(response, deadline, MAX_PAGE_BYTES, parts.hostname)
    except requests.Timeout:
        raise ToolError('timeout', f'{parts.hostname} did not answer within {timeout_s:g} s') from None
    except (requests.RequestException, ValueError) as error:
        raise ToolError(
            'unavailable', f'{parts.hostname} cannot be reached ({type(error).__name__})'
        ) from None


def _require_public(host: str, port: int) -> None:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise ToolError('unavailable', f'the host {host} is not known') from None
    for address in addresses:
        if not ipaddress.ip_address(address.partition('%')[0]).is_global:
            raise ToolError('refused', f'the host {host} is not on the public internet')


def text_of(page: bytes) -> str:
    """The readable text of an HTML page, one line per block."""
    parser = _Text()
    parser.feed(page.decode('utf-8', 'replace'))
    parser.close()
    lines = (' '.join(line.split()) for line in ''.join(parser.pieces).splitlines())
    return '\n'.join(line for line in lines if line)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._silent += tag in SILENT_TAGS
        if tag in ('p', 'br', 'div', 'li', 'tr', 'h1', 'h2', 'h3', 'h4', 'section', 'article'):
            self.pieces.append('\n')

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT_TAGS:
            self._silent = max(0, self._silent - 1)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)
