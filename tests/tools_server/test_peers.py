"""Peers that send slowly, take slowly, come in crowds or from a web page: memory, descriptors and
others are spared."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import requests
import uvicorn
from small_world import encoded, picture
from starlette.exceptions import HTTPException

from tools_server import middleware
from tools_server.connections import limited_protocol
from tools_server.failures import ToolError
from tools_server.launch import ToolServer
from tools_server.limits.bodies import SMALL_BYTES, BodyRoom

BINARY = {'Content-Type': 'application/octet-stream'}
ROOM = 8 * 2**20


@pytest.fixture(scope='module')
def narrow(local_config, tmp_path_factory):
    """A server with room for 8 MiB of uploads."""
    images = {'max_bytes': 4 * 2**20, 'upload_bytes': ROOM, 'max_pixels': 20_000_000}
    config = local_config | {'images': images, 'deadline_s': 3, 'queue': 100}
    with ToolServer.start(
        config, tmp_path_factory.mktemp('narrow'), ready_timeout_s=120
    ) as running:
        yield running


def address(server):
    host, port = server.url.removeprefix('http://').split(':')
    return host, int(port)


def counts(server, tool):
    return requests.get(server.url + '/statistics', timeout=5).json()['calls'][tool]


def resident(server):
    with open(f'/proc/{server.process.pid}/statm') as file:
        return int(file.read().split()[1]) * 4096


def test_uploads_that_wait_are_not_read(narrow):
    """Forty of 4 MB that stop before their last byte: what is read of them keeps to the bound,
    others are served."""
    before = resident(narrow)
    connections = []
    for _ in range(40):
        connection = socket.create_connection(address(narrow))
        connection.settimeout(0.2)
        size = 4 * 2**20
        head = f'POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n'
        with contextlib.suppress(TimeoutError):
            connection.sendall(head.encode() + bytes(size - 1))
        connections.append(connection)
    grown = resident(narrow) - before
    start = time.monotonic()
    small = encoded(picture(7), '.jpg')
    assert requests.post(narrow.url + '/images', data=small, headers=BINARY, timeout=10).ok
    assert requests.post(narrow.url + '/text_search', json={'query': 'Paris'}, timeout=10).ok
    assert time.monotonic() - start < 1 and grown < 4 * ROOM
    for connection in connections:
        connection.settimeout(8)
        answer = b''
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(4096):
                answer += part
        assert b' 504 ' in answer and b'"timeout"' in answer
        connection.close()
    assert requests.post(
        narrow.url + '/images', data=encoded(picture(7)), headers=BINARY, timeout=10
    ).ok


def test_json_bodies_that_do_not_arrive_end(narrow):
    with socket.create_connection(address(narrow)) as connection:
        head = 'POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Deadline-S: 0.5\r\n'
        connection.sendall(head.encode() + b'Content-Length: 100\r\n\r\n{"question"')
        connection.settimeout(5)
        start, answer = time.monotonic(), b''
        while part := connection.recv(4096):
            answer += part
        assert b' 504 ' in answer and b'"timeout"' in answer and time.monotonic() - start < 2


def test_a_body_that_stops_gives_its_room_to_others_long_before_the_deadline(monkeypatch):
    monkeypatch.setattr(middleware, 'PIECE_S', 0.1)

    async def scenario():
        waits = [0.0, 0.05, 0.05, 5.0]

        async def receive():
            await asyncio.sleep(waits.pop(0))
            return {'body': bytes(middleware.PIECE_BYTES), 'more_body': True}

        limited, start = (
            middleware._limited(
                receive, 10**9, asyncio.get_running_loop().time() + 60, False, None
            ),
            time.monotonic(),
        )
        with pytest.raises(HTTPException) as error:
            while True:
                await limited()
        assert error.value.status_code == 504 and 0.1 < time.monotonic() - start < 2

    asyncio.run(scenario())


def test_a_body_that_stops_gives_its_room_away_at_once_where_others_wait(monkeypatch):
    monkeypatch.setattr(middleware, 'STALL_S', 0.05)

    async def scenario():
        room, loop = BodyRoom(10 * SMALL_BYTES, queue=3), asyncio.get_running_loop()

        async def stopped():
            await asyncio.sleep(60)

        async def steady():
            await asyncio.sleep(0.03)
            return {'body': b'x', 'more_body': True}

        async def body(receive, pieces):
            async with room.take(6 * SMALL_BYTES):
                limited = middleware._limited(receive, 10**9, loop.time() + 60, True, room)
                for _ in range(pieces):
                    await limited()

        first = asyncio.create_task(body(stopped, 1))
        await asyncio.sleep(0.3)
        assert not first.done()  # nobody waits, so it may take its time
        second = asyncio.create_task(body(steady, 6))
        async with asyncio.timeout(3):
            await second
            with pytest.raises(HTTPException) as error:
                await first
        assert error.value.status_code == 504 and room.used == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    'headers, status',
    [
        ({'Content-Type': 'image/jpeg'}, 200), (BINARY, 200), ({}, 415),
        ({'Content-Type': 'text/plain'}, 415), ({'Content-Type': 'application/x-www-form-urlencoded'}, 415),
        (BINARY | {'Origin': 'https://evil.example'}, 403), (BINARY | {'Origin': 'null'}, 403),
        (BINARY | {'Origin': 'http://localhost:1'}, 403), (BINARY | {'Origin': 'own'}, 200),
    ],
)  # fmt: skip
def test_a_page_in_a_browser_cannot_upload(narrow, headers, status):
    headers = {name: narrow.url if value == 'own' else value for name, value in headers.items()}
    answer = requests.post(
        narrow.url + '/images', data=encoded(picture(2)), headers=headers, timeout=5
    )
    assert answer.status_code == status
    if status == 415:
        assert (
            answer.json()['kind'] == 'caller'
            and 'application/octet-stream' in answer.json()['message']
        )
    if status == 403:
        assert answer.json()['kind'] == 'refused'


def test_a_form_uploads_its_file(narrow):
    """As `curl -F file=@picture.png` does."""
    data = encoded(picture(3))
    answer = requests.post(
        narrow.url + '/images', files={'file': ('a.png', data)}, data={'note': 'x'}, timeout=5
    )
    plain = requests.post(narrow.url + '/images', data=data, headers=BINARY, timeout=5).json()
    assert answer.status_code == 200 and answer.json()['sha256'] == plain['sha256']
    empty = requests.post(narrow.url + '/images', files={'note': (None, 'no file')}, timeout=5)
    assert empty.status_code == 400 and 'no file' in empty.json()['message']
    many = requests.post(narrow.url + '/images', files=[('f', ('a', b'x'))] * 30, timeout=5)
    assert many.status_code == 400 and many.json()['kind'] == 'caller'


def test_requests_that_come_to_no_tool_are_counted(narrow):
    wrong = [
        ('judge', '/judge', {'question': 'q'}),
        ('image_search', '/image_search', {'image': 'f' * 64}),
        ('crop', '/crop', {'image': 'f' * 64, 'bbox': [0, 0, 1, 1]}),
        ('crop', '/crop', {'image': 'no hash', 'bbox': [0, 0, 1, 1]}),
        ('text_search', '/text_search', {'query': 'x', 'top_k': 0}),
    ]
    for tool, path, body in wrong:
        before = counts(narrow, tool).get('caller', 0)
        assert requests.post(narrow.url + path, json=body, timeout=5).status_code in (400, 404)
        assert counts(narrow, tool)['caller'] == before + 1
    before = counts(narrow, 'image').get('caller', 0)
    assert requests.get(f'{narrow.url}/images/{"e" * 64}', timeout=5).status_code == 404
    assert counts(narrow, 'image')['caller'] == before + 1


def test_a_judge_by_rules_needs_no_image(narrow):
    body = {'question': 'q', 'references': ['Paris'], 'response': 'paris', 'images': ['f' * 64]}
    assert requests.post(narrow.url + '/judge', json=body, timeout=5).json()['verdict'] is True


def test_room_for_bodies_is_bounded_fair_and_given_back():
    async def scenario():
        room, log = BodyRoom(10 * SMALL_BYTES, queue=3), []

        async def body(name, size, seconds):
            async with room.take(size):
                log.append(name)
                assert room.used <= 10 * SMALL_BYTES
                await asyncio.sleep(seconds)

        large = [asyncio.create_task(body(n, 6 * SMALL_BYTES, 0.05)) for n in range(4)]
        await asyncio.sleep(0.01)
        assert log == [0]
        await body('small', SMALL_BYTES, 0)  # goes past those that wait
        with pytest.raises(ToolError) as error:
            await body('one too many', 6 * SMALL_BYTES, 0)
        assert error.value.status == 429
        large[1].cancel()
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await body('impatient', 6 * SMALL_BYTES, 0)
        await asyncio.gather(*large, return_exceptions=True)
        await body('more than there is', 2**40, 0)  # has all of the room
        assert log == [0, 'small', 2, 3, 'more than there is'] and room.used == 0

    asyncio.run(scenario())


async def hello(scope, receive, send):
    """An application that sends as many bytes as its path says."""
    size = int(scope['path'][1:] or 2)
    await send(
        {
            'type': 'http.response.start',
            'status': 200,
            'headers': [(b'content-length', str(size).encode())],
        }
    )
    await send({'type': 'http.response.body', 'body': bytes(size)})


@pytest.fixture
def limited():
    """A server of `hello` with 20 connections, half a second for headers and for taking answers."""
    protocol = limited_protocol(20, headers_s=0.5, reading_s=0.5)
    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(
        uvicorn.Config(hello, http=protocol, ws='none', lifespan='off', log_level='critical')
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield listener.getsockname(), server
    server.should_exit = True
    thread.join(10)
    listener.close()


def test_half_sent_headers_take_no_place_for_long(limited):
    place, server = limited
    crowd = [socket.create_connection(place) for _ in range(60)]
    for connection in crowd:
        with contextlib.suppress(OSError):
            connection.sendall(b'GET / HTTP/1.1\r\nHost: x\r\nX-Half: ')
    start = time.monotonic()
    for _ in range(5):  # while they are there, others are served
        assert requests.get(f'http://127.0.0.1:{place[1]}/', timeout=5).status_code == 200
    assert time.monotonic() - start < 2
    deadline = time.monotonic() + 5
    while server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.server_state.connections
    for connection in crowd:
        connection.close()


def test_connections_at_work_or_between_requests_are_kept(limited):
    place, _ = limited
    with requests.Session() as session:
        for pause in (0, 1.0, 0.2):  # longer than headers may take
            time.sleep(pause)
            assert session.get(f'http://127.0.0.1:{place[1]}/', timeout=5).status_code == 200


def test_who_does_not_take_an_answer_is_let_go(limited):
    place, server = limited
    connection = socket.create_connection(place)
    connection.sendall(b'GET /50000000 HTTP/1.1\r\nHost: x\r\n\r\n')
    time.sleep(0.2)
    assert server.server_state.connections
    deadline = time.monotonic() + 5
    while server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.server_state.connections
    connection.close()
