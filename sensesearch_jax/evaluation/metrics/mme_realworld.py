"""The letter that an answer to MME-RealWorld names, and its two averages.

Source: yfzhang114/MME-RealWorld, evaluation/eval_your_results.py (arXiv 2408.13257). The first
capital A to E counts, wherever it stands; without one, the first option whose line '(A) text' holds
the whole answer. So an answer without a word names A. Avg is the mean over the questions, Avg-C that
over the categories' means.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

# Two of the script's phrases are joined with their neighbours by missing commas, and never occur.
_LEADS = ('The best answer is', 'The correct answer is', 'The answer is', 'The answer')
_LETTER = re.compile('[A-E]')


def letter(response: str, choices: Sequence[str]) -> str | None:
    """The letter of the option; None for an answer that names none."""
    text = response.strip()
    for lead in _LEADS:
        text = text.replace(lead, '')
    found = _LETTER.search(text)
    if found:
        return found.group()
    if len(text.split()) > 10:
        return None
    lines = (
        (option, f'({option}) {choice}'.lower())
        for option, choice in zip(ascii_uppercase, choices, strict=False)
    )
    return next((option for option, line in lines if text.lower() in line), None)
