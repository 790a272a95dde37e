"""The gates of a base policy: each skill's share of right trials, on invented and on real entities
that it never met.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tantivy

from sensesearch_jax.pocket.invented.files import InventedFiles
from sensesearch_jax.pocket.skills.reader import Reader
from sensesearch_jax.pocket.skills.trials import Trials, World
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.observation_limits import LIMITS
from sensesearch_jax.runtime.progress import Progress
from tools_server.backend_config import IndexedImages
from tools_server.backends.image_matcher import PictureMatcher
from tools_server.backends.neighbours import ExactNeighbours
from tools_server.backends.text_bm25 import BM25

# Skill -> share from which SFT is worth trying.
GATES = {
    'copy': 0.97,
    'field': 0.92,
    'colour': 0.90,
    'option': 0.95,
    'shape': 0.95,
    'count': 0.80,
    'first crop': 0.75,
    'second crop': 0.40,
}
BY_TOKENS = ('copied', 'fields', 'seen')


def worlds(folder: Path) -> dict[str, World]:
    """The held-out invented entities and the real ones of the split 'validation', and searches among
    all pictures and passages of both.

    Args:
        folder: of `python -m sensesearch_jax.pocket.invented.build`.
    """
    invented = InventedFiles(folder)
    lines = (folder / 'picture_index' / 'pictures.jsonl').read_text(encoding='utf-8').splitlines()
    titles = [json.loads(line)['title'] for line in lines]
    # As in configs/tools_invented.yaml.
    config = IndexedImages.model_construct(
        upload_side=640, min_region=48, min_share=0.05, min_similarity=0.93
    )
    vectors = np.load(folder / 'picture_index' / 'vectors.npy')
    matcher = PictureMatcher(config, ExactNeighbours(vectors))
    texts = BM25(tantivy.Index.open(str(folder / 'text_index')), LIMITS.passage_chars, 3.0)
    return {
        name: World(files, 'validation', matcher, titles, texts)
        for name, files in (('invented', invented), ('real', PocketFiles()))
    }


def measure(reader: Reader, world: World, count: int, seed: int) -> dict[str, list[bool]]:
    """Skill -> which of its trials were right.

    Args:
        reader: of the policy.
        world: whose entities are asked about.
        count: questions for each kind of trial; three times as many of what is seen.
        seed: of the questions.
    """
    trials, found = Trials(reader, world, seed), defaultdict(list)
    with Progress('skills', len(BY_TOKENS) + 1, unit='kind') as bar:
        for name in BY_TOKENS:
            made = list(getattr(trials, name)(count * (3 if name == 'seen' else 1)))
            right = reader.right([given for _, given in made])
            for (skill, _), one in zip(made, right):
                found[skill].append(one)
            bar.update()
        for skill, one in trials.boxes(count):
            found[skill].append(one)
        bar.update()
    return dict(found)


def table(found: dict[str, dict[str, list[bool]]]) -> Sequence[str]:
    """The gates as lines of Markdown: share and number of trials in each world.

    Args:
        found: of each world what `measure` gives.
    """
    lines = [
        f'| skill | gate | {" | ".join(f"{name} | of" for name in found)} |',
        '|---|---|' + '---|---|' * len(found),
    ]
    for skill, gate in GATES.items():
        cells = []
        for of_world in found.values():
            values = of_world.get(skill, [])
            cells.append(f'{np.mean(values):.1%} | {len(values)}' if values else '– | 0')
        lines.append(f'| {skill} | {gate:.0%} | {" | ".join(cells)} |')
    return lines
