"""Reads the pocket world's data folder: entities, their pictures and the passages that state their
facts.
"""

import json
import lzma
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sensesearch_jax.errors import UserError

FOLDER = Path(__file__).parent / 'files'

SPLITS = ('train', 'validation', 'test')


@dataclass(frozen=True)
class Entity:
    """A painting or a flag.

    `title` is what an image search returns, `subject` the words a text search should hold, `noun`
    what the owner of a flag is ('country' or 'territory'; 'painting' for a painting), `size` the
    stored picture's (width, height) in pixels. `facts` maps a fact's name to its short answer,
    `passages` to the id of the passage that states it literally, `aliases` to other accepted
    answers.
    """

    id: str
    kind: str
    title: str
    split: str
    subject: str
    noun: str
    file: str
    size: tuple[int, int]
    facts: dict[str, str] = field(hash=False)
    passages: dict[str, str] = field(hash=False)
    aliases: dict[str, list[str]] = field(hash=False)

    @property
    def name(self) -> str:
        """The name in its title: the owner of a flag, a painting with its painter."""
        return self.title.removeprefix('Flag of ')

    @property
    def short_name(self) -> str:
        """The same without the painter."""
        return self.name.split(', by ')[0]

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return self.size[0] / self.size[1]


class PocketFiles:
    """The data folder, read on first use.

    Args:
      folder: a folder made by sensesearch_jax.pocket.world.make_files.

    Attributes:
      name: of the questions' source.
    """

    name = 'pocket'

    def __init__(self, folder: Path | str = FOLDER):
        self.folder = Path(folder)
        if not (self.folder / 'entities.jsonl').is_file():
            raise ValueError(
                f'{self.folder} holds no entities.jsonl: '
                'make the data with python -m sensesearch_jax.pocket.world.make_files'
            )

    @cached_property
    def entities(self) -> dict[str, Entity]:
        """Entity id -> entity, in the file's order."""
        lines = (self.folder / 'entities.jsonl').read_text(encoding='utf-8').splitlines()
        records = [json.loads(line) for line in lines]
        return {
            record['id']: Entity(**{**record, 'size': tuple(record['size'])}) for record in records
        }

    @cached_property
    def passages(self) -> dict[str, dict[str, str]]:
        """Passage id -> {'id', 'title', 'text'}; decompresses the whole corpus."""
        with lzma.open(self.folder / 'passages.jsonl.xz', 'rt', encoding='utf-8') as lines:
            return {record['id']: record for record in map(json.loads, lines)}

    @property
    def relief(self) -> Path:
        """The relief map that flags lie on."""
        return self.folder / 'relief.jpg'

    def select(self, kind: str, split: str) -> list[Entity]:
        """The entities of one kind ('flag' or 'painting') and split, in the file's order."""
        if split not in SPLITS:
            raise UserError(f'split {split!r} is none of {", ".join(SPLITS)}')
        return [
            entity
            for entity in self.entities.values()
            if entity.kind == kind and entity.split == split
        ]
