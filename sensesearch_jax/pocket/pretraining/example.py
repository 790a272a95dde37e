"""Training examples of the base policy: dialogues about a page or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

Parts = tuple[str | Image.Image, ...]


class Turn(NamedTuple):
    """A turn of the assistant and what follows it.

    Attributes:
        text: of the turn.
        given: its beginning that is not to be imitated, such as the name of a tool that nothing
            said before asks for; all of it where the turn is a mistake.
        skipped: a later stretch of it that is not to be imitated either.
        after: text and pictures that follow; none at the end.
        of_tool: whether they are a tool's response, else the user's next words.
    """

    text: str
    given: str = ''
    skipped: str = ''
    after: Parts = ()
    of_tool: bool = False


class Dialogue(NamedTuple):
    """The user's first words and the turns."""

    question: str
    turns: list[Turn]


class Example(NamedTuple):
    """A picture (or None) or page, and what is said about it.

    Attributes:
        system: the system prompt.
        picture: None for a page.
        text: the page, '' for a picture.
        pairs: questions with their answers: of a page one after another, of a picture each behind
            it anew.
        boxes: every object's box in the view, [n, 4] in fractions of it.
        attributes: what each looks like, a number of ATTRIBUTES or −1 if nothing is clear, [n].
        dialogues: in the place of pairs, each behind page or picture anew.
    """

    system: str
    picture: Image.Image | None
    text: str
    pairs: list[tuple[str, str]]
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    attributes: np.ndarray = np.zeros(0, np.int32)
    dialogues: Sequence[Dialogue] = ()

    def spoken(self) -> Sequence[Dialogue]:
        """The dialogues, or the pairs as such."""
        if self.dialogues:
            return self.dialogues
        if self.picture is not None:
            return [Dialogue(question, [Turn(answer)]) for question, answer in self.pairs]
        following = [(question,) for question, _ in self.pairs[1:]] + [()]
        turns = [Turn(answer, after=after) for (_, answer), after in zip(self.pairs, following)]
        return [Dialogue(self.pairs[0][0], turns)]
