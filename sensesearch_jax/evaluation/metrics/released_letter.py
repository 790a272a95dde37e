"""The letter that an answer names, as the paper's released evaluation reads it.

Source: OpenSenseNova/SenseNova-MARS, inference/eval.py (extract_mcq_answer, within answer tags). It
knows A to D alone, so that MME-RealWorld's fifth option is never read. The last letter named counts.
"""

import re

_WITH_MARK = re.compile(r'\(([A-D])\)|\[([A-D])\]|(?<![A-Z])([A-D])[.)\]]', re.IGNORECASE)
_ALONE = re.compile(r'(?<![A-Za-z])[A-D](?![A-Za-z])')


def letter(response: str) -> str | None:
    """The letter of the option; None for an answer that names none.

    A letter with a bracket or a full stop goes before one without, and may be small.
    """
    text = response.strip()
    if len(text) == 1 and text.upper() in 'ABCD':
        return text.upper()
    marked = [next(filter(None, found)) for found in _WITH_MARK.findall(text)]
    if marked:
        return marked[-1].upper()
    alone = _ALONE.findall(text)
    return alone[-1] if alone else None
