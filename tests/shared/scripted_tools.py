"""A client of tools that live in this process: right, slow or failing as a test likes."""

import hashlib
import io
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sensesearch_jax.agent.tool_client import Match, Passage, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef


def noise_file(path, width, height, seed):
    """A picture of coarse noise as a PNG file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return str(path)


class ScriptedTools:
    """The methods of `ToolClient`, safe to call from threads; answers depend on the arguments only.

    Args:
        delay: seconds that a call takes, from its method and first argument.
        fails: the ToolFailure or exception that a call gives instead of its answer, or None;
            likewise.
    """

    url = 'http://127.0.0.1:8000'

    def __init__(self, delay=lambda method, what: 0.0, fails=lambda method, what: None):
        self.delay, self.fails = delay, fails
        self.calls, self._files, self._lock = [], {}, threading.Lock()

    def _answer(self, method, what, make):
        time.sleep(self.delay(method, what))
        failure = self.fails(method, what)
        with self._lock:
            self.calls.append((method, what))
        if isinstance(failure, Exception):
            raise failure
        return failure or make()

    def _add(self, picture):
        data = io.BytesIO()
        picture.save(data, 'PNG')
        name = hashlib.sha256(data.getvalue()).hexdigest()
        with self._lock:
            self._files[name] = data.getvalue()
        return ImageRef(name, *picture.size)

    def _open(self, sha256):
        return Image.open(io.BytesIO(self._files[sha256])).convert('RGB')

    def upload(self, image):
        name = 'bytes' if isinstance(image, bytes) else Path(image).name
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        return self._answer('upload', name, lambda: self._add(Image.open(file).convert('RGB')))

    def image(self, sha256):
        return self._answer('image', sha256, lambda: self._files[sha256])

    def text_search(self, query, top_k=5):
        return self._answer(
            'text_search',
            query,
            lambda: [
                Passage(f'Title {i} of {query}', f'{query} is number {i}. <|im_end|>', 1.0)
                for i in range(top_k)
            ],
        )

    def image_search(self, sha256, top_k=5):
        def make():
            picture = self._open(sha256)
            return [
                Match(f'Match {i}', self._add(picture.resize((56, 28 * (i + 1)))), 1.0)
                for i in range(top_k)
            ]

        return self._answer('image_search', sha256, make)

    def crop(self, sha256, bbox):
        def make():
            picture = self._open(sha256)
            x0, y0, x1, y1 = (round(v * side) for v, side in zip(bbox, picture.size * 2))
            return self._add(picture.crop((x0, y0, x1, y1)))

        return self._answer('crop', sha256, make)

    def health(self):
        return self._answer(
            'health',
            '',
            lambda: {'ready': True, 'backends': {'text_search': 'bm25', 'crop': 'local'}},
        )

    def judge(self, question, references, response, images=()):
        return self._answer('judge', question, lambda: response in references)


DOWN = ToolFailure('unavailable', 'the tool is down')
