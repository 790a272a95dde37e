"""A real server process on a small made-up world, its client, and a stand-in of other services."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_world import PASSAGES, TITLES, encoded, picture
from stand_ins import StandIn

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.launch import ToolServer


@pytest.fixture(scope='session')
def world(tmp_path_factory) -> Path:
    """A folder with passages.jsonl, gallery.jsonl and the gallery's pictures."""
    folder = tmp_path_factory.mktemp('world')
    (folder / 'passages.jsonl').write_text(
        '\n'.join(json.dumps(passage) for passage in PASSAGES), encoding='utf-8'
    )
    entries = []
    for number, title in enumerate(TITLES):
        (folder / f'{number}.png').write_bytes(encoded(picture(number)))
        entries.append(json.dumps({'id': str(number), 'title': title, 'file': f'{number}.png'}))
    (folder / 'gallery.jsonl').write_text('\n'.join(entries), encoding='utf-8')
    return folder


@pytest.fixture(scope='session')
def local_config(world) -> dict:
    """Every tool local."""
    return {
        'text_search': {'backend': 'local', 'passages': str(world / 'passages.jsonl'), 'max_chars': 120},
        'image_search': {'backend': 'local', 'gallery': str(world / 'gallery.jsonl'), 'upload_side': 640,
                         'min_share': 0.05, 'min_similarity': 0.93},
        'images': {'max_bytes': 30_000_000, 'max_pixels': 20_000_000},
        'judge': {'backend': 'rules'},
    }  # fmt: skip


@pytest.fixture(scope='session')
def server(local_config, tmp_path_factory) -> Iterator[ToolServer]:
    with ToolServer.start(
        local_config, tmp_path_factory.mktemp('server'), ready_timeout_s=120
    ) as running:
        yield running


@pytest.fixture(scope='session')
def client(server) -> ToolClient:
    return ToolClient(server.url)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    service = StandIn()
    yield service
    service.close()
