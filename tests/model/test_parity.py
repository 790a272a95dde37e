"""Our policies equal transformers' PyTorch ones: block by block, whole, greedy text and
gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_policies import (
    PAD,
    Conversation,
    Rows,
    arranged,
    both,
    difference,
    feature_table,
    noise_picture,
    quick_jit,
    run_tokens,
)

from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.attention.kv_cache import KVCache
from sensesearch_jax.model.hf_checkpoint import tensor_table
from sensesearch_jax.model.rope import text_rotary, vision_rotary
from sensesearch_jax.model.vision_tower import resampled

NAMES = ('tied', 'untied', 'grouped', 'deep', 'sparse')
# Twelve more geometries, which the whole policies are compared on, more closely.
RANDOM = tuple(f'random-{seed}' for seed in range(12))
# Two of them, without experts and with, are compared each time.
SOME_RANDOM = tuple(
    pytest.param(name, marks=() if name in ('random-0', 'random-5') else pytest.mark.slow)
    for name in RANDOM
)
TOLERANCE, CLOSE = 1e-4, 1e-5


@functools.cache
def dialogue():
    """Pictures of odd sizes in the prompt and in two later turns; no side fills whole windows."""
    return Conversation.build(
        [
            7,
            noise_picture(200, 139, 1),
            3,
            noise_picture(260, 20, 2),
            9,
            noise_picture(120, 125, 3),
            12,
            noise_picture(30, 90, 4),
            8,
        ]
    )


class Pass(NamedTuple):
    """Outcome of a forward and backward pass over `dialogue()`.

    `features` are the tower's, padded [f, d]; `cache` holds the keys and values of all tokens.
    """

    logits: np.ndarray
    loss: float
    gradients: nnx.State
    features: np.ndarray
    cache: KVCache


@functools.cache
def whole(name):
    """One policy's pass, compiled once for all tests: () -> `Pass`."""
    _, policy = both(name)
    talk = dialogue()
    graph, state = nnx.split(policy, nnx.Param)
    rows = Rows.of(talk, arranged(policy, talk)[3].shape[1]).arrays()
    labels = np.where(talk.tokens == PAD, -100, talk.tokens)[1:]

    def mean_loss(state, batch):
        policy = nnx.merge(graph, state)
        features = feature_table(policy, batch)
        hidden, cache = run_tokens(policy, features, rows)
        logits = policy.logits(hidden[0, 0])
        log_probs = jax.nn.log_softmax(logits[:-1])
        chosen = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[:, None], -1)[:, 0]
        loss = -jnp.sum(jnp.where(labels >= 0, chosen, 0)) / np.sum(labels >= 0)
        return loss, (logits, features, KVCache.of(*cache, rows[-1]))

    compiled = quick_jit(jax.value_and_grad(mean_loss, has_aux=True))

    @functools.cache
    def run(brighter=0):
        """The picture of a later turn, the third, may be made brighter."""
        patches = list(talk.patches)
        patches[2] = patches[2] + brighter
        batch = arranged(policy, Conversation(talk.tokens, talk.grids, patches))
        (loss, (logits, features, cache)), gradients = compiled(state, batch)
        return Pass(np.asarray(logits), float(loss), gradients, np.asarray(features), cache)

    return run


@functools.cache
def reference(name):
    """Transformers' logits, loss and gradients of `dialogue()`."""
    model, _ = both(name)
    logits = model(**dialogue().for_reference()).logits[0]
    labels = torch.tensor(np.where(dialogue().tokens == PAD, -100, dialogue().tokens)[1:]).long()
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels)
    loss.backward()
    return (
        logits.detach().numpy(),
        loss.item(),
        {n: p.grad.numpy() for n, p in model.named_parameters()},
    )


def split_layers(stack):
    """A scanned module's layers: the graph they share and the state of each."""
    graph, state = nnx.split(stack)
    depth = jax.tree.leaves(state)[0].shape[0]
    return graph, [jax.tree.map(lambda leaf: leaf[index], state) for index in range(depth)]


# The whole policy is compared in all geometries.
BY_PARTS = pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in ('tied', 'sparse') else pytest.mark.slow)
        for name in NAMES
    ],
)


