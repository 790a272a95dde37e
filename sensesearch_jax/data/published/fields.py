"""Parts of published records: the question in a chat prompt, reference answers, images."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sensesearch_jax.data.images import NoImage, read_image
from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.options import split_options
from tools_server.answer_matching.letters import chosen_letter
from tools_server.failures import ToolError
from tools_server.pictures.convert import read_image as decode
from tools_server.pictures.outline import outline


class LeftOut(BadRecord):
    """A record that is sound but no part of the set as this project asks it, such as one about a video."""


MOST_PATH_CHARS = 1024  # a picture as base64 text is longer
PLACEHOLDERS = '<image>', '<|vision_start|><|image_pad|><|vision_end|>'


def prompt_question(prompt: Any) -> str:
    """The question of a chat prompt: the text of its last user turn, without image placeholders.

    Args:
        prompt: a list of {role, content}; content is a text or a list of parts.

    Raises:
        BadRecord: there is no user turn with a text.
    """
    turns = prompt if isinstance(prompt, list) else []
    for turn in reversed(turns):
        if isinstance(turn, Mapping) and turn.get('role') == 'user':
            return without_placeholders(_content_text(turn.get('content')))
    raise BadRecord('no question', "its 'prompt' has no user turn")


def without_placeholders(text: str) -> str:
    """A question without the marks that say where its images stand."""
    for mark in PLACEHOLDERS:
        text = text.replace(mark, '')
    return text.strip()


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return '\n'.join(
        str(part['text']) for part in parts if isinstance(part, Mapping) and part.get('text')
    )


def answer_texts(*values: Any) -> list[str]:
    """Reference answers in order, none twice, from texts, numbers and lists of them."""
    found: dict[str, None] = {}
    for value in values:
        for one in value if isinstance(value, list | tuple) else [value]:
            if (
                isinstance(one, str | int | float)
                and not isinstance(one, bool)
                and str(one).strip()
            ):
                found.setdefault(str(one).strip())
    return list(found)


def listed(value: Any) -> Any:
    """A list that is written as JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith('['):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def chat_record(row: Mapping[str, Any], place: str, folder: epath.PathLike) -> dict[str, Any]:
    """The plain record of a row in the layout of MMSearch-R1's sets: prompt, images, reward_model.

    Args:
        row: of the file.
        place: of the row, which is its id where it has none.
        folder: paths of images start here.

    Raises:
        BadRecord: it has no question, or an image is not there.
    """
    reward = row['reward_model'] or {}
    return {
        'id': row.get('data_id') or place,
        'question': prompt_question(row['prompt']),
        'images': images_of(row['images'], folder),
        'answers': answer_texts(
            reward.get('ground_truth'), listed(reward.get('candidate_answers'))
        ),
        'category': row.get('category') or '',
    }


def images_of(
    value: Any, folder: epath.PathLike, *, inside: tuple[str, ...] = ('',)
) -> list[str | bytes]:
    """Images of a record: the path of each, or its bytes.

    Args:
        value: an image or a list of them, each a path, bytes, base64 text, or {'bytes', 'path'}.
        folder: paths start here.
        inside: folders within it that they may start from as well, or that may hold the files by their
            names alone; tried in this order.

    Raises:
        BadRecord: an image is not there.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise BadRecord('missing image', 'it has no image')
    return [_image(one, epath.Path(folder), inside) for one in values]


def _image(value: Any, folder: epath.Path, inside: tuple[str, ...]) -> str | bytes:
    if isinstance(value, Mapping):
        value = value.get('bytes') or value.get('path') or value.get('image')
    if isinstance(value, bytes | bytearray | memoryview) and value:
        return bytes(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord('missing image', 'it has no image')
    if len(value) >= MOST_PATH_CHARS:
        return base64_image(value)
    name = value.replace('\\', '/').rpartition('/')[2]
    for path in (
        *(folder / part / value for part in inside),
        *(folder / part / name for part in inside),
    ):
        if path.is_file():
            return str(path)
    raise BadRecord('missing image', f'there is no image file {folder / inside[0] / value}')


def base64_image(value: str) -> bytes:
    """The bytes of an image given as base64 text, of a data URL as well.

    Raises:
        BadRecord: it is no base64 text.
    """
    text = value.split(',', 1)[1] if value.startswith('data:') and ',' in value else value
    try:
        return base64.b64decode(text.replace('\n', ''), validate=True)
    except (binascii.Error, ValueError):
        raise BadRecord(
            'corrupt image', f'its image {value[:40]!r} is neither a file nor base64'
        ) from None


def with_options(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an open set, as multiple choice where its question lists options and its answer is one of them."""
    question, options = split_options(record['question'])
    if not options or not record['answers']:
        return record
    answer = record['answers'][0]
    if chosen_letter(answer, options) is None:
        return record
    return record | {
        'question': question,
        'choices': options,
        'answers': [answer],
        'reward': 'letter',
    }


def image_file(image: str | bytes) -> bytes:
    """The file of an image, sound as far as can be told without decoding a JPEG or PNG.

    Args:
        image: a reference, or the file itself.

    Raises:
        BadRecord: there is none, or it is cut off or no image at all.
    """
    try:
        data = read_image(image) if isinstance(image, str) else image
    except NoImage as error:
        raise BadRecord('missing image', str(error)) from None
    if outline(data) is None:
        try:
            decode(data, None)
        except ToolError as error:
            raise BadRecord('corrupt image', error.message) from None
    return data


def one_of(value: Any, allowed: Sequence[str], column: str) -> str:
    """A text that is one of a few, or ''.

    Args:
        value: of the column.
        allowed: values that the set has.
        column: its name, for the message.

    Raises:
        BadRecord: it is another value.
    """
    if value in (None, ''):
        return ''
    if value not in allowed:
        raise BadRecord(
            f'unknown {column}', f'its {column!r} is {value!r}, not one of {list(allowed)}'
        )
    return str(value)
