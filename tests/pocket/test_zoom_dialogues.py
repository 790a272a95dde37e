"""Zooms: boxes that show the object, second answers that the nearer picture bears out, pictures
where their tokens say."""

import json
import re

import jax
import numpy as np
import pytest

from configs import base as base_config
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.pocket.pretraining.curriculum import Curriculum
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.visual_questions import VisualQuestions
from sensesearch_jax.pocket.pretraining.zoom_dialogues import ZoomDialogues
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.recipes.session import POCKET_POLICY
from tests.pocket.test_examples import held_out

FILES = PocketFiles()


@pytest.fixture(scope='module')
def pages():
    return Pages(FILES)


def boxes_in(text):
    return [json.loads(box) for box in re.findall(r'\[\d[^\]]*\]', text)]


def test_the_nearer_picture_shows_the_object_and_a_second_box_finds_it(pages, monkeypatch):
    zooms = ZoomDialogues(VisualQuestions(FILES, pages, 4))
    again = right = 0
    for seed in range(60):
        example = zooms(np.random.default_rng(seed), 3)
        assert not held_out(
            ' '.join(
                [
                    example.system,
                    *(f'{z.question} {z.first} {z.shown} {z.second}' for z in example.zooms),
                ]
            )
        )
        for zoom in example.zooms:
            (view,) = boxes_in(zoom.first)
            within = [
                b for b in example.boxes if (b[:2] >= view[:2]).all() and (b[2:] <= view[2:]).all()
            ]
            assert within
            right += zoom.right
            if second := boxes_in(zoom.second):
                again += 1
                low, size = np.array(view[:2]), np.array(view[2:]) - view[:2]
                there = [
                    (low + np.array(second[0][:2]) * size, low + np.array(second[0][2:]) * size)
                ]
                assert any(
                    (b[:2] >= a - 1e-6).all() and (b[2:] <= z + 1e-6).all()
                    for b in within
                    for a, z in there
                )
    assert again > 20 and 40 < right < 170


def test_every_token_of_a_picture_finds_its_own_features(pages):
    """Features of each picture are marked with its number; what the tokens gather must be that
    number, in order."""
    config, policy = base_config.get_config(), load_policy(POCKET_POLICY)
    curriculum = Curriculum(config, POCKET_POLICY, policy.sizes, FILES, pages)
    batch = curriculum.zoom_batch(np.random.default_rng(0))
    groups, slots = batch.groups, config.picture_slots
    rows, members, length = groups.tokens.shape
    assert (rows, members) == (config.zoom_pictures, config.zooms) and length == config.zoom_tokens[
        1
    ]
    assert len(batch.images[0]) == rows * (1 + members)
    for b in range(rows):
        for picture, index in enumerate([groups.prompt_features[b], *groups.feature_index[b]]):
            used = index[index >= 0]
            assert len(used) > 20 and (used == picture * slots + np.arange(len(used))).all()
    assert all(groups.response_mask[b, g].any() for b in range(rows) for g in range(members))
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), batch.targets))


def test_the_last_stage_has_the_shares_that_the_config_gives(pages):
    config, policy = base_config.get_config(), load_policy(POCKET_POLICY)
    curriculum = Curriculum(config, POCKET_POLICY, policy.sizes, FILES, pages)
    config.attribute_shares = tuple(tuple(row) for row in np.eye(5).tolist())
    for part, zooms in enumerate((False, True, False, False, False)):
        first = config.steps - config.attribute_steps + part * config.attribute_steps // 5
        batch = curriculum.batch(np.random.default_rng(0), first)
        assert (batch.images is None) == (part == 0)
        # In a zoom each member has a picture of its own.
        assert (batch.groups.feature_index >= 0).any() == zooms
        if part > 1:
            assert batch.groups.prompt.shape[1] == config.attribute_tokens
            assert batch.groups.tokens.shape[2] == config.answer_tokens[part - 2]
