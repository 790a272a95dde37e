"""The letter that an answer to V* names, as lmms-eval reads it.

Source: EvolvingLMMs-Lab/lmms-eval, tasks/vstar_bench/utils.py (extract_answer_letter). The authors'
own script (penghao-wu/vstar) has no answer to read: it compares the likelihoods of the options.

The answer is read in capitals, and the first rule that finds something decides: any text that begins
with A to D names that letter, whatever word it begins.
"""

import re

_RULES = (
    re.compile(r'^[A-D]'),
    re.compile(r'(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+[A-D]'),
    re.compile(r'\([A-D]\)'),
    re.compile(r'[A-D]\s*[.)\]]'),
    re.compile(r'(?:^|\s)[A-D](?:\s|$)'),
)
_LETTER = re.compile(r'[A-D]')


def letter(response: str) -> str | None:
    """The letter of the option; None for an answer that names none."""
    text = response.strip().upper()
    for rule in _RULES:
        found = rule.search(text)
        if found:
            return _of(found.group())
    letters = _LETTER.findall(text)
    return letters[0] if len(letters) == 1 else None


def _of(phrase: str) -> str:
    """The letter in a phrase that a rule has found: in 'ANSWER IS B' the last one."""
    return _LETTER.findall(phrase)[-1]
