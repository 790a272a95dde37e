"""Flags from a grammar: a field of stripes, a cross or triangles, and charges on it: discs, stars,
crescents, suns, cantons and emblems.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

SIZE = (360, 270)  # pixels, as the flags of the data folder
TIMES = 2  # drawn larger and shrunk, for smooth edges
COLOURS = (
    (206, 17, 38), (222, 41, 16), (0, 56, 168), (0, 35, 102), (0, 122, 61), (0, 158, 73),
    (255, 255, 255), (255, 209, 0), (252, 221, 9), (0, 0, 0), (255, 130, 0), (0, 156, 222),
    (116, 172, 223), (122, 38, 58), (130, 84, 40), (96, 60, 140), (20, 90, 70), (238, 230, 200),
)  # fmt: skip
FAVOURED = 10  # of them are drawn twice as often as the others
APART = 90  # least distance between colours that touch

Canvas = UInt8[np.ndarray, 'height width 3']


class _Painter:
    """Draws one flag on a canvas of `SIZE` times `TIMES`."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.w, self.h = SIZE[0] * TIMES, SIZE[1] * TIMES
        self.canvas = np.zeros((self.h, self.w, 3), np.uint8)
        self.used: list[tuple[int, int, int]] = []

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, some):
        return some[self.rng.integers(len(some))]

    def colour(self, *beside: tuple[int, int, int]) -> tuple[int, int, int]:
        """A colour unlike those beside it, as often as not one that the flag has already."""
        while True:
            fresh = not self.used or self.chance(0.6)
            bound = FAVOURED if self.chance(0.5) else len(COLOURS)
            base = COLOURS[self.rng.integers(bound)] if fresh else self.pick(self.used)
            shade = self.rng.integers(-14, 15, 3) if fresh else np.zeros(3, int)
            found = tuple(int(v) for v in np.clip(np.array(base) + shade, 0, 255))
            if all(np.linalg.norm(np.subtract(found, other)) >= APART for other in beside):
                self.used.append(found)
                return found

    def polygon(self, points, colour) -> None:
        """Fills a polygon of points [n, 2] in pixels."""
        cv2.fillPoly(self.canvas, [np.rint(points).astype(np.int32)], colour, cv2.LINE_AA)

    def field(self) -> tuple[int, int, int]:
        """The ground of the flag; its colour where charges go."""
        kinds = (
            self.rows,
            self.columns,
            self.plain,
            self.cross,
            self.diagonal,
            self.quarters,
            self.many,
        )
        shares = (0.28, 0.2, 0.14, 0.12, 0.12, 0.06, 0.08)
        return kinds[self.rng.choice(len(kinds), p=shares)]()

    def plain(self):
        ground = self.colour()
        self.canvas[:] = ground
        return ground

    def rows(self):
        return self._stripes(0)

    def columns(self):
        return self._stripes(1)

    def _stripes(self, axis: int):
        count = int(self.rng.choice([2, 3, 4, 5], p=[0.25, 0.5, 0.1, 0.15]))
        widths = np.ones(count) if self.chance(0.55) else self.rng.integers(1, 5, count)
        edges = np.rint(
            np.concatenate([[0], np.cumsum(widths)]) / np.sum(widths) * self.canvas.shape[axis]
        )
        colours = []
        mirrored = count > 2 and self.chance(0.35)
        for i in range(count):
            twin = count - 1 - i
            known = mirrored and twin < i and (not colours or colours[twin] != colours[-1])
            colours.append(colours[twin] if known else self.colour(*colours[-1:]))
        for colour, first, last in zip(colours, edges[:-1].astype(int), edges[1:].astype(int)):
            self.canvas[
                (slice(first, last),) if axis == 0 else (slice(None), slice(first, last))
            ] = colour
        return colours[count // 2]

    def many(self):
        """Five to thirteen stripes in two colours."""
        first = self.colour()
        second = self.colour(first)
        for i, part in enumerate(np.array_split(np.arange(self.h), self.rng.integers(5, 14))):
            self.canvas[part] = (first, second)[i % 2]
        return first

    def cross(self):
        ground = self.plain()
        arm = self.colour(ground)
        width = int(self.h * self.rng.uniform(0.1, 0.24))
        rims = [(width, arm)]
        if self.chance(0.5):
            rims.insert(0, (int(width * self.rng.uniform(1.4, 2)), self.colour(ground, arm)))
        x = int(self.w * self.pick((0.36, 0.5, 0.5)))
        saltire = self.chance(0.35)
        for wide, colour in rims:
            lines = (
                (((0, 0), (self.w, self.h)), ((0, self.h), (self.w, 0)))
                if saltire
                else (
                    ((x, -wide), (x, self.h + wide)),
                    ((-wide, self.h // 2), (self.w + wide, self.h // 2)),
                )
            )
            for start, end in lines:
                cv2.line(self.canvas, start, end, colour, wide, cv2.LINE_AA)
        return arm

    def diagonal(self):
        first = self.plain()
        second = self.colour(first)
        rising = self.chance(0.5)
        corner = (self.w, self.h) if rising else (self.w, 0)
        start, end = ((0, self.h), (self.w, 0)) if rising else ((0, 0), (self.w, self.h))
        self.polygon(np.array([start, corner, end]), second)
        if self.chance(0.7):
            band = self.colour(first, second)
            wide = int(self.h * self.rng.uniform(0.12, 0.3))
            if self.chance(0.5):
                cv2.line(self.canvas, start, end, self.colour(band), int(wide * 1.5), cv2.LINE_AA)
            cv2.line(self.canvas, start, end, band, wide, cv2.LINE_AA)
        return first

    def quarters(self):
        first = self.plain()
        second = self.colour(first)
        across, down = int(self.w * self.rng.uniform(0.35, 0.65)), self.h // 2
        self.canvas[:down, across:] = self.canvas[down:, :across] = second
        if self.chance(0.4):
            self.canvas[down:, across:] = self.colour(second)
        return first

    def over(self, ground) -> None:
        """A triangle at the hoist, a border, a pall, a band at the hoist, or nothing."""
        choice = self.rng.random()
        if choice < 0.22:
            reach = self.w * self.rng.uniform(0.25, 0.6)
            colour = self.colour(ground)
            if self.chance(0.4):
                self.polygon(
                    np.array([[0, 0], [reach * 1.2, self.h / 2], [0, self.h]]), self.colour(colour)
                )
            self.polygon(np.array([[0, 0], [reach, self.h / 2], [0, self.h]]), colour)
        elif choice < 0.3:
            wide = int(self.h * self.rng.uniform(0.05, 0.14))
            cv2.rectangle(
                self.canvas, (0, 0), (self.w - 1, self.h - 1), self.colour(ground), 2 * wide
            )
        elif choice < 0.36:
            colour, wide = self.colour(ground), int(self.h * self.rng.uniform(0.1, 0.2))
            centre = (int(self.w * 0.4), self.h // 2)
            for end in ((0, 0), (0, self.h), (self.w, self.h // 2)):
                cv2.line(self.canvas, end, centre, colour, wide, cv2.LINE_AA)
        elif choice < 0.46:
            self.canvas[:, : int(self.w * self.rng.uniform(0.15, 0.35))] = self.colour(ground)

    def star(self, x, y, radius, colour, points=5, inner=0.4) -> None:
        """A star around (x, y), in pixels.

        Args:
            x, y: its centre.
            radius: of its points.
            colour: of it.
            points: how many.
            inner: radius of its notches by that of its points.
        """
        angles = np.arange(2 * points) * np.pi / points - np.pi / 2
        radii = np.where(np.arange(2 * points) % 2, radius * inner, radius)
        self.polygon(np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1), colour)

    def disc(self, x, y, radius, colour) -> None:
        cv2.circle(self.canvas, (round(x), round(y)), round(radius), colour, -1, cv2.LINE_AA)

    def charge(self, x, y, radius, ground) -> None:
        """One charge around (x, y).

        Args:
            x, y: its centre, in pixels.
            radius: of it.
            ground: colour behind it.
        """
        colour = self.colour(ground)
        kind = self.rng.choice(6, p=[0.27, 0.17, 0.13, 0.13, 0.2, 0.1])
        if kind == 0:
            self.star(
                x, y, radius, colour, int(self.rng.integers(4, 9)), self.rng.uniform(0.35, 0.6)
            )
        elif kind == 1:
            self.disc(x, y, radius * 0.85, colour)
            if self.chance(0.4):
                self.charge(x, y, radius * 0.55, colour)
        elif kind == 2:
            self.disc(x, y, radius * 0.85, colour)
            turn = self.rng.uniform(0, 2 * np.pi)
            move = radius * 0.28
            self.disc(x + move * np.cos(turn), y + move * np.sin(turn), radius * 0.68, ground)
            if self.chance(0.6):
                self.star(x + move * np.cos(turn), y + move * np.sin(turn), radius * 0.4, colour)
        elif kind == 3:
            self.star(x, y, radius, colour, int(self.rng.integers(10, 24)), 0.62)
            self.disc(x, y, radius * 0.5, self.colour(colour) if self.chance(0.5) else colour)
        elif kind == 4:
            self.emblem(x, y, radius, colour)
        else:
            cv2.circle(
                self.canvas,
                (round(x), round(y)),
                round(radius * 0.8),
                colour,
                round(radius * 0.22),
                cv2.LINE_AA,
            )

    def emblem(self, x, y, radius, ground) -> None:
        """A shield or disc with a pattern that is the same left and right.

        Args:
            x, y: its centre, in pixels.
            radius: of it.
            ground: its own colour.
        """
        cells = int(self.rng.integers(5, 9))
        half = self.rng.integers(0, 3, (cells, (cells + 1) // 2))
        pattern = np.concatenate([half, half[:, : cells // 2][:, ::-1]], 1)
        inks = [None, self.colour(ground), self.colour(ground)]
        shield = np.array(
            [[-1, -1], [1, -1], [1, 0.2], [0.6, 0.8], [0, 1.15], [-0.6, 0.8], [-1, 0.2]]
        )
        if self.chance(0.6):
            self.polygon(shield * radius * 0.9 + [x, y], ground)
        else:
            self.disc(x, y, radius, ground)
        side = 1.3 * radius / cells
        for row, column in np.argwhere(pattern):
            left, top = x + (column - cells / 2) * side, y + (row - cells / 2) * side
            box = np.array(
                [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
            )
            self.polygon(box, inks[pattern[row, column]])

    def canton(self) -> None:
        """A part at the upper hoist with charges of its own."""
        wide = int(self.w * self.rng.uniform(0.3, 0.5))
        high = int(self.h * self.rng.uniform(0.35, 0.55))
        beside = tuple(int(v) for v in self.canvas[high - 1, wide - 1])
        ground = self.colour(beside)
        self.canvas[:high, :wide] = ground
        if self.chance(0.3):
            arm = self.colour(ground)
            thick = max(6, high // 6)
            cv2.line(self.canvas, (wide // 2, 0), (wide // 2, high), arm, thick)
            cv2.line(self.canvas, (0, high // 2), (wide, high // 2), arm, thick)
        elif self.chance(0.5):
            self.charge(wide / 2, high / 2, high * 0.34, ground)
        else:
            colour, rows, columns = self.colour(ground), *self.rng.integers(2, 5, 2)
            for row in range(rows):
                for column in range(columns):
                    place = (column + 0.5) * wide / columns, (row + 0.5) * high / rows
                    self.star(*place, 0.36 * min(high / rows, wide / columns), colour)

    def charges(self, ground) -> None:
        """One charge, several in a row or ring, or none."""
        choice = self.rng.random()
        x = self.w * self.pick((0.5, 0.5, 0.3, 0.68))
        y = self.h / 2
        if choice < 0.5:
            self.charge(x, y, self.h * self.rng.uniform(0.14, 0.34), self._at(x, y))
        elif choice < 0.64:
            count, ring = int(self.rng.integers(3, 10)), self.chance(0.6)
            colour = self.colour(self._at(x, y))
            for i in range(count):
                turn = 2 * np.pi * i / count - np.pi / 2
                place = (
                    (x + self.h * 0.28 * np.cos(turn), y + self.h * 0.28 * np.sin(turn))
                    if ring
                    else ((i + 0.5) * self.w / count, y)
                )
                self.star(*place, self.h * (0.07 if ring else 0.09), colour)
        elif choice < 0.8:
            self.canton()

    def _at(self, x, y) -> tuple[int, int, int]:
        return tuple(int(v) for v in self.canvas[min(int(y), self.h - 1), min(int(x), self.w - 1)])


def draw_flag(rng: np.random.Generator) -> Canvas:
    """A flag of 360 × 270 pixels, RGB."""
    painter = _Painter(rng)
    ground = painter.field()
    painter.over(ground)
    painter.charges(ground)
    return cv2.resize(painter.canvas, SIZE, interpolation=cv2.INTER_AREA)
