"""Composes 4K pictures with small objects, and renders any view of them at any size."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np
from PIL import Image

from sensesearch_jax.pocket.world.files import Entity, PocketFiles

SIZE = (3840, 2160)
RELIEF_SIZE = (10800, 3000)
ALONE_SIDE = 336  # pixels of the longer side of a picture that shows one entity alone
MAX_AREA = 0.048  # of the scene, an object with its frame; questions promise less than 5 %
FLAG_BORDER = 0.03  # of a flag's width, per side: white strip and dark outline
FRAME = 0.09  # of a painting's mean side, per side: frame and mat
WALLS = (
    (226, 220, 208), (196, 203, 196), (176, 190, 203), (214, 196, 180), (150, 158, 150),
    (120, 52, 50), (62, 74, 92), (238, 238, 236),
)  # fmt: skip
FRAMES = (
    (148, 112, 52), (92, 60, 36), (40, 34, 32), (176, 146, 84), (120, 40, 32), (196, 190, 178),
    (70, 84, 70),
)  # fmt: skip
# level -> object width in pixels (a painting's longer side)
SIZES = {1: (380, 620), 2: (200, 400), 3: (90, 220)}
COUNTS = {1: (1, 1), 2: (2, 4), 3: (4, 9)}  # level -> objects in the scene

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Placement:
    """An entity's picture in a scene; `box` is (x0, y0, x1, y1) in scene pixels, without frame."""

    entity: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneSpec:
    """The description of a scene: enough to draw it, and nothing drawn yet.

    `kind` is 'map' (flags on a relief map) or 'wall' (framed paintings); `size` (width, height) in
    pixels. `background` of a map: 'window' [x, y, width, height] in pixels of the relief map; of a
    wall: 'colour' [r, g, b], 'gradient' [across, down] in grey levels from one side to the other,
    'frames' [index of the frame colour per placement].
    """

    kind: str
    size: tuple[int, int]
    background: dict = field(hash=False)
    placements: tuple[Placement, ...]

    def fractions(self, placement: Placement) -> Box:
        """The placement's box as fractions of the scene, (x0, y0, x1, y1)."""
        (width, height), (x0, y0, x1, y1) = self.size, placement.box
        return x0 / width, y0 / height, x1 / width, y1 / height

    def area(self, placement: Placement) -> float:
        """The share of the scene that the placed object covers, its border or frame included."""
        x0, y0, x1, y1 = outer_box(self.kind, placement.box)
        return (x1 - x0) * (y1 - y0) / (self.size[0] * self.size[1])

    def to_json(self) -> dict:
        """A dictionary of JSON types; `from_json` gives an equal spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict) -> 'SceneSpec':
        """Inverse of `to_json`, also after a trip through a JSON file."""
        placements = tuple(
            Placement(item['entity'], tuple(item['box'])) for item in record['placements']
        )
        return cls(record['kind'], tuple(record['size']), record['background'], placements)


def _rim(kind: str, width: float, height: float) -> float:
    """Pixels of border or frame around a picture of this size."""
    return FLAG_BORDER * width if kind == 'map' else FRAME * (width * height) ** 0.5


def outer_box(kind: str, box: Sequence[float]) -> Box:
    """The box with its border or frame."""
    x0, y0, x1, y1 = box
    edge = _rim(kind, x1 - x0, y1 - y0)
    return x0 - edge, y0 - edge, x1 + edge, y1 + edge


def _object_size(kind: str, entity: Entity, length: float) -> tuple[int, int]:
    """Picture (width, height) in pixels of a longer side `length`, smaller for MAX_AREA."""
    width, height = (
        (length, length / entity.aspect) if entity.aspect >= 1 else (length * entity.aspect, length)
    )
    edge = _rim(kind, width, height)
    covered = (width + 2 * edge) * (height + 2 * edge) / (SIZE[0] * SIZE[1])
    shrink = min(1.0, (MAX_AREA / covered) ** 0.5)
    return round(width * shrink), round(height * shrink)


def _scatter(
    rng: np.random.Generator, kind: str, sizes: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]] | None:
    """Boxes at free places, a distance apart; None when some object found no place."""
    boxes = []
    for width, height in sizes:
        edge = round(_rim(kind, width, height)) + 24
        for _ in range(60):
            x0 = int(rng.integers(edge, SIZE[0] - width - edge + 1))
            y0 = int(rng.integers(edge, SIZE[1] - height - edge + 1))
            gap = edge + 40
            if all(
                x0 - gap > b[2]
                or x0 + width + gap < b[0]
                or y0 - gap > b[3]
                or y0 + height + gap < b[1]
                for b in boxes
            ):
                boxes.append((x0, y0, x0 + width, y0 + height))
                break
        else:
            return None
    return boxes


def _hang(
    rng: np.random.Generator, kind: str, sizes: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]] | None:
    """Boxes in loose rows: cells of a grid, some empty, each picture moved a little in its cell."""
    outer = [
        (width + 2 * _rim(kind, width, height), height + 2 * _rim(kind, width, height))
        for width, height in sizes
    ]
    most_rows = max(1, min(3, int(SIZE[1] // (max(height for _, height in outer) + 50))))
    most_columns = max(1, int(SIZE[0] // (max(width for width, _ in outer) + 50)))
    rows = int(rng.integers(1, most_rows + 1))
    columns = int(np.ceil(len(sizes) / rows)) + int(rng.integers(0, 3))
    if columns > most_columns:
        rows, columns = most_rows, most_columns
    if rows * columns < len(sizes):
        return None
    cells = sorted(rng.permutation(rows * columns)[: len(sizes)])
    boxes = []
    for cell, (width, height), (full_width, full_height) in zip(cells, sizes, outer):
        row, column = divmod(int(cell), columns)
        free_x, free_y = SIZE[0] / columns - full_width - 40, SIZE[1] / rows - full_height - 40
        x = (column + 0.5) * SIZE[0] / columns + free_x * rng.uniform(-0.5, 0.5)
        y = (row + 0.5) * SIZE[1] / rows + free_y * rng.uniform(-0.5, 0.5) * (
            0.5 if rows > 1 else 1
        )
        x0, y0 = round(x - width / 2), round(y - height / 2)
        boxes.append((x0, y0, x0 + width, y0 + height))
    return boxes


def sample_scene(
    rng: np.random.Generator,
    entities: Sequence[Entity],
    kind: str,
    count: int,
    sizes: tuple[float, float],
) -> SceneSpec:
    """A random scene of `count` different entities.

    Args:
      rng: the only source of randomness.
      entities: candidates; flags for a map, paintings for a wall.
      kind: 'map' or 'wall'.
      count: how many objects.
      sizes: range of a flag's width or a painting's longer side, in pixels of the 3840 x 2160
        scene. Objects that would cover 5 % of the scene are made smaller.

    Raises:
      ValueError: an entity of the wrong kind, too few entities, or objects too large and many to
          fit.
    """
    wanted = {'map': 'flag', 'wall': 'painting'}.get(kind)
    if wanted is None:
        raise ValueError(f"scene kind {kind!r} is neither 'map' nor 'wall'")
    if any(entity.kind != wanted for entity in entities):
        raise ValueError(f'a {kind} shows {wanted}s only: select entities of that kind')
    if len(entities) < count:
        raise ValueError(f'{count} objects asked for but only {len(entities)} entities given')
    chosen = [entities[index] for index in rng.choice(len(entities), count, replace=False)]
    place = _scatter if kind == 'map' else _hang
    for _ in range(100):
        lengths = rng.uniform(*sizes, size=count)
        boxes = place(
            rng,
            kind,
            [_object_size(kind, entity, length) for entity, length in zip(chosen, lengths)],
        )
        if boxes is not None:
            break
    else:
        raise ValueError(
            f'{count} objects of {sizes[0]} to {sizes[1]} pixels do not fit: ask for fewer or smaller ones'
        )
    if kind == 'map':
        width = int(rng.integers(2400, SIZE[0] + 1))
        height = round(width * SIZE[1] / SIZE[0])
        left = int(rng.integers(0, RELIEF_SIZE[0] - width + 1))
        top = int(rng.integers(0, RELIEF_SIZE[1] - height + 1))
        background = {'window': [left, top, width, height]}
    else:
        colour = np.clip(
            np.array(WALLS[rng.integers(len(WALLS))]) + rng.integers(-12, 13, 3), 0, 255
        )
        background = {
            'colour': colour.tolist(),
            'gradient': rng.integers(-24, 25, 2).tolist(),
            'frames': rng.integers(len(FRAMES), size=count).tolist(),
        }
    return SceneSpec(
        kind,
        SIZE,
        background,
        tuple(Placement(entity.id, box) for entity, box in zip(chosen, boxes)),
    )


def pyramid(picture: np.ndarray) -> list[np.ndarray]:
    """The picture [height, width, 3] and its halvings, down to a few pixels."""
    levels = [picture]
    while min(levels[-1].shape[:2]) >= 16:
        height, width = levels[-1].shape[:2]
        levels.append(
            cv2.resize(
                levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA
            )
        )
    return levels


def cut(
    levels: list[np.ndarray], source: Box, size: tuple[int, int], enlarge: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """The region `source` (pixels of level 0) drawn at `size` (width, height): [height, width, 3].

    Args:
        levels: the picture [height, width, 3] and its halvings.
        source: left, top, right, bottom.
        size: of the result in pixels.
        enlarge: OpenCV's interpolation where the region is smaller than the result.
    """
    shrink = min((source[2] - source[0]) / size[0], (source[3] - source[1]) / size[1])
    level = min(len(levels) - 1, max(0, int(np.log2(max(shrink, 1e-6)) + 0.01)))
    picture = levels[level]
    scale_x, scale_y = picture.shape[1] / levels[0].shape[1], picture.shape[0] / levels[0].shape[0]
    step_x = (source[2] - source[0]) / size[0] * scale_x
    step_y = (source[3] - source[1]) / size[1] * scale_y
    left, top = source[0] * scale_x, source[1] * scale_y
    if step_x == step_y == 1 and left == int(left) and top == int(top):
        return picture[int(top) : int(top) + size[1], int(left) : int(left) + size[0]].copy()
    # Pixel centres lie at halves; the inverse map takes a pixel of the result to one of the
    # picture.
    inverse = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
    flags = (enlarge if shrink < 1 else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, inverse, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


class Renderer:
    """Draws scenes; keeps the relief map and the pictures used in memory (about 0.3 GB for all)."""

    def __init__(self, files: PocketFiles):
        self.files = files
        self._relief: list[np.ndarray] | None = None
        self._reading = threading.Lock()
        self._pictures: dict[str, list[np.ndarray]] = {}

    def picture(self, entity: str) -> list[np.ndarray]:
        """The entity's picture [height, width, 3] and its halvings."""
        if entity not in self._pictures:
            with Image.open(self.files.folder / self.files.entities[entity].file) as image:
                self._pictures[entity] = pyramid(np.asarray(image.convert('RGB')))
        return self._pictures[entity]

    def relief(self) -> list[np.ndarray]:
        """The relief map [height, width, 3] and its halvings."""
        with self._reading:  # once, however many threads draw: it is large
            if self._relief is None:
                with Image.open(self.files.relief) as image:
                    self._relief = pyramid(np.asarray(image.convert('RGB')))
        return self._relief

    def render(
        self, spec: SceneSpec, box: Box | None = None, size: tuple[int, int] | None = None
    ) -> Image.Image:
        """A view of the scene.

        Args:
          spec: the scene.
          box: the view (x0, y0, x1, y1) in fractions of the scene; None for all of it.
          size: (width, height) of the result in pixels; None for the scene's own pixels.

        Returns:
          An RGB image. A small one looks like the full picture shrunk: it is composed at twice the
              size and
          averaged.
        """
        x0, y0, x1, y1 = box or (0.0, 0.0, 1.0, 1.0)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f'box {box} is no rectangle inside the scene: give x0 < x1 and y0 < y1 between 0 and 1'
            )
        view = (x0 * spec.size[0], y0 * spec.size[1], x1 * spec.size[0], y1 * spec.size[1])
        width, height = size or (max(1, round(view[2] - view[0])), max(1, round(view[3] - view[1])))
        times = 2 if (view[2] - view[0]) / width > 1.5 else 1
        canvas = self._background(spec, view, (width * times, height * times))
        for index, placement in enumerate(spec.placements):
            self._draw(canvas, spec, view, index, placement)
        if times == 2:
            canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
        return Image.fromarray(canvas)

    def alone(self, entity: str, rng: np.random.Generator) -> Image.Image:
        """The entity's picture alone, ALONE_SIDE pixels long, cut and lit differently each time."""
        levels = self.picture(entity)
        height, width = levels[0].shape[:2]
        left, top, right, bottom = rng.uniform(0, 0.04, 4)
        source = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        scale = ALONE_SIDE / max(source[2] - source[0], source[3] - source[1])
        size = round((source[2] - source[0]) * scale), round((source[3] - source[1]) * scale)
        pixels = cut(levels, source, size, cv2.INTER_CUBIC).astype(np.float32) * rng.uniform(
            0.85, 1.05
        )
        return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

    def _background(self, spec: SceneSpec, view: Box, size: tuple[int, int]) -> np.ndarray:
        """The canvas [height, width, 3] before anything hangs on it."""
        if spec.kind == 'map':
            left, top, width, height = spec.background['window']
            scale_x, scale_y = width / spec.size[0], height / spec.size[1]
            source = (
                left + view[0] * scale_x,
                top + view[1] * scale_y,
                left + view[2] * scale_x,
                top + view[3] * scale_y,
            )
            return cut(self.relief(), source, size)
        across, down = spec.background['gradient']
        columns = view[0] + (np.arange(size[0], dtype=np.float32) + 0.5) * (
            (view[2] - view[0]) / size[0]
        )
        rows = view[1] + (np.arange(size[1], dtype=np.float32) + 0.5) * (
            (view[3] - view[1]) / size[1]
        )
        shade = np.add.outer(
            rows / spec.size[1] * down - down / 2, columns / spec.size[0] * across - across / 2
        )
        shade = np.rint(shade).astype(np.int16)
        channels = [
            np.clip(shade + level, 0, 255).astype(np.uint8) for level in spec.background['colour']
        ]
        return cv2.merge(channels)

    def _draw(
        self, canvas: np.ndarray, spec: SceneSpec, view: Box, index: int, placement: Placement
    ) -> None:
        """Draws one object with its border or frame, as far as the view shows it."""
        height, width = canvas.shape[:2]
        scale_x, scale_y = width / (view[2] - view[0]), height / (view[3] - view[1])

        def to_canvas(box: Box) -> tuple[int, int, int, int]:
            return (
                round((box[0] - view[0]) * scale_x),
                round((box[1] - view[1]) * scale_y),
                round((box[2] - view[0]) * scale_x),
                round((box[3] - view[1]) * scale_y),
            )

        def fill(box: Box, colour: Sequence[int]) -> None:
            left, top, right, bottom = to_canvas(box)
            canvas[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour

        def grow(share: float) -> Box:
            x0, y0, x1, y1 = placement.box
            edge = share * _rim(spec.kind, x1 - x0, y1 - y0)
            return x0 - edge, y0 - edge, x1 + edge, y1 + edge

        outer = to_canvas(grow(1.4))
        if outer[0] >= width or outer[1] >= height or outer[2] <= 0 or outer[3] <= 0:
            return
        if spec.kind == 'map':
            fill(grow(1), (52, 48, 46))
            fill(grow(0.7), (250, 250, 248))
        else:
            colour = np.array(FRAMES[spec.background['frames'][index]])
            left, top, right, bottom = grow(1)
            drop = 0.25 * _rim(
                spec.kind, placement.box[2] - placement.box[0], placement.box[3] - placement.box[1]
            )
            fill(
                (left + drop, top + drop, right + drop, bottom + drop),
                (np.array(spec.background['colour']) * 0.72).astype(int),
            )
            fill(grow(1), colour)
            fill(grow(0.82), (colour * 0.72).astype(int))
            fill(grow(0.5), (244, 242, 236))
        left, top, right, bottom = to_canvas(placement.box)
        clipped = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            return
        levels = self.picture(placement.entity)
        step_x, step_y = levels[0].shape[1] / (right - left), levels[0].shape[0] / (bottom - top)
        source = (
            (clipped[0] - left) * step_x,
            (clipped[1] - top) * step_y,
            (clipped[2] - left) * step_x,
            (clipped[3] - top) * step_y,
        )
        size = clipped[2] - clipped[0], clipped[3] - clipped[1]
        canvas[clipped[1] : clipped[3], clipped[0] : clipped[2]] = cut(
            levels, source, size, cv2.INTER_CUBIC
        )
