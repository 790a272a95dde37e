"""What a policy sees of pictures when asked plainly, on entities of one split: share of answers
right to the last token.

    python -m experiments.analysis.seeing --policy=DIR --split=validation

Plain questions as configs/base.py trains on, most of them on colours and shapes and near views; of
'train' most pictures are augmented, as in its training, of other splits none is.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.pocket.pretraining.curriculum import Curriculum
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.policy_with_probes import PolicyWithProbes
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.recipes.session import POCKET_POLICY
from sensesearch_jax.runtime.progress import Progress


def asked(question: str, answer: str) -> str:
    """The subject of a question."""
    if answer.startswith('['):
        return 'box'
    if answer in ('yes', 'no'):
        return 'shape'
    return (
        'count'
        if answer.isdigit()
        else 'part of the picture'
        if 'which part' in question
        else 'colour'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--policy', default=str(POCKET_POLICY), help='directory of a pocket policy')
    parser.add_argument('--split', default='validation', choices=['train', 'validation'])
    parser.add_argument('--batches', type=int, default=16, help='of 8 pictures each')
    options = parser.parse_args()
    config, files = runpy.run_path('configs/base.py')['get_config'](), PocketFiles()
    folder = Path(options.policy)
    policy = load_policy(folder)
    curriculum = Curriculum(config, folder, policy.sizes, files, Pages(files))
    vqa = curriculum.vqa
    if options.split != 'train':
        vqa.entities = {
            'map': files.select('flag', options.split),
            'wall': files.select('painting', options.split),
        }
        vqa.augmented_share = 0.0
    graph, parameters = nnx.split(PolicyWithProbes(policy, (), 0))
    correct = jax.jit(lambda parameters, batch: nnx.merge(graph, parameters).correct(batch))
    random, found = np.random.default_rng(0), {}
    with Progress('look', options.batches, unit='batch') as bar:
        for _ in range(options.batches):
            batch = curriculum.picture_batch(random, attribute_focus=True)
            right, groups = np.asarray(correct(parameters, batch)), batch.groups
            for b, g in zip(*np.nonzero(groups.response_mask.any(-1))):
                response, valid = groups.response_mask[b, g], groups.valid[b, g]

                def say(mask):
                    return (
                        curriculum.chat.decode(groups.tokens[b, g][mask])
                        .replace('<|im_end|>', '')
                        .strip()
                    )

                found.setdefault(asked(say(valid & ~response), say(response)), []).append(
                    right[b, g][response[1:]].all()
                )
            bar.update()
    print(f'| asked for ({options.split}) | answers | right |\n|---|---|---|')
    for name, values in sorted(found.items()):
        print(f'| {name} | {len(values)} | {np.mean(values):.0%} |')


if __name__ == '__main__':
    main()
