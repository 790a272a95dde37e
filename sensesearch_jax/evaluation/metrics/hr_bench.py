"""The letter that an answer to HR-Bench names, as VLMEvalKit reads it without a model's help.

Source: open-compass/VLMEvalKit, vlmeval/utils/matching_util.py (can_infer), which its HR-Bench uses;
the authors' own script asks a language model whether the answer is right, and VLMEvalKit asks one
where this rule finds nothing. We do not: what the rule cannot read is wrong. That the letter must be
among the last words is so in VLMEvalKit, and not in lmms-eval's copy of the rule.

The score is the mean over the four orders of the options of the mean over the questions.
"""

from collections.abc import Sequence
from string import ascii_uppercase

_SEPARATORS = str.maketrans(dict.fromkeys('.()[],:;!*#{}', ' '))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    'Cannot determine the answer',
)
NOTHING = 'Z'  # the letter of an answer that declines
_LAST_WORDS = 4  # among which the letter must be


def letter(response: str, choices: Sequence[str]) -> str | None:
    """The letter of the option; 'Z' for an answer that declines, None for one that cannot be read.

    Exactly one option's letter must be a word of the answer, and stand among its last four; failing
    that, the answer must hold exactly one option's text and be at most twice as long as all options
    together.
    """
    options = dict(zip(ascii_uppercase, choices, strict=False))
    return _named(response, options) or _by_text(response, options)


def _named(response: str, options: dict[str, str]) -> str | None:
    if any(refusal in response for refusal in _REFUSALS):
        return NOTHING
    found = response.translate(_SEPARATORS).split()
    named = [option for option in options if option in found]
    if len(named) == 1 and found.index(named[0]) >= len(found) - _LAST_WORDS:
        return named[0]
    return NOTHING if not named and NOTHING in found else None


def _by_text(response: str, options: dict[str, str]) -> str | None:
    if len(response) > 2 * sum(map(len, options.values())):
        return None
    text = response.lower()
    held = [option for option, words in options.items() if words.lower() in text]
    return held[0] if len(held) == 1 else None
