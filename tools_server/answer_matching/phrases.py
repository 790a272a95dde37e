"""Phrases that responses put before the answer itself."""

from __future__ import annotations

import re

_SO = r'(?:(?:so|thus|hence|therefore),? )?'
_ANSWER = r'(?:(?:the|my) )?(?:(?:final|correct|best|right|most likely) )?'
_OPEN = re.compile(rf'{_SO}{_ANSWER}answer(?: is:?| would be|:) ?(?=\S)', re.IGNORECASE)
_CHOICE = re.compile(
    rf"{_SO}(?:(?:i (?:think|believe|guess|choose|pick|select|say|would (?:say|choose))|i'd say)(?: that)?[:,]? )?"
    rf"(?:(?:it|this|that)(?:'s| is) |"
    rf'{_ANSWER}(?:answer|option|choice)(?: (?:letter|option|choice))?(?: is:?| would be|:)? )?',
    re.IGNORECASE,
)


def without_answer_is(text: str) -> str:
    """A cleaned text without 'The answer is' before it."""
    return _OPEN.sub('', text, count=1) if _OPEN.match(text) else text


def without_lead(text: str) -> str:
    """A multiple-choice answer's cleaned text without its lead, 'I think the best option is'."""
    for _ in range(2):  # 'the answer is' and then 'option'
        text = text[_CHOICE.match(text).end() :]
    return text
