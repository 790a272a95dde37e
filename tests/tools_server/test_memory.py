"""Memory of a server after use: what was decoded for a moment leaves the process again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensesearch_jax.agent.tool_client import ToolClient
from tools_server.launch import ToolServer
from tools_server.memory import return_large_buffers, trim

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


FRAGMENTED = """
import time
from tools_server import memory
memory.return_large_buffers()
memory.TRIM_EVERY_S, memory.TRIM_AT_LEAST_EVERY_S = 0.05, 0.2
memory.trim_while_running()
buffers = [b'x' * 500_000 for _ in range(400)]
most = memory.resident_bytes()
del buffers[:-1]  # the last one holds the end of the heap
end = time.monotonic() + 20
while memory.resident_bytes() > most - 150_000_000 and time.monotonic() < end:
    time.sleep(0.05)
print(most - memory.resident_bytes())
"""


@pytest.mark.skipif(not trim(), reason='of the C library glibc alone can do so')
def test_free_memory_below_what_is_used_is_given_back():
    command = [sys.executable, '-c', FRAGMENTED]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert int(ended.stdout) > 150_000_000, ended.stderr
