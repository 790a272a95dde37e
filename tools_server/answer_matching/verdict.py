"""The decision itself: whether a response is right by its references."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools_server.answer_matching.gold import gold_letters
from tools_server.answer_matching.letters import chosen_letter
from tools_server.answer_matching.phrases import without_answer_is
from tools_server.answer_matching.text import answer_text, same_answer

_LETTER = re.compile(r'[(\[]?([A-Z])[)\].:]*')


def is_right(
    question: str, references: Sequence[str], response: str, choices: Sequence[str]
) -> bool:
    """Whether `response` is sure to be one of the references.

    Args:
        question: what was asked.
        references: right answers; with choices, their letters or texts.
        response: the answer to judge.
        choices: the options A, B, … in order; empty for an open question. Without them a reference
            that is one capital letter may still be an option's, and 'B.' or 'The answer is B' are
            right for 'B'.
    """
    if choices:
        chosen = chosen_letter(response, choices)
        return chosen is not None and chosen in gold_letters(references, choices)
    response = without_answer_is(answer_text(response))
    for reference in references:
        letter = _LETTER.fullmatch(reference.strip())
        if letter and chosen_letter(response, ()) == letter.group(1):
            return True
        if same_answer(response, reference, question):
            return True
    return False