def record(modules, forward):
    """Outputs of each PyTorch module during `forward`, and its result."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: seen.append(out)) for module in modules
    ]
    with torch.no_grad():
        result = forward()
    for hook in hooks:
        hook.remove()
    return [tensor.numpy() for tensor in seen], result


@BY_PARTS
def test_vision_tower_block_by_block(name):
    model, policy = both(name)
    talk, theirs = dialogue(), model.model.visual
    (embedded, *blocks), out = record(
        [theirs.patch_embed, *theirs.blocks],
        lambda: theirs(torch.tensor(np.concatenate(talk.patches)), torch.tensor(talk.grids)),
    )

    tower, sizes = policy.vision, policy.sizes.vision
    patches, positions, valid, order = arranged(policy, talk)
    real = np.asarray(valid)
    assert (
        difference(tower.patch_embedding(jnp.asarray(np.concatenate(talk.patches))), embedded)
        < TOLERANCE
    )
    x = tower.patch_embedding(patches)
    if tower.positions is not None:
        x = x + resampled(tower.positions[...], positions, sizes.position_side)
    cos, sin = vision_rotary(positions, sizes.width // sizes.heads, sizes.rope_theta)
    graph, states = split_layers(tower.blocks)
    block = {
        full: quick_jit(
            lambda state, x, full=full: nnx.merge(graph, state)(x, cos, sin, valid, full)
        )
        for full in (False, True)
    }
    for index, (state, expected) in enumerate(zip(states, blocks, strict=True)):
        x = block[index in sizes.full_attention_blocks](state, x)
        assert difference(np.asarray(x)[real], expected) < TOLERANCE, f'block {index}'

    index = talk.feature_index(order.shape[1])
    merged = out.pooler_output.numpy()
    in_reading_order = jnp.take_along_axis(tower.merger(x), order[..., None], 1).reshape(
        -1, merged.shape[1]
    )
    assert difference(in_reading_order[index[index >= 0]], merged) < TOLERANCE
    deepstack = [f.numpy() for f in getattr(out, 'deepstack_features', None) or ()]
    assert len(deepstack) == len(sizes.deepstack_blocks)
    parts = np.split(whole(name)().features[index[index >= 0]], 1 + len(deepstack), axis=-1)
    for part, expected in zip(parts, [merged, *deepstack], strict=True):
        assert difference(part, expected) < TOLERANCE


@BY_PARTS
def test_decoder_layer_by_layer(name):
    model, policy = both(name)
    talk, text = dialogue(), model.model.language_model
    (embedded, *layers, normed), _ = record(
        [text.embed_tokens, *text.layers, text.norm], lambda: model(**talk.for_reference())
    )

    language, sizes = policy.language, policy.sizes.language
    table = whole(name)().features
    tokens, index, positions, valid = Rows.of(talk, len(table) // len(talk.grids)).arrays()
    x, deepstack = policy.embed(tokens, table[None], index)
    is_text = talk.tokens != PAD
    np.testing.assert_array_equal(np.asarray(x)[0, 0, is_text], embedded[0, is_text])
    cos, sin = text_rotary(
        positions, sizes.head_width, sizes.rope_theta, sizes.mrope_sections, sizes.interleaved
    )
    graph, states = split_layers(language.layers)

    def attention(*qkv):
        return attend(*qkv, valid)

    layer = quick_jit(lambda state, x: nnx.merge(graph, state)(x, cos, sin, attention)[0])
    for number, (state, expected) in enumerate(zip(states, layers, strict=True)):
        x = layer(state, x)
        assert difference(x[0], expected) < TOLERANCE, f'layer {number}'
        if deepstack is not None and number < len(deepstack):
            x = x + deepstack[number]
    assert difference(language.norm(x)[0], normed) < TOLERANCE


@pytest.mark.parametrize('name', (*NAMES, *SOME_RANDOM))
def test_whole_policy(name):
    logits, loss, *_ = whole(name)()
    expected, expected_loss, _ = reference(name)
    tolerance = CLOSE if name in RANDOM else TOLERANCE
    assert difference(logits, expected) < tolerance
    assert abs(loss - expected_loss) < tolerance * expected_loss


@pytest.mark.parametrize('name', SOME_RANDOM)
def test_features_of_random_geometries(name):
    """The tower's output and that of deepstack, side by side."""
    model, policy = both(name)
    talk = dialogue()
    with torch.no_grad():
        out = model.model.visual(
            torch.tensor(np.concatenate(talk.patches)), torch.tensor(talk.grids)
        )
    expected = torch.cat([out.pooler_output, *out.deepstack_features], -1).numpy()
    index = talk.feature_index(arranged(policy, talk)[3].shape[1])
    assert difference(whole(name)().features[index[index >= 0]], expected) < CLOSE


