"""Our policy beside transformers' PyTorch one, block by block on the same input, in float32 and
bfloat16.

    python -m experiments.analysis.numerics --checkpoint=DIR [--image=FILE]

prints a table. `alone` is a block given what transformers'
block before it put out (but for the first of the tower, whose patches transformers puts in order
later), `so far` the same block at the end of our own chain; both are root mean squares relative to
transformers'. In bfloat16 no two programs agree, so each is measured against transformers in
float32: ours may be as far from it as theirs is, times FACTOR. Below the table stands how far the
patches are from transformers' two image processors, the one on PIL and, where torchvision is
installed, the one on it. Exits with 1 above a tolerance. Both run on the accelerator where jax and
PyTorch have one. Needs the extra `test` (PyTorch, transformers). Machine: the 7B needs 35 GB of host
or card memory and some minutes, in one type at a time.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# The card is shared with PyTorch.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from PIL import Image

from experiments.analysis.processors import differences, sentences
from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.rope import mrope_positions, text_rotary, vision_rotary
from sensesearch_jax.model.vision_tower import resampled
from sensesearch_jax.model.vision_windows import batch_images

TOLERANCE = 1e-4  # float32, of every block alone and of the chain
FACTOR = 2.0  # bfloat16, of transformers' own distance from its float32

CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'A Hugging Face directory of a policy of either family.', required=True
)
IMAGE = flags.DEFINE_string('image', None, 'A picture; noise of 300 × 200 by default.')

Values = dict[str, np.ndarray]


class Example(NamedTuple):
    """One picture between two texts."""

    tokens: np.ndarray  # [n]
    patches: np.ndarray  # [i, c]
    grid: tuple[int, int, int]


def preprocessor_of(folder: Path) -> Preprocessor:
    """The policy's own, or one of up to 256 visual tokens where it has none."""
    patch = PolicySizes.from_directory(folder).vision.patch_size
    names = 'processor_config.json', 'preprocessor_config.json'
    if any((folder / name).is_file() for name in names):
        return Preprocessor.read(folder)
    return Preprocessor(56 * 56, (2 * patch) ** 2 * 256, patch_size=patch)


def example(folder: Path, sizes: PolicySizes, image: Image.Image) -> Example:
    """The picture as the policy's own preprocessor cuts it, in random text."""
    patches, grid = preprocessor_of(folder).patches(image)
    random = np.random.default_rng(1)
    around = sizes.vision_start_token, sizes.vision_end_token
    text = random.integers(0, min(sizes.image_token, sizes.video_token, *around), 48)
    visual = grid[1] * grid[2] // sizes.vision.merge_size**2
    seen = [around[0], *[sizes.image_token] * visual, around[1]]
    return Example(np.concatenate([text[:16], seen, text[16:]]).astype(np.int32), patches, grid)


def theirs(folder: Path, sizes: PolicySizes, given: Example, dtype: str) -> Values:
    """Outputs of every block of transformers' model."""
    import torch
    from transformers import AutoModelForImageTextToText

    kind, device = getattr(torch, dtype), 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.allow_tf32 = False  # its own float32 would be rounder than ours
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=kind).to(device).eval()
    visual, text, found = model.model.visual, model.model.language_model, {}

    def note(name: str, tensor: torch.Tensor) -> None:
        found[name] = tensor.float().cpu().numpy().reshape(-1, tensor.shape[-1])

    def keep(name: str) -> Callable:
        def hook(_, __, out):
            # With the features of deepstack beside them, as our tower gives them.
            parts = (
                getattr(out, 'pooler_output', out),
                *(getattr(out, 'deepstack_features', None) or ()),
            )
            note(name, torch.cat(parts, -1))

        return hook

    visual.patch_embed.register_forward_hook(keep('patches'))
    for i, block in enumerate(visual.blocks):
        block.register_forward_hook(keep(f'vision {i}'))
    visual.register_forward_hook(keep('merger'))
    text.layers[0].register_forward_pre_hook(lambda _, given: note('embedding', given[0]))
    for i, layer in enumerate(text.layers):
        layer.register_forward_hook(keep(f'decoder {i}'))
    text.norm.register_forward_hook(keep('norm'))
    ids = torch.tensor(given.tokens[None], dtype=torch.long, device=device)
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == sizes.image_token).int(),
            pixel_values=torch.tensor(given.patches).to(device, kind),
            image_grid_thw=torch.tensor([given.grid], device=device),
        ).logits
    note('logits', logits)
    del model, visual, text, logits  # the hooks hold it in circles
    gc.collect()
    torch.cuda.empty_cache()
    return found


