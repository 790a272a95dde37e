r"""Pixel-Reasoner's warm start: questions about fine print in pictures, of which the cold start mines the hard ones.

Layout, as public users of the set show it (https://huggingface.co/datasets/TIGER-Lab/PixelReasoner-SFT-Data):
release.json, a list of {qid, message_list}, beside images/ of images.zip. message_list holds chat turns, each
with a list of {text}, {image} and {video} parts; the first user turn asks, and the last assistant turn ends with
\boxed{answer}. We take the question and that answer, and not the trajectory, which calls tools by other names.
Whether rows have an answer of their own we could not confirm: 'answer' or 'ground_truth' goes first where it
is there. The instructions about tools in a question are cut. Questions about videos are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published.fields import (
    LeftOut,
    answer_texts,
    images_of,
    with_options,
    without_placeholders,
)
from sensesearch_jax.data.published.set_base import PublishedSet, Split
from sensesearch_jax.data.published.tables import Row

_INSTRUCTIONS = re.compile(r'\s*(?:Guidelines:|Determine if it is)\s.*', re.DOTALL)


class PixelReasoner(PublishedSet):
    """Pixel-Reasoner's warm start: questions about small things in pictures."""

    name = 'pixel_reasoner'
    home = 'https://huggingface.co/datasets/TIGER-Lab/PixelReasoner-SFT-Data'
    splits = {'train': Split(('release.json', 'release*.parquet', 'data/train-*.parquet'), 7850)}
    columns = ('message_list',)
    optional = ('qid', 'answer', 'ground_truth')

    @classmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row."""
        turns = row['message_list'] if isinstance(row['message_list'], list) else []
        asked = _parts(next((t for t in turns if t.get('role') == 'user'), {}))
        if any(part.get('video') for part in asked):
            raise LeftOut('video', 'it is about a video')
        question = '\n'.join(str(part['text']) for part in asked if part.get('text'))
        given = answer_texts(row.get('answer'), row.get('ground_truth'))
        return with_options(
            {
                'id': row.get('qid') or place,
                'question': _INSTRUCTIONS.sub('', without_placeholders(question)),
                'images': images_of([p['image'] for p in asked if p.get('image')], file.parent),
                'answers': [boxed(text) or text for text in given] or [_last_answer(turns)],
            }
        )


def boxed(text: str) -> str:
    r"""The content of a text's last \boxed{…}, braces within it included; '' without one."""
    start = text.rfind(r'\boxed{')
    if start < 0:
        return ''
    depth, begin = 1, start + len(r'\boxed{')
    for end in range(begin, len(text)):
        depth += {'{': 1, '}': -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end].strip()
    return ''


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get('content')
    if isinstance(content, str):
        return [{'text': content}]
    return [part for part in content or [] if isinstance(part, Mapping)]


def _last_answer(turns: list[Mapping[str, Any]]) -> str:
    for turn in reversed(turns):
        if turn.get('role') == 'assistant':
            if answer := boxed('\n'.join(str(p.get('text') or '') for p in _parts(turn))):
                return answer
            break
    raise BadRecord('no right answer', r'its last turn has no \boxed{answer}')
