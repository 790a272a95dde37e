"""One training example of the base policy: a row of a group batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image


class Example(NamedTuple):
    """A picture (or None) or page, and questions with their answers.

    Attributes:
        system: the system prompt.
        picture: None for a page.
        text: the page, '' for a picture.
        pairs: questions with their answers.
        boxes: every object's box in the view, [n, 4] in fractions of it.
        attributes: what each looks like, a number of ATTRIBUTES or −1 if nothing is clear, [n].
    """

    system: str
    picture: Image.Image | None
    text: str
    pairs: list[tuple[str, str]]
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    attributes: np.ndarray = np.zeros(0, np.int32)
