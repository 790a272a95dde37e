"""Back ends of the tools: one small interface per tool, several ways to answer it.

A back end is called from several threads at once, keeps no state of a call, and raises `ToolError` when it
has no answer. Its `name` appears in every answer.
"""

from __future__ import annotations

from typing import Protocol

from tools_server.images import StoredImage
from tools_server.schemas import Match, Passage


class TextSearch(Protocol):
    """Finds passages for a query of any wording."""

    name: str

    def search(self, query: str, top_k: int) -> list[Passage]:
        """At most `top_k` passages, best first; none is an answer too."""


class ImageSearch(Protocol):
    """Finds known pictures that look like (a part of) a picture."""

    name: str

    def search(self, image: StoredImage, top_k: int) -> list[Match]:
        """At most `top_k` matches, best first; empty when nothing is alike."""


class Judge(Protocol):
    """Says whether a response answers a question as the references do."""

    name: str

    def judge(
        self, question: str, references: list[str], response: str, image: StoredImage | None
    ) -> bool: ...


class Summariser(Protocol):
    """Shortens a text to what matters for a query."""

    name: str

    def summarise(self, query: str, text: str, max_chars: int) -> str: ...
