"""Small random policies in JAX alone, pictures as features, and sequences to compare with."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sensesearch_jax.batching.group_batch import ImageTable
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.families import full_attention
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.rope import mrope_positions
from sensesearch_jax.model.text_decoder import Embedded

VOCABULARY, PAD, START, END, VIDEO, STOP = 96, 90, 91, 92, 93, 94
SUPPRESSED = (PAD, START, END, VIDEO)
MERGE = 2
GRIDS = {'scene': (1, 6, 10), 'crop': (1, 8, 4), 'thumbnail': (1, 2, 4)}


FAMILY = ['qwen2_5_vl']  # of the policies and pictures made from here on


def each_family(*families, modules, reset=()):
    """Fixture that runs a module's tests once for each family.

    Args:
        families: their model types.
        modules: names of the modules whose POLICY it is.
        reset: cached functions that depend on it.
    """

    @pytest.fixture(autouse=True, scope='module', params=families)
    def family(request):
        before, FAMILY[0] = FAMILY[0], request.param
        for function in reset:
            function.cache_clear()
        policy, policies = small_policy(), {}
        for module in map(sys.modules.get, modules):
            policies[module], module.POLICY = getattr(module, 'POLICY', None), policy
        yield request.param
        FAMILY[0] = before
        for module, policy in policies.items():
            module.POLICY = policy
        for function in reset:
            function.cache_clear()

    return family


def small_policy(
    vocabulary=VOCABULARY,
    seed=0,
    image_token=PAD,
    vision_start=START,
    vision_end=END,
    video=VIDEO,
    stop=STOP,
    family=None,
):
    """A policy of two layers whose distributions are far from flat, and whose norms and biases
    matter; with a family of its own its pictures are cut into patches of 14, whatever the family's."""
    sizes = PolicySizes(
        VisionSizes(
            depth=2,
            width=16,
            mlp_width=24,
            heads=2,
            out_width=32,
            window_size=56,
            full_attention_blocks=(1,),
        ),
        LanguageSizes(
            layers=2,
            width=32,
            mlp_width=48,
            heads=4,
            kv_heads=2,
            vocabulary=vocabulary,
            mrope_sections=(1, 1, 2),
        ),
        image_token=image_token,
        vision_start_token=vision_start,
        vision_end_token=vision_end,
        video_token=video,
        end_tokens=(stop,),
    ).adapted(family or FAMILY[0])
    if family and sizes.vision.layer_norm:
        vision = dataclasses.replace(sizes.vision, **full_attention(14, MERGE, 2))
        sizes = dataclasses.replace(sizes, vision=vision)
    policy = Policy(sizes, nnx.Rngs(seed))
    random = np.random.default_rng(seed)
    state = nnx.state(policy, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        value = np.asarray(parameter[...])
        noise = random.normal(size=value.shape).astype(np.float32)
        if path[-1] == 'scale':
            value = 1 + 0.2 * noise
        elif path[-1] == 'bias':
            value = 0.2 * noise
        elif 'embedding' in path or 'untied_head' in path:
            value = 0.4 * noise
        parameter.set_value(jnp.asarray(value))
    nnx.update(policy, state)
    return policy


def table(width=32):
    """Random features of the pictures in GRIDS, for `small_policy`."""
    return _table(width if FAMILY[0] == 'qwen2_5_vl' else 3 * width)  # with two of deepstack


@functools.cache
def _table(width):
    random = np.random.default_rng(5)
    return ImageTable(
        GRIDS,
        {
            name: random.normal(size=(h * w // MERGE**2, width)).astype(np.float32)
            for name, (_, h, w) in GRIDS.items()
        },
    )


def tokens_of(parts, random):
    """Tokens and pictures of parts that are the length of a random text or a picture's name."""
    tokens, images = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += random.integers(0, PAD, part).tolist()
        else:
            _, height, width = GRIDS[part]
            tokens += [START, *[PAD] * (height * width // MERGE**2), END]
            images.append(part)
    return tokens, images


def alone(policy, sequences):
    """Logits [n, length, V] of whole sequences of (tokens, pictures), each run for itself in one
    pass."""
    length = max(len(tokens) for tokens, _ in sequences)
    ids = np.zeros((len(sequences), 1, length), np.int32)
    positions, valid = np.zeros((3, *ids.shape), np.int32), np.zeros(ids.shape, bool)
    visual = np.zeros((*ids.shape, policy.sizes.vision.feature_width), np.float32)
    for n, (tokens, names) in enumerate(sequences):
        ids[n, 0, : len(tokens)], valid[n, 0, : len(tokens)] = tokens, True
        positions[:, n, 0, : len(tokens)], _ = mrope_positions(
            tokens, [GRIDS[name] for name in names], PAD, MERGE
        )
        if names:
            visual[n, 0][ids[n, 0] == PAD] = np.concatenate(
                [table().features[name] for name in names]
            )
    graph, state = nnx.split(policy)

    def logits(state):
        policy = nnx.merge(graph, state)
        x = embedded(policy, ids, visual)
        return policy.logits(
            policy.language(x, jnp.asarray(positions), jnp.asarray(valid))[0][:, 0]
        )

    return np.asarray(jax.jit(logits)(state))


def embedded(policy, tokens, visual):
    """Tokens as the decoder takes them, given the features at the place of each image token."""
    own, *deepstack = jnp.split(visual, 1 + len(policy.sizes.vision.deepstack_blocks), axis=-1)
    text = policy.language.embedding[...][tokens]
    x = jnp.where((tokens == PAD)[..., None], own, text)
    return Embedded(x, jnp.stack(deepstack) if deepstack else None)
