"""Batches of lessons: static shapes, packed without padding, and tokens that find their pictures; a
toy base policy trains, stops after its minutes and goes on.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy_runs import QUICK, ROOT

from configs import base as base_config
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.families import FAMILIES
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.curriculum import Curriculum
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.recipes.checkpoint_policy import POCKET_POLICY
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN

FILES = PocketFiles()


@pytest.fixture(scope='module')
def parts():
    return load_policy(POCKET_POLICY).sizes, Pages(FILES), InventedWorld(FILES, 'train', 0)


def curriculum_of(config, parts):
    sizes, pages, world = parts
    return Curriculum(config, POCKET_POLICY, sizes, FILES, pages, world)


def test_every_lesson_has_one_shape_and_little_padding(parts, monkeypatch):
    config = base_config.get_config()
    curriculum = curriculum_of(config, parts)
    curriculum.vqa.augmented_share = 0.3  # fewer pictures to draw anew
    rng, tried, row = np.random.default_rng(0), [], curriculum._row
    monkeypatch.setattr(curriculum, '_row', lambda *parts: tried.append(parts) or row(*parts))
    for name, lesson in curriculum.lessons.items():
        tried.clear()
        one, other = lesson(rng), lesson(rng)
        # What does not fit is drawn again, which must be rare: it is slow, and a choice.
        assert len(tried) <= 4 * (len(one.groups.tokens) + len(other.groups.tokens)), name
        # which have several lengths
        if name not in ('pages', 'cloze pages', 'markup', 'namesakes'):
            assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, other), name
        groups = one.groups
        assert groups.response_mask.any() and not (groups.response_mask & ~groups.valid).any()
        if name in ('short pages', 'looks', 'near looks', 'passages'):
            # How much a batch of passages holds is a matter of luck, 0.6 to 0.9.
            more = [
                lesson(np.random.default_rng(i)).groups for i in range(12 * (name == 'passages'))
            ]
            shares = [
                (g.valid.sum() + g.prompt_valid.sum()) / g.padded_tokens for g in [groups, *more]
            ]
            assert np.mean(shares) > 0.75, name


def test_every_token_of_a_picture_finds_its_own_features(parts):
    """Features of each picture are marked with its number; what the tokens gather must be that
    number, in order."""
    config = base_config.get_config()
    curriculum = curriculum_of(config, parts)
    batch = curriculum.look_batch(np.random.default_rng(0))
    groups, slots, shape = batch.groups, config.slots, config.looks
    assert groups.tokens.shape == (shape.rows, shape.members, shape.suffix)
    assert len(batch.images[0]) == shape.rows * (1 + shape.second_pictures)
    for b in range(shape.rows):
        shown = [groups.prompt_features[b]]
        shown += [index for index in groups.feature_index[b] if (index >= 0).any()]
        assert len(shown) == 1 + shape.second_pictures
        for picture, index in enumerate(shown):
            used = index[index >= 0]
            assert len(used) > 20 and (used == picture * slots + np.arange(len(used))).all()
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), batch.targets))


def test_stages_follow_each_other_and_an_unknown_lesson_is_named(parts):
    config = base_config.get_config()
    config.stages = (
        {'steps': 2, 'learning_rate': 1e-3, 'lessons': {'short pages': 1.0}},
        {'steps': 3, 'learning_rate': 1e-3, 'lessons': {'tools': 1.0}},
    )
    config.lessons_per_step = 1
    made = curriculum_of(config, parts).batches(0, 1)
    assert [next(made)[0] for _ in range(3)] == ['short pages', 'tools', 'tools']
    config.stages = ({'steps': 2, 'learning_rate': 1e-3, 'lessons': {'poems': 1.0}},)
    with pytest.raises(UserError, match='poems.*choose from short pages'):
        curriculum_of(config, parts)


def toy(family='qwen2_5_vl'):
    config = base_config.get_config()
    config.family = family
    config.language.update(
        layers=2,
        width=32,
        mlp_width=32,
        heads=2,
        kv_heads=1,
        vocabulary=640,
        mrope_sections=(2, 2, 4),
    )
    config.vision.update(depth=1, width=16, mlp_width=16, heads=1, full_attention_blocks=(0,))
    config.texts.update(tokens=512, lengths=(64, 128), dialogue=512)
    config.looks.update(rows=1, members=2, second_pictures=1, prompt=1400, suffix=1400, packed=1600)
    config.stages = (
        {'steps': 3, 'learning_rate': 1e-3, 'lessons': {'short pages': 1.0}},
        {'steps': 3, 'learning_rate': 1e-3, 'lessons': {'looks': 1.0, 'short pages': 1.0}},
    )
    config.update(probe_layers=(1,), lessons_per_step=2, evaluate_every=3)
    return config


def started(config, folder, **fields):
    """A start of `main` with the config and these fields in place of its own."""
    file = folder / 'toy.py'
    file.write_text(
        'from ml_collections import ConfigDict\n'
        'from sensesearch_jax.pocket.pretraining import run\n'
        'run.LOGGED_EVERY = 1\n'
        f'get_config = lambda: ConfigDict({config.to_dict()!r})\n'
    )
    command = [sys.executable, '-m', 'sensesearch_jax.main', f'--config={file}']
    command += [f'--workdir={folder / "run"}']
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | QUICK)


@pytest.mark.parametrize(
    'family',
    [
        pytest.param(name, marks=() if name == 'qwen2_5_vl' else pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_a_run_ends_after_its_minutes_and_goes_on_where_it_was(tmp_path, family):
    config, workdir = toy(family), tmp_path / 'run'
    stopped = started(config, tmp_path, max_minutes=1e-9)
    assert stopped.returncode == EXIT_AGAIN, stopped.stderr
    assert 'stopped by max_minutes, and everything is saved; start the same' in stopped.stderr
    first = load_policy(workdir / 'policy')
    assert first.sizes.language.layers == 2
    gone_on = started(config, tmp_path)
    assert gone_on.returncode == 0, gone_on.stderr
    assert 'is finished' in started(config, tmp_path).stderr
    records = [
        r for r in read_metrics(workdir / 'metrics.jsonl') if 'tokens_per_second' in r['values']
    ]
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= record['values']['padding_share'] < 1 for record in records)
    measured = [
        r['values'] for r in read_metrics(workdir / 'metrics.jsonl') if 'right/looks' in r['values']
    ]
    assert len(measured) == 2 and all(0 <= m['right/short pages'] <= 1 for m in measured)
