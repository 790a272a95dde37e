"""Batches of lessons: static shapes, packed without padding, and tokens that find their pictures; a
toy base policy trains, stops after its minutes and goes on.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from toy_runs import QUICK, ROOT

from configs import base as base_config
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.families import FAMILIES
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.curriculum import Curriculum
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.run import Trainer
from sensesearch_jax.pocket.pretraining.stages import Stages
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.recipes.checkpoint_policy import POCKET_POLICY
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN

FILES = PocketFiles()


@pytest.fixture(scope='module')
def parts():
    return load_policy(POCKET_POLICY).sizes, Pages(FILES), InventedWorld(FILES, 'train', 0)


def stage(**changes):
    """A stage of one lesson and step, with these changes."""
    return {
        'name': 'toy',
        'steps': 1,
        'learning_rate': 1e-3,
        'lessons_per_step': 1,
        'probe_weight': (1.0, 0.1),
        'freeze_tower': False,
        'lessons': {'short pages': 1.0},
        **changes,
    }


def curriculum_of(config, parts):
    sizes, pages, world = parts
    return Curriculum(config, POCKET_POLICY, sizes, FILES, pages, world)


def test_every_lesson_has_one_shape_and_little_padding(parts, monkeypatch):
    config = base_config.get_config()
    curriculum = curriculum_of(config, parts)
    curriculum.vqa.augmented_share = 0.3  # fewer pictures to draw anew
    rng, tried, row = np.random.default_rng(0), [], curriculum._row
    monkeypatch.setattr(curriculum, '_row', lambda *parts: tried.append(parts) or row(*parts))
    told, member = [], curriculum._member
    monkeypatch.setattr(curriculum, '_member', lambda *parts: told.append(parts) or member(*parts))
    for name, lesson in curriculum.lessons.items():
        tried.clear()
        told.clear()
        one, other = lesson(rng), lesson(rng)
        # What does not fit is drawn again, which must be rare: it is slow, and a choice.
        assert len(tried) <= 4 * (len(one.groups.tokens) + len(other.groups.tokens)), name
        texts = one.groups.valid.any(-1).sum() + other.groups.valid.any(-1).sum()
        assert tried or len(told) <= 6 * texts, name
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
        stage(steps=2, lessons={'short pages': 1.0}),
        stage(steps=3, lessons={'tools': 1.0}),
    )
    made = curriculum_of(config, parts).batches(0, 1)
    assert [next(made)[0] for _ in range(3)] == ['short pages', 'tools', 'tools']
    config.stages = (stage(lessons={'poems': 1.0}),)
    with pytest.raises(UserError, match='poems.*choose from short pages'):
        curriculum_of(config, parts)


def test_rates_and_weights_are_of_their_stage_and_bad_stages_are_refused():
    stages = Stages(
        [
            stage(name='a', steps=4, learning_rate=1.0, probe_weight=(1.0, 0.4)),
            stage(name='b', steps=2, learning_rate=0.5, probe_weight=(0.2, 0.1)),
        ]
    )
    assert stages.steps == 6
    assert [stages.at(step).name for step in (0, 3, 4, 5, 9)] == ['a', 'a', 'b', 'b', 'b']
    weights = [stages.probe_weight(step) for step in range(6)]
    np.testing.assert_allclose(weights, [1.0, 0.8, 0.6, 0.4, 0.2, 0.1])
    rates = [float(stages.learning_rate(1)(step)) for step in range(6)]
    assert rates[0] == rates[4] == 0 and rates[1] == 1 and rates[5] == 0.5
    assert rates[1] > rates[2] > rates[3]
    for wrong in ([], [stage(steps=0)], [stage(lessons_per_step=0)], [{'steps': 3}]):
        with pytest.raises(UserError, match='stages: '):
            Stages(wrong)


def test_a_frozen_tower_stays_as_it_is_while_the_rest_learns(parts):
    config = base_config.get_config('reading')
    policy = load_policy(POCKET_POLICY)
    trainer = Trainer(policy, config)
    assert all(s['freeze_tower'] for s in config.stages)
    lesson = (
        'near pictures',
        curriculum_of(config, parts).picture_batch(np.random.default_rng(0), 1.0),
    )
    before = jax.tree.map(np.asarray, nnx.state(trainer.policy()).to_pure_dict())
    for _ in range(2):  # the first step has a rate of 0
        trainer.step([lesson], 0.1, True)
    after = jax.tree.map(np.asarray, nnx.state(trainer.policy()).to_pure_dict())
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert jax.tree.all(same['vision']) and not any(jax.tree.leaves(same['language']['embedding']))


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
        stage(steps=3, lessons={'short pages': 1.0}, lessons_per_step=2),
        stage(steps=3, lessons={'looks': 1.0, 'short pages': 1.0}, freeze_tower=True),
    )
    config.update(probe_layers=(1,), evaluate_every=3)
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
