"""Judging by rules: the comparison of answers that training rewards use too.

No network, and no persuading it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools_server.answer_matching.verdict import is_right
from tools_server.images import StoredImage


class RuleJudge:
    """Right when the response is sure to be one of the references; see
    `answer_matching.verdict.is_right`.
    """

    name = 'rules'
    services = ()

    def judge(
        self,
        question: str,
        references: list[str],
        response: str,
        images: Sequence[StoredImage],
        choices: Sequence[str] = (),
    ) -> bool:
        """See `backends.Judge.judge`."""
        return is_right(question, references, response, choices)
