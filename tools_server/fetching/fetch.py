"""Fetches what a search result points to: public addresses, few redirects, bounded in bytes, time
and type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin

import urllib3

from tools_server.failures import ToolError
from tools_server.fetching import addresses, connections
from tools_server.fetching.connections import Dial
from tools_server.limits import deadline

MAX_BYTES = 4 * 2**20
MAX_PDF_BYTES = 8 * 2**20
MAX_REDIRECTS = 5
PDF = 'application/pdf'
PAGES = ('text/html', 'application/xhtml+xml', 'text/plain', PDF)
PICTURES = ('image/',)
HEADERS = {'User-Agent': 'tools_server/1', 'Accept-Encoding': 'identity'}


class Fetched(NamedTuple):
    """A file and its content type, in lower case."""

    data: bytes
    content_type: str


@dataclass(eq=False)
class Fetcher:
    """Fetches pages and pictures under one policy. Safe to share between threads.

    Args:
        timeout_s: longest time of one fetch with all its redirects, in seconds.
        allow_private: also fetch from this machine and its network; for tests.
        resolver: host and port to IP addresses.
        dialler: connects to a checked address.
    """

    timeout_s: float
    allow_private: bool = False
    resolver: addresses.Resolve = addresses.resolve
    dialler: Dial = connections.dial

    def fetch(self, url: str, types: tuple[str, ...] = PAGES) -> Fetched:
        """The file behind an http(s) address.

        Args:
            url: comes from the web and may point anywhere.
            types: beginnings of the content types that are taken.

        Raises:
            ToolError: 'refused' for an address that may not be fetched (also after a redirect),
                another type, or a status other than 200; 'timeout'; 'unavailable'.
        """
        with deadline.within(self.timeout_s):
            for _ in range(MAX_REDIRECTS + 1):
                place = addresses.target(
                    url, allow_private=self.allow_private, resolver=self.resolver
                )
                answer = self._get(place, types)
                if isinstance(answer, Fetched):
                    return answer
                try:
                    url = urljoin(url, answer)
                except ValueError:
                    raise ToolError(
                        'refused', f'{place.host} redirects to a malformed address'
                    ) from None
        raise ToolError('refused', f'{place.host} redirects more than {MAX_REDIRECTS} times')

    def _get(self, place: addresses.Target, types: tuple[str, ...]) -> Fetched | str:
        """The file, or where to go on to."""
        seconds = deadline.require_time(place.host)
        try:
            pool = connections.pinned_pool(
                place.scheme, place.host, place.port, place.addresses, self.dialler
            )
        except (urllib3.exceptions.HTTPError, ValueError):
            raise ToolError('refused', f'the host {place.host[:80]!r} is no name') from None
        try:
            response = pool.urlopen(
                'GET', place.path, headers=HEADERS, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(connect=seconds, read=seconds),
            )  # fmt: skip
            location = response.headers.get('Location')
            if response.status in (301, 302, 303, 307, 308) and location:
                return location
            if response.status != 200:
                raise ToolError('refused', f'{place.host} answered with status {response.status}')
            kind = response.headers.get('Content-Type', '').strip().lower()
            if not kind.startswith(types):
                raise ToolError('refused', f'{place.host} sent content of the type {kind[:60]!r}')
            most = MAX_PDF_BYTES if kind.startswith(PDF) else MAX_BYTES
            return Fetched(connections.read_body(response, most, place.host), kind)
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError, ValueError) as error:
            if connections.timed_out(error) or deadline.left() <= 0:
                raise ToolError('timeout', f'{place.host} did not answer in time') from None
            raise ToolError(
                'unavailable', f'{place.host} cannot be reached ({type(error).__name__})'
            ) from None
        finally:
            pool.close()
