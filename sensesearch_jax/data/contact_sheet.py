"""A picture of a few questions: the images, the box of the object asked for, question and answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sensesearch_jax.agent.trajectory import Question

COLUMNS = 4
WIDTH, PICTURE, MARGIN = 480, 300, 12  # pixels of a cell, of the picture in it, around both
LINE, FONT = 19, 15
# With most of the world's writing first; Pillow's own font has Latin letters alone.
FONTS = 'NotoSansCJK-Regular.ttc', 'NotoSans-Regular.ttf', 'DejaVuSans.ttf'
INK, GREY, RED, PAPER = '#1a1a1a', '#6a6a6a', '#d81b60', '#ffffff'


def contact_sheet(
    shown: Sequence[tuple[Question, Sequence[Image.Image]]], path: Path | str
) -> None:
    """Draws questions in a grid and writes it as a PNG.

    Args:
        shown: each question with its images, upright.
        path: of the file.
    """
    columns = min(COLUMNS, max(1, len(shown)))
    rows = [shown[first : first + columns] for first in range(0, len(shown), columns)]
    strips = [_row(row, columns) for row in rows]
    sheet = Image.new('RGB', (columns * WIDTH, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path, 'PNG')


def _row(row: Sequence[tuple[Question, Sequence[Image.Image]]], columns: int) -> Image.Image:
    """Cells side by side, as high as the largest of them."""
    texts = [_lines(question) for question, _ in row]
    height = PICTURE + MARGIN + LINE * max(map(len, texts)) + MARGIN
    strip = Image.new('RGB', (columns * WIDTH, height), PAPER)
    draw, font, lowest = ImageDraw.Draw(strip), _font(FONT), 0
    for number, ((question, images), lines) in enumerate(zip(row, texts)):
        bottom = _draw_images(strip, question, images, number * WIDTH)
        lowest = max(lowest, bottom + MARGIN + LINE * len(lines))
        for index, (line, colour) in enumerate(lines):
            place = number * WIDTH + MARGIN, bottom + MARGIN // 2 + index * LINE
            draw.text(place, line, colour, font)
    return strip.crop((0, 0, strip.width, lowest))


def _draw_images(
    strip: Image.Image, question: Question, images: Sequence[Image.Image], left: int
) -> int:
    """The images side by side, the first with the box that the set's truth gives.

    Returns the row of pixels below them.
    """
    draw, bottom = ImageDraw.Draw(strip), MARGIN
    if not images:
        draw.text((left + MARGIN, MARGIN), 'no image', GREY, _font(FONT))
        return bottom + LINE
    width = (WIDTH - MARGIN) // len(images) - MARGIN
    for number, image in enumerate(images):
        scale = min(width / image.width, (PICTURE - MARGIN) / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        corner = left + MARGIN + number * (width + MARGIN)
        strip.paste(
            image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), (corner, MARGIN)
        )
        bottom = max(bottom, MARGIN + size[1])
        box = question.truth.get('box')
        if number == 0 and box:
            x0, x1 = (corner + value * size[0] for value in (box[0], box[2]))
            y0, y1 = (MARGIN + value * size[1] for value in (box[1], box[3]))
            around = (x0 - 4, y0 - 4, max(x1, x0) + 4, max(y1, y0) + 4)
            draw.rectangle(around, outline=RED, width=3)
    return bottom


def _lines(question: Question) -> list[tuple[str, str]]:
    """Id, category and difficulty, question, options and answers, each line with its colour."""
    about = ' · '.join(filter(None, (question.id, question.category, question.difficulty)))
    options = [f'{chr(ord("A") + i)}. {choice}' for i, choice in enumerate(question.choices)]
    answers = '= ' + ' | '.join(question.answers)
    parts = [(about, GREY, 1), (question.text, INK, 4), ('  '.join(options), INK, 3)]
    return [
        (line, colour)
        for text, colour, most in [*parts, (answers, RED, 2)]
        for line in _wrapped(text, most)
    ]


def _wrapped(text: str, most: int) -> list[str]:
    """Lines that fit into a cell, at most `most`; the last says whether more follow."""
    font, room = _font(FONT), WIDTH - 2 * MARGIN
    text = ' '.join(text.split())[:1000]
    letters = max(8, int(room / max(font.getlength(text) / max(len(text), 1), 1)))
    while letters > 8 and any(font.getlength(part) > room for part in textwrap.wrap(text, letters)):
        letters -= 2
    return textwrap.wrap(text, letters, max_lines=most, placeholder=' …')


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
