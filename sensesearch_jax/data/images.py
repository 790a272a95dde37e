"""Image references of questions: where an image's bytes are, and how they are read when needed.

A reference is a path, an address such as gs://bucket/picture.jpg, 'sha256:' and the content hash of
an image that the tool server has, or a place within a file that holds many images:
FILE.parquet#column=image&row=12&item=0, FILE.arrow#column=image&row=12&item=0,
FILE.jsonl#column=image&offset=9000&item=0, or DIRECTORY#split=test&row=12&item=0 of a
tensorflow-datasets directory. So no image is in memory before its turn.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.data import columns

HASH = 'sha256:'
MOST_PATH_CHARS = 4096  # longer texts are base64


class NoImage(Exception):
    """An image that cannot be read; its text says why."""


def place(file: epath.PathLike, **where: str | int) -> str:
    """The reference of an image within a file or directory.

    Args:
        file: a Parquet, Arrow or JSONL file, or a tensorflow-datasets directory.
        where: column or split, row or offset, and item, as in the module's docstring.
    """
    return f'{file}#{urllib.parse.urlencode(where)}'


def upload_all(client: ToolClient, references: Sequence[str]) -> list[ImageRef] | ToolFailure:
    """The images of a question on the tool server, in order, or why one of them is not there."""
    images = []
    for reference in references:
        image = _upload(client, reference)
        if isinstance(image, ToolFailure):
            return image
        images.append(image)
    return images


def read_image(reference: str) -> bytes:
    """The image file of a reference that is no content hash.

    Raises:
        NoImage: there is none, or it cannot be read.
    """
    file, _, where = reference.partition('#')
    try:
        if not where or epath.Path(reference).is_file():
            return epath.Path(reference).read_bytes()
        fields = {name: values[0] for name, values in urllib.parse.parse_qs(where).items()}
        item = int(fields['item'])
        if 'offset' in fields:
            value = columns.line_at(file, int(fields['offset']))[fields['column']]
        elif 'split' in fields:
            value = columns.tfds_source(file, fields['split'])[int(fields['row'])]['images']
        else:
            value = columns.cell(file, fields['column'], int(fields['row']))
        return image_bytes(value, item, epath.Path(file).parent)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise NoImage(f'{reference} cannot be read: {_said(error)}') from error


def image_bytes(value: Any, item: int, folder: epath.PathLike) -> bytes:
    """The image of a table's cell, in each of the forms that published sets use.

    Args:
        value: bytes, base64 text, a path, {'bytes': …, 'path': …}, or a list of these.
        item: which of a list.
        folder: relative paths start here.

    Raises:
        ValueError: no image is there.
    """
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes | bytearray):
        value = value[item]
    if isinstance(value, dict):
        value = value.get('bytes') or value.get('path')
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and value:
        if len(value) < MOST_PATH_CHARS and (path := epath.Path(folder) / value).is_file():
            return path.read_bytes()
        try:
            return base64.b64decode(value.rpartition(',')[2], validate=True)  # of a data: address
        except binascii.Error:
            raise ValueError(f'{value[:80]!r} is neither a file nor base64') from None
    raise ValueError('the cell holds no image')


def _upload(client: ToolClient, reference: str) -> ImageRef | ToolFailure:
    if reference.startswith(HASH):
        data = client.image(reference.removeprefix(HASH))
        return data if isinstance(data, ToolFailure) else client.upload(data)
    if '#' not in reference and '://' not in reference:
        return client.upload(reference)
    try:
        data = read_image(reference)
    except NoImage as error:
        return ToolFailure('caller', str(error))
    return client.upload(data)


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f'{type(error).__name__}: {error}'
