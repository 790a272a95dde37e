"""Calls to services elsewhere: one place that turns everything that can go wrong there into a failure
kind."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import requests
import urllib3

from tools_server.failures import ToolError

MAX_ANSWER_BYTES = 8 * 2**20
CHUNK = 65_536


class Service:
    """An HTTP service that speaks JSON. Safe to share between threads: each has its own connections.

    Args:
        name: what failures call it.
        base_url: start of its addresses, without a slash at the end.
        timeout_s: longest time one call may take, in seconds.
        headers: sent with every call (the keys).
    """

    def __init__(self, name: str, base_url: str, timeout_s: float, headers: Mapping[str, str]):
        self.name = name
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._headers = dict(headers)
        self._local = threading.local()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends a JSON object and returns the JSON object that comes back.

        Raises:
            ToolError: 'timeout', 'refused' (the service says no: 4xx) or 'unavailable' (no connection, 5xx,
                nonsense).
        """
        session = getattr(self._local, 'session', None)
        if session is None:
            session = self._local.session = requests.Session()
        deadline = time.monotonic() + self._timeout_s
        try:
            with session.post(
                self._base_url + path,
                json=body,
                headers=self._headers,
                timeout=self._timeout_s,
                stream=True,
                allow_redirects=False,
            ) as response:
                data = read_body(response, deadline, MAX_ANSWER_BYTES, self.name)
        except requests.Timeout:
            raise ToolError('timeout', f'{self.name} did not answer within {self._timeout_s:g} s') from None
        except requests.RequestException as error:
            raise ToolError(
                'unavailable', f'{self.name} cannot be reached ({type(error).__name__})'
            ) from None
        if response.status_code >= 500:
            raise ToolError('unavailable', f'{self.name} failed with status {response.status_code}')
        if response.status_code >= 300:
            raise ToolError('refused', f'{self.name} refused the request with status {response.status_code}')
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ToolError('unavailable', f'{self.name} answered with something other than a JSON object')
        return answer


def read_body(response: requests.Response, deadline: float, max_bytes: int, name: str) -> bytes:
    """Reads a streamed answer until `deadline` (time.monotonic) and no further than `max_bytes`.

    Raises:
        ToolError: 'timeout' or 'unavailable'.
    """
    data = bytearray()
    try:
        # read1 returns what has come: a service that sends a byte at a time cannot hold a call for long.
        while chunk := response.raw.read1(CHUNK, decode_content=True):
            data += chunk
            if len(data) > max_bytes:
                raise ToolError('unavailable', f'{name} sent more than {max_bytes} bytes')
            if time.monotonic() > deadline:
                raise ToolError('timeout', f'{name} was still sending when its time was over')
    except urllib3.exceptions.TimeoutError:
        raise ToolError('timeout', f'{name} stopped sending before its answer was complete') from None
    except urllib3.exceptions.HTTPError:
        raise ToolError('unavailable', f'{name} broke off its answer') from None
    return bytes(data)


def serper_service(base_url: str, api_key_env: str, timeout_s: float) -> Service:
    """Serper's search API, https://serper.dev; the key comes from the environment."""
    return Service('Serper', base_url, timeout_s, {'X-API-KEY': os.environ[api_key_env]})
