"""Questions about several pictures and about none, from the prompt to the trainer's log-probs."""

import dataclasses

import numpy as np
import optax
import pytest
from acts_by_chance import MEMBERS
from scripted_tools import ScriptedTools

from sensesearch_jax.agent.actions import Answer, ImageCrop
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.batching.from_trajectories import to_row
from sensesearch_jax.batching.group_batch import build_groups
from sensesearch_jax.rewards.crop_geometry import crop_regions
from sensesearch_jax.training.trainer import Learner

pytestmark = pytest.mark.parametrize(
    'policy',
    ['qwen2_5_vl', pytest.param('qwen3_vl', marks=pytest.mark.slow)],
    indirect=True,
    scope='module',
)


def crops_the_last(text):
    """A crop of the third image, or an answer, by chance."""
    return ImageCrop((0.0, 0.0, 0.5, 0.5), 3) if len(text) % 3 else Answer('it')


@pytest.fixture(scope='module')
def groups(run, questions):
    """Of a question about three pictures, one about none, and one about a picture and its copy."""
    asked = [
        dataclasses.replace(q, images=images)
        for q, images in zip(
            questions,
            [
                tuple(q.images[0] for q in questions[:3]),
                (),
                (questions[0].images[0], questions[3].images[0], questions[0].images[0]),
            ],
        )
    ]
    return run(ScriptedTools(), crops_the_last, asked=asked)


def test_crops_count_from_the_questions_own_images(groups, policy):
    three, none, copies = groups[0]
    crops = [t for t in three + copies if t.turns[0].observation]
    assert crops and all(t.turns[0].observation.parts[0] == 'Image 4:' for t in crops)
    for t in three + copies:
        assert t.own_images == t.images[:3] and len({image.sha256 for image in t.own_images}) > 1
        assert t.images[3:] == [turn.observation.new_images[0] for turn in t.turns[:-1]]
        for region in crop_regions(t.turns, 3)[3:]:
            assert (region.image, region.box) == (3, (0.0, 0.0, 0.5, 0.5))
    for t in none:
        assert t.images == []
        assert all(turn.observation.parts == ('No images.',) for turn in t.turns[:-1])
    assert all(t.state is SampleState.OK or len(t.turns) == 4 for group in groups[0] for t in group)


@pytest.mark.parametrize('chosen', [(0, 1, 2), (1,)])
def test_log_probs_are_the_trainers(groups, chosen, policy, chat):
    groups, _, features, _ = groups
    groups = [groups[i] for i in chosen]
    table = features.table(image for group in groups for t in group for image in t.images)
    batch = build_groups(
        [to_row(group) for group in groups],
        table,
        image_token=chat.image_pad,
        merge=2,
        members=MEMBERS,
        width=policy.sizes.vision.feature_width,
    )
    mask = np.zeros(policy.sizes.language.vocabulary, bool)
    mask[list(chat.suppressed_ids)] = True
    learner = Learner(policy, optax.sgd(0.1), suppressed=mask, temperature=1.0)
    own = batch.response_mask[:, :, 1:]
    ours = np.asarray(learner.log_probs(batch))
    assert own.sum() > 5
    np.testing.assert_allclose(ours[own], batch.log_probs[:, :, 1:][own], rtol=0, atol=1e-4)
