"""Back ends of the tools: one small interface per tool, several ways to answer it.

A back end is called from several threads at once, keeps no state of a call, and raises `ToolError`
when it has no answer. It works until the current deadline (`limits.deadline`) and no longer. Its
`name` appears in every answer; `services` lists the services elsewhere that it asks, for the
statistics. One that answers from files of its own has a `fingerprint` of what is in them. An answer
that lacks something is still one; what it lacks is told to `degraded.note`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tools_server.images import StoredImage
from tools_server.schemas import Match, Passage

if TYPE_CHECKING:
    from tools_server.backends.http_service import Service


class TextSearch(Protocol):
    """Finds passages for a query of any wording."""

    name: str
    services: Sequence[Service]

    def search(self, query: str, top_k: int) -> list[Passage]:
        """At most `top_k` passages, best first; none is an answer too.

        Raises:
            ToolError: 'refused', 'timeout' or 'unavailable'; never for a strange query.
        """


class ImageSearch(Protocol):
    """Finds known pictures that look like (a part of) a picture."""

    name: str
    services: Sequence[Service]

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """At most `top_k` matches, best first; empty when nothing is alike.

        Raises:
            ToolError: 'refused', 'timeout' or 'unavailable'.
        """


class Judge(Protocol):
    """Says whether a response answers a question as the references do."""

    name: str
    services: Sequence[Service]

    def judge(
        self,
        question: str,
        references: list[str],
        response: str,
        images: Sequence[StoredImage],
        choices: Sequence[str] = (),
    ) -> bool:
        """Whether the response answers the question.

        Args:
            question: as it was asked.
            references: right answers; with `choices` their letters or texts.
            response: the text that is judged.
            images: of the question; none where the judge takes none.
            choices: options A, B, … in order; with them only the option that is named counts.

        Raises:
            ToolError: 'refused', 'timeout' or 'unavailable'; what is no clear verdict is none.
        """


class Summariser(Protocol):
    """Shortens a text to what matters for a query."""

    name: str

    def summarise(self, query: str, text: str, max_chars: int) -> str:
        """The part of a text that is about the query.

        Args:
            query: of the search.
            text: a page's.
            max_chars: longest summary, in characters.

        Raises:
            ToolError: 'refused', 'timeout' or 'unavailable'.
        """
