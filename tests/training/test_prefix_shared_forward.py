"""A group in one row, its prompt computed once, equals its members as separate sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_policies import embedded
from tiny_policies import END, PAD, START, both, difference, quick_jit

from sensesearch_jax.batching.group_batch import ImageTable, Member, Row, build_groups
from sensesearch_jax.model.rope import mrope_positions
from sensesearch_jax.training.prefix_shared_forward import group_hidden

GRIDS = {'scene': (1, 6, 10), 'crop': (1, 8, 4), 'thumbnail': (1, 2, 4)}
MERGE = 2


def tokens_of(parts, seed):
    """Tokens and pictures of parts that are the length of a random text or a picture's name."""
    random = np.random.default_rng(seed)
    tokens, images = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += random.integers(0, PAD, part).tolist()
        else:
            _, height, width = GRIDS[part]
            tokens += [START, *[PAD] * (height * width // MERGE**2), END]
            images.append(part)
    return tokens, images


@pytest.mark.parametrize(
    'name', ['grouped', pytest.param('deep', marks=pytest.mark.slow), 'sparse']
)
def test_groups_equal_their_members_alone(name):
    """Same logits and gradients; pictures in prompts and later turns, ragged groups, an empty row."""
    policy = both(name)[1]
    sizes, width = policy.sizes.language, policy.sizes.vision.feature_width
    random = np.random.default_rng(1)
    features = {
        name: random.normal(size=(h * w // MERGE**2, width)).astype(np.float32)
        for name, (_, h, w) in GRIDS.items()
    }
    layouts = [
        ([5, 'scene', 6], [[17], [4, 'crop', 9, 'thumbnail', 2], [1]]),
        ([9, 'thumbnail', 2, 'crop', 3], [[7, 'scene', 5], [12]]),
    ]
    rows, sequences = [], []
    for number, (prompt, suffixes) in enumerate(layouts):
        prompt, images = tokens_of(prompt, number)
        members = [tokens_of(suffix, 10 * number + 5) for suffix in suffixes]
        rows.append(
            Row(prompt, images, [Member(ids, [True] * len(ids), names) for ids, names in members])
        )
        sequences.append([(prompt + tokens, images + names) for tokens, names in members])
    batch = build_groups(
        rows,
        ImageTable(GRIDS, features),
        image_token=PAD,
        merge=MERGE,
        members=4,
        width=sizes.width,
        batch=3,
        prompt_step=16,
        suffix_step=8,
        feature_step=8,
    )

    alone = [pair for group in sequences for pair in group]
    size = max(len(tokens) for tokens, _ in alone)
    tokens = np.zeros((len(alone), 1, size), np.int32)
    positions, valid = np.zeros((3, *tokens.shape), np.int32), np.zeros(tokens.shape, bool)
    visual = np.zeros((*tokens.shape, width), np.float32)
    for number, (ids, names) in enumerate(alone):
        tokens[number, 0, : len(ids)], valid[number, 0, : len(ids)] = ids, True
        grids = [GRIDS[name] for name in names]
        positions[:, number, 0, : len(ids)], _ = mrope_positions(ids, grids, PAD, MERGE)
        visual[number, 0][tokens[number, 0] == PAD] = np.concatenate(
            [features[name] for name in names]
        )
    # Where each member's suffix stands in its own sequence, and in the batch of groups.
    whole = [
        (number, slice(len(rows[g].prompt) - 1, len(alone[number][0])))
        for number, g in enumerate(g for g, group in enumerate(sequences) for _ in group)
    ]
    packed = [
        (g, m, slice(0, 1 + len(rows[g].members[m].tokens)))
        for g, group in enumerate(sequences)
        for m in range(len(group))
    ]
    weights = [random.normal(size=(part.stop - part.start, sizes.vocabulary)) for _, part in whole]
    graph, state = nnx.split(policy, nnx.Param)

    def grouped(state):
        policy = nnx.merge(graph, state)
        logits = policy.logits(group_hidden(policy, jax.tree.map(jnp.asarray, batch))[0])
        parts = [logits[place] for place in packed]
        return sum(
            jnp.sum(part * weight) for part, weight in zip(parts, weights, strict=True)
        ), parts

    def separate(state):
        policy = nnx.merge(graph, state)
        x = embedded(policy, tokens, visual)
        logits = policy.logits(
            policy.language(x, jnp.asarray(positions), jnp.asarray(valid))[0][:, 0]
        )
        parts = [logits[place] for place in whole]
        return sum(
            jnp.sum(part * weight) for part, weight in zip(parts, weights, strict=True)
        ), parts

    (_, ours), gradients = quick_jit(jax.value_and_grad(grouped, has_aux=True))(state)
    (_, theirs), expected = quick_jit(jax.value_and_grad(separate, has_aux=True))(state)
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one, other) < 1e-5
    gradients, expected = nnx.to_flat_state(gradients), nnx.to_flat_state(expected)
    for (path, one), (_, other) in zip(gradients, expected, strict=True):
        assert np.isfinite(one[...]).all(), path
        if path[0] == 'language':
            assert difference(one[...], other[...]) < 1e-5, path