def ours(policy: Policy, given: Example, instead: Values | None = None) -> Values:
    """Outputs of every block of ours, in transformers' order of patches.

    Args:
        instead: what the next block is given in the place of our own values: each block alone.
    """
    sizes, dtype = policy.sizes, policy.language.embedding.dtype
    found: Values = {}

    def note(name: str, x: jax.Array, used: np.ndarray | None = None) -> jax.Array:
        """Keeps `x`, of padded rows those that are `used`; returns the input of the next block."""
        flat = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
        rows = slice(None) if used is None else used
        found[name] = flat[rows]
        if instead is None:
            return x
        given = np.zeros_like(flat)
        given[rows] = instead[name]
        return jnp.asarray(given, dtype).reshape(x.shape)

    patches, positions, valid, order = batch_images([(given.patches, given.grid)], sizes.vision)[:4]
    used = np.asarray(valid).reshape(-1)

    # transformers embeds patches in the processor's order and cuts windows afterwards.
    tower = policy.vision
    flat = tower.patch_embedding(jnp.asarray(given.patches, dtype))
    found['patches'] = np.asarray(flat, np.float32)
    x = tower.patch_embedding(jnp.asarray(patches, dtype))
    if tower.positions is not None:
        side = sizes.vision.position_side
        x = x + resampled(tower.positions[...], positions, side).astype(dtype)
    cos, sin = vision_rotary(
        positions, sizes.vision.width // sizes.vision.heads, sizes.vision.rope_theta
    )
    graph, stack = nnx.split(tower.blocks)
    run = jax.jit(
        lambda state, x, full: nnx.merge(graph, state)(x, cos, sin, jnp.asarray(valid), full),
        static_argnums=2,
    )
    merged, deep = [], sizes.vision.deepstack_blocks
    for i in range(sizes.vision.depth):
        full = i in sizes.vision.full_attention_blocks
        x = note(f'vision {i}', run(jax.tree.map(lambda p: p[i], stack), x, full), used)
        if i in deep:
            merged.append(tower.deepstack_features(x, deep.index(i)))
    count = given.grid[1] * given.grid[2] // sizes.vision.merge_size**2
    x = jnp.concatenate([tower.merger(x), *merged], axis=-1)
    x = note('merger', jnp.take_along_axis(x, order[..., None], axis=1)[:, :count])
    index = np.full((1, 1, len(given.tokens)), -1, np.int32)
    index[0, 0, given.tokens == sizes.image_token] = np.arange(count)
    x, deepstack = policy.embed(given.tokens[None, None], x, index)
    x = note('embedding', x)
    text, language = sizes.language, policy.language
    places = mrope_positions(
        given.tokens, [given.grid], sizes.image_token, sizes.vision.merge_size
    )[0]
    cos, sin = text_rotary(
        places[:, None, None],
        text.head_width,
        text.rope_theta,
        text.mrope_sections,
        text.interleaved,
    )
    graph, stack = nnx.split(language.layers)
    everything = jnp.ones((1, 1, len(given.tokens)), bool)

    def attention(*qkv):
        return attend(*qkv, everything)

    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, cos, sin, attention)[0])
    for i in range(text.layers):
        x = note(f'decoder {i}', run(jax.tree.map(lambda p: p[i], stack), x))
        if deepstack is not None and i < len(deepstack):
            x = x + deepstack[i]
    x = note('norm', language.norm(x))
    note('logits', policy.logits(x))
    return found


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of `other`."""
    return float(np.sqrt(np.mean((one - other) ** 2) / np.mean(other**2)))


def compare(folder: Path, image: Image.Image) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The columns of the table by block, and the sentences that say what is above its tolerance."""
    sizes = PolicySizes.from_directory(folder)
    given = example(folder, sizes, image)
    exact = theirs(folder, sizes, given, 'float32')
    policy = load_policy(folder, jnp.float32)
    chain, alone = ours(policy, given), ours(policy, given, exact)
    del policy
    rough = theirs(folder, sizes, given, 'bfloat16')
    half = ours(load_policy(folder, jnp.bfloat16), given)
    columns = {'alone': alone, 'so far': chain, 'ours bf16': half, 'theirs bf16': rough}
    rows, wrong = {}, []
    for name in chain:
        row = {column: distance(x[name], exact[name]) for column, x in columns.items()}
        rows[name], (one, so_far, mine, other) = row, row.values()
        for column, value in (('alone', one), ('so far', so_far)):
            if not value <= TOLERANCE:
                wrong.append(f'{name}: {column} {value:.1e} is above {TOLERANCE:.0e}.')
        if not mine <= FACTOR * other + TOLERANCE:
            wrong.append(f'{name}: in bfloat16 {mine:.1e} from float32, transformers {other:.1e}.')
    return rows, wrong


def main(_: list[str]) -> None:
    # else a GPU rounds float32 to 10 bits
    jax.config.update('jax_default_matmul_precision', 'highest')
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    image = Image.open(IMAGE.value).convert('RGB') if IMAGE.value else Image.fromarray(noise)
    folder = Path(CHECKPOINT.value)
    rows, wrong = compare(folder, image)
    apart = differences(preprocessor_of(folder), image)
    print(f'{"block":<12}' + ''.join(f'{column:>13}' for column in next(iter(rows.values()))))
    for name, row in rows.items():
        print(f'{name:<12}' + ''.join(f'{value:13.1e}' for value in row.values()))
    print(*sentences(apart), sep='\n')
    if apart['PIL'].share:
        wrong.append('The patches are not those of the processor on PIL.')
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == '__main__':
    app.run(main)
