"""The middleware alone, as an ASGI application: whom it lets through, whatever the framework makes of a
request."""

import asyncio

import pytest
from starlette.datastructures import URL
from starlette.requests import HTTPConnection

from tools_server.config import parse_config
from tools_server.middleware import GuardMiddleware

TOKEN = 'a-token-of-some-length'


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setenv('SOME_TOKEN', TOKEN)
    return parse_config({'token_env': 'SOME_TOKEN'})


def status(config, path, host):
    """The middleware's answer to a GET without a token; 200 where it lets it through."""
    sent = []

    async def behind(scope, receive, send):
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {'type': 'http.request', 'body': b''}

    scope = {
        'type': 'http', 'method': 'GET', 'path': path, 'query_string': b'', 'scheme': 'http', 'server': ('h', 80),
        'headers': [(b'host', host.encode())],
    }  # fmt: skip
    asyncio.run(GuardMiddleware(behind, config)(scope, receive, send))
    return sent[0]['status']


@pytest.mark.parametrize(
    'host', ['localhost/live?', 'localhost/ready?', 'localhost/live#', 'localhost']
)
def test_the_host_header_does_not_choose_the_path_that_is_checked(monkeypatch, config, host):
    """Starlette before 1.0.1 pasted the Host header and the path together and parsed that as a URL."""
    monkeypatch.setattr(
        HTTPConnection,
        'url',
        property(lambda self: URL(f'http://{self.headers["host"]}{self.scope["path"]}')),
    )
    assert status(config, '/statistics', host) == 401
    assert status(config, '/live', host) == 200