@pytest.mark.parametrize('name', (*NAMES, *SOME_RANDOM))
def test_gradients(name):
    """Of the mean cross-entropy of the next text token, for every parameter of tower, merger and
    decoder."""
    _, policy = both(name)
    theirs = dict(reference(name)[2])
    for row in tensor_table(policy, whole(name)().gradients):
        ours = np.asarray(row.parameter[...])
        for key, gradient in zip(row.names, ours if row.stacked else [ours], strict=True):
            gradient = gradient if row.parameter.layout in ('same', 'paired') else gradient.T
            expected = theirs.pop(key)
            # A file has an expert's matrices the other way round than transformers 5.
            expected = expected.swapaxes(1, 2) if 'experts' in key else expected
            assert np.abs(expected).max() > 0
            assert difference(gradient.reshape(row.shape), expected) < TOLERANCE, key
    assert not theirs


@pytest.mark.parametrize('name', (*NAMES, *SOME_RANDOM))
def test_greedy_continuation(name):
    """64 tokens, of which each is the one that transformers finds most likely after the others; ours
    has the prompt's keys and values as a context and runs only the new ones."""
    model, policy = both(name)
    talk, steps = dialogue(), 64
    _, following = talk.positions()
    graph, state = nnx.split(policy, nnx.Param)

    def continuation(state, context, first):
        policy = nnx.merge(graph, state)
        positions = jnp.broadcast_to(following + jnp.arange(steps), (3, 1, 1, steps))

        def step(count, tokens):
            valid = (jnp.arange(steps) < count)[None, None]
            embedded = policy.embed(tokens[None, None])
            hidden, _ = policy.language(embedded, positions, valid, (context,))
            return tokens.at[count].set(jnp.argmax(policy.logits(hidden[0, 0, count - 1])))

        return jax.lax.fori_loop(1, steps, step, jnp.zeros(steps, jnp.int32).at[0].set(first))

    first = int(whole(name)().logits[-1].argmax())
    ours = np.asarray(quick_jit(continuation)(state, whole(name)().cache, first))
    with torch.no_grad():
        prompt = model(**talk.for_reference())
        new = torch.tensor(ours[None], dtype=torch.long)
        more = model(input_ids=new, past_key_values=prompt.past_key_values)
    theirs = torch.cat([prompt.logits[0, -1:], more.logits[0, :-1]]).argmax(-1)
    assert ours.tolist() == theirs.tolist()
    # A continuation that soon repeats itself would say little.
    assert name in RANDOM or len(set(ours.tolist())) > 8


@pytest.mark.parametrize('name', NAMES)
def test_a_crops_pixels_change_the_logits(name):
    """A picture of a later turn reaches everything from its place on and nothing before."""
    before, after = whole(name)().logits, whole(name)(brighter=0.5).logits
    pads = np.flatnonzero(dialogue().tokens == PAD)
    place = pads[sum(h * w // 4 for _, h, w in dialogue().grids[:2])]
    np.testing.assert_array_equal(before[:place], after[:place])
    assert (np.abs(before[place:] - after[place:]).max(axis=-1) > 1e-3).all()


def test_turn_after_turn_equals_whole():
    """Each turn runs only its own tokens; one context, growing in place, stands for all the turns
    before."""
    _, policy = both('grouped')
    talk = dialogue()
    theirs = whole('grouped')().logits
    table = whole('grouped')().features
    index = talk.feature_index(len(table) // len(talk.grids))
    graph, state = nnx.split(policy, nnx.Param)

    @quick_jit
    def turn(state, context, rows):
        policy = nnx.merge(graph, state)
        hidden, new = run_tokens(policy, table, rows, (context,))
        return policy.logits(hidden)[0, 0], new

    length, size, sizes = len(talk.tokens), 64, policy.sizes.language
    store = np.zeros((2, sizes.layers, 1, 1, length, sizes.kv_heads, sizes.head_width), np.float32)
    # of each picture's placeholders
    last = np.flatnonzero(np.diff((talk.tokens == PAD).astype(int)) == -1)
    ends = (last + 3).tolist()  # two tokens later: past the end token and one of text
    done, following = 0, 0
    for picture, end in enumerate([*ends, length]):
        part = Conversation(talk.tokens[done:end], talk.grids[picture : picture + 1], [])
        rows = Rows.of(part, 0, size, following)
        rows.index[..., : end - done] = index[done:end]
        context = KVCache.of(*jnp.asarray(store), jnp.arange(length)[None, None] < done)
        logits, new = turn(state, context, rows.arrays())
        assert difference(logits[: end - done], theirs[done:end]) < TOLERANCE
        store[:, :, :, :, done:end] = np.stack([new.keys, new.values])[:, :, :, :, : end - done]
        done, (_, following) = end, part.positions(following)
