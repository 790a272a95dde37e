"""Memory of a server after use: what was decoded for a moment leaves the process again."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.launch import ToolServer
from tools_server.memory import return_large_buffers

POCKET = Path(__file__).parents[2] / 'configs' / 'tools_pocket.yaml'
MOST_MB = 600


def photograph(number):
    """A 4K JPEG."""
    patches = np.random.default_rng(number).integers(0, 256, (27, 48, 3), dtype=np.uint8)
    return cv2.imencode('.jpg', cv2.resize(patches, (3840, 2160)))[1].tobytes()


@pytest.mark.skipif(not return_large_buffers(), reason='of the C library glibc alone can be told')
def test_the_pocket_server_stays_small(tmp_path):
    """Thirty 4K pictures, cut and searched by eight callers: without settings for malloc 640 MB and
    more remain."""
    with ToolServer.start(POCKET, tmp_path, ready_timeout_s=120) as server:
        client = ToolClient(server.url, deadline_s=60)

        def use(number):
            ref = client.upload(photograph(number))
            client.crop(ref.sha256, (0.1, 0.1, 0.8, 0.81))
            client.image_search(ref.sha256)
            return client.text_search(f'capital {number}')

        with ThreadPoolExecutor(8) as pool:
            assert all(isinstance(found, list) for found in pool.map(use, range(30)))
        pages = int(Path(f'/proc/{server.process.pid}/statm').read_text().split()[1])
        assert pages * os.sysconf('SC_PAGE_SIZE') / 2**20 < MOST_MB
