"""The skills of a policy, each alone and within the protocol's own turns, beside their gates.

    python -m sensesearch_jax.pocket.invented.build
    python -m experiments.analysis.skills --policy=DIR

On entities that no training has met: invented ones, and the real ones of the split 'validation'. A
name out of an image search copied into a query; the asked field among two passages; colour and shape
of a cropped object, or the letter of an option; the number of objects; the box of an object named by its
place, by which the image search must find it; a better box after one that found nothing. Some minutes on
a core.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from sensesearch_jax.pocket.invented.files import CACHE
from sensesearch_jax.pocket.skills.gates import measure, table, worlds
from sensesearch_jax.pocket.skills.reader import Reader
from sensesearch_jax.recipes.checkpoint_policy import POCKET_POLICY

POLICY = flags.DEFINE_string('policy', str(POCKET_POLICY), 'directory of a pocket policy')
INVENTED = flags.DEFINE_string('invented', str(CACHE), 'folder of the invented world')
COUNT = flags.DEFINE_integer('count', 100, 'questions for each kind of trial')
SEED = flags.DEFINE_integer('seed', 0, 'of the questions')


def main(_):
    reader = Reader(POLICY.value)
    known = worlds(Path(INVENTED.value))
    found = {name: measure(reader, world, COUNT.value, SEED.value) for name, world in known.items()}
    print('\n'.join(table(found)))


if __name__ == '__main__':
    app.run(main)
