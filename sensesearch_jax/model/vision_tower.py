"""Vision tower: patches at native aspect ratio, window and full attention, mergers.

Patches come in window order, each window padded to its full size (vision_windows.py), so that window
attention is a batched product for images of any shape, and images of one bucket share a program.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.model.attention import gpu_cudnn, tpu_splash
from sensesearch_jax.model.attention.kv_cache import MASKED
from sensesearch_jax.model.parameters import (
    GatedMLP,
    LayerNorm,
    Linear,
    PlainMLP,
    RMSNorm,
    parameter,
)
from sensesearch_jax.model.rope import rotate, vision_rotary
from sensesearch_jax.model.sizes import VisionSizes
from sensesearch_jax.runtime.mesh import current, platform, spec

PREFIX = 'model.visual'
MANY = 2048  # patches per image from which all scores at once take too much memory
TILE = 256  # queries whose scores are computed at a time; of fewer, a CPU's caches hold all


def attend_all(
    q: Float[Array, 'n i h e'],
    k: Float[Array, 'n i h e'],
    v: Float[Array, 'n i h e'],
    valid: Bool[Array, 'n i'],
) -> Float[Array, 'n i h e']:
    """Full attention over the valid patches of each row: an image, or one window of it.

    Args:
        q: queries after rotation.
        k: keys after rotation.
        v: values.
        valid: False on padding.
    """
    if q.shape[1] < (TILE if platform() == 'cpu' else MANY):
        return attend_all_at_once(q, k, v, valid)
    half = gpu_cudnn.cudnn_takes(q.dtype)
    implementation = {
        'tpu': tpu_splash.attend_all_splash,
        'gpu': gpu_cudnn.attend_all_cudnn if half else attend_all_in_tiles,
    }.get(platform(), attend_all_in_tiles)
    mesh = current()
    if mesh is None:
        return implementation(q, k, v, valid)
    heads = spec(('rows', None, 'heads', None), q.shape, mesh)
    rows = spec(('rows', None), valid.shape, mesh)
    return jax.shard_map(
        implementation, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(q, k, v, valid)


def attend_all_in_tiles(q, k, v, valid):
    """Tiled implementation of `attend_all`: one head of one row at a time, and a few of its queries.

    A 4K picture has 42,000 patches, whose scores would be 113 GB. On a CPU the scores of a tile stay in the
    processor's caches, and are computed again for a gradient.

    Args:
        q: queries [N, I, H, E] after rotation.
        k: keys [N, I, H, E] after rotation.
        v: values [N, I, H, E].
        valid: [N, I], False on padding.
    """
    n, i, h, e = q.shape
    size = math.gcd(i, TILE)

    def head(x):
        q, k, v, valid = x  # [i, e], [i]

        @jax.checkpoint
        def tile(q):
            scores = jnp.einsum('ie,je->ij', q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(jnp.where(valid, scores, MASKED), axis=-1)
            return jnp.einsum('ij,je->ie', weights.astype(v.dtype), v)

        return jax.lax.map(tile, q.reshape(-1, size, e)).reshape(i, e)

    def by_head(x):
        return jnp.moveaxis(x, 2, 1).reshape(n * h, i, e)

    heads = *map(by_head, (q * e**-0.5, k, v)), jnp.repeat(valid, h, axis=0)
    return jnp.moveaxis(jax.lax.map(head, heads).reshape(n, h, i, e), 1, 2)


def attend_all_at_once(q, k, v, valid):
    """Implementation of `attend_all` with all scores in memory.

    Args:
        q: queries [N, I, H, E] after rotation.
        k: keys [N, I, H, E] after rotation.
        v: values [N, I, H, E].
        valid: [N, I], False on padding.
    """
    scores = jnp.einsum(
        'nihe,njhe->nhij', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], scores, MASKED), axis=-1)
    return jnp.einsum('nhij,njhe->nihe', weights.astype(v.dtype), v)


class VisionBlocks(nnx.Module):
    """Blocks of the tower, each parameter stacked along a leading layer axis."""

    def __init__(self, sizes: VisionSizes, rngs: nnx.Rngs):
        d, n, hf = sizes.width, sizes.depth, PREFIX + '.blocks.{}'
        make = functools.partial(Linear, rngs, bias=True, layers=n)
        norm = LayerNorm if sizes.layer_norm else RMSNorm
        self.attention_norm = norm(rngs, d, f'{hf}.norm1', layers=n)
        self.qkv = make(d, 3 * d, ('embed', 'heads'), f'{hf}.attn.qkv')
        self.out = make(d, d, ('heads', 'embed'), f'{hf}.attn.proj')
        self.mlp_norm = norm(rngs, d, f'{hf}.norm2', layers=n)
        self.mlp = (
            PlainMLP(rngs, (d, sizes.mlp_width, d), f'{hf}.mlp', tanh=True, layers=n)
            if sizes.layer_norm
            else GatedMLP(rngs, d, sizes.mlp_width, f'{hf}.mlp', bias=True, layers=n)
        )
        self.heads = sizes.heads
        self.window_patches = (sizes.window_tokens * sizes.merge_size) ** 2

    @jax.named_scope('vision_block')
    def __call__(self, x: Float[Array, 'n i d'], cos, sin, valid: Bool[Array, 'n i'], full: bool):
        """Output of one block, whose parameters have no layer axis here.

        Args:
            x: hidden states.
            cos: cosines of the rotary angles [N, I, E].
            sin: sines of the rotary angles [N, I, E].
            valid: False on padding.
            full: attention over the image; within windows if False.
        """
        n, i, d = x.shape
        q, k, v = jnp.split(
            self.qkv(self.attention_norm(x)).reshape(n, i, 3 * self.heads, -1), 3, axis=2
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        if not full:

            def windows(z):
                return z.reshape(n * i // self.window_patches, self.window_patches, *z.shape[2:])

            q, k, v, valid = map(windows, (q, k, v, valid))
        with jax.named_scope('attention'):
            x = x + self.out(attend_all(q, k, v, valid).reshape(n, i, d))
        with jax.named_scope('mlp'):
            return x + self.mlp(self.mlp_norm(x))


class PatchMerger(nnx.Module):
    """Patch merger: four neighbouring patches become one visual token of the decoder's width.

    With `layers` it is a stack of mergers for deepstack, which normalize the four patches together.
    """

    def __init__(self, sizes: VisionSizes, rngs: nnx.Rngs, hf: str, layers: int | None = None):
        self.patches, self.fold_first = sizes.merge_size**2, layers is not None
        wide = sizes.width * self.patches
        norm, names = (
            (LayerNorm, ('norm', 'linear_fc1', 'linear_fc2'))
            if sizes.layer_norm
            else (RMSNorm, ('ln_q', 'mlp.0', 'mlp.2'))
        )
        width = wide if self.fold_first else sizes.width
        self.norm = norm(rngs, width, f'{hf}.{names[0]}', layers=layers)
        widths = wide, wide, sizes.out_width
        self.mlp = PlainMLP(rngs, widths, hf, tanh=False, layers=layers, names=names[1:])

    def __call__(self, x: Float[Array, 'n i d']) -> Float[Array, 'n m o']:
        """Merged visual tokens of patches in window order."""
        n, i, d = x.shape

        def folded(z):
            return z.reshape(n, i // self.patches, self.patches * d)

        return self.mlp(self.norm(folded(x)) if self.fold_first else folded(self.norm(x)))


def resampled(
    table: Float[Array, 't d'], positions: Int[Array, 'n i 2'], side: int
) -> Float[Array, 'n i d']:
    """Learned positions of patches: a square table, stretched bilinearly over each image's grid such
    that their corners meet.

    Args:
        table: of side × side positions in reading order.
        positions: row and column of each patch; 0 on padding.
        side: of the table.
    """
    last = jnp.maximum(positions.max(axis=1, keepdims=True), 1)
    source = positions.astype(jnp.float32) * (side - 1) / last
    low = jnp.floor(source)
    weights = (1 - (source - low), source - low)
    taps = tuple(jnp.minimum(low.astype(jnp.int32) + i, side - 1) for i in (0, 1))
    return sum(
        table[taps[i][..., 0] * side + taps[j][..., 1]]
        * (weights[i][..., 0] * weights[j][..., 1])[..., None]
        for i in (0, 1)
        for j in (0, 1)
    )


class VisionTower(nnx.Module):
    """Vision tower: features of the merged visual tokens of N images."""

    def __init__(self, sizes: VisionSizes, rngs: nnx.Rngs):
        self.sizes = sizes
        self.patch_embedding = Linear(
            rngs,
            sizes.patch_width,
            sizes.width,
            ('patch', 'embed'),
            f'{PREFIX}.patch_embed.proj',
            layout='flattened',
            bias=sizes.layer_norm,
        )
        table = (sizes.position_side**2, sizes.width), ('patch', 'embed')
        self.positions = (
            parameter(rngs, *table, f'{PREFIX}.pos_embed.weight') if sizes.position_side else None
        )
        self.blocks = VisionBlocks(sizes, rngs)
        self.merger = PatchMerger(sizes, rngs, f'{PREFIX}.merger')
        deep, hf = len(sizes.deepstack_blocks), PREFIX + '.deepstack_merger_list.{}'
        self.deepstack = PatchMerger(sizes, rngs, hf, layers=deep) if deep else None

    @jax.named_scope('vision_tower')
    def __call__(
        self,
        patches: Float[Array, 'n i c'],
        positions: Int[Array, 'n i 2'],
        valid: Bool[Array, 'n i'],
        order: Int[Array, 'n m'],
    ) -> Float[Array, 'n m w']:
        """Visual features: each image's merged tokens in reading order, with what deepstack adds to the
        decoder's first layers beside them [N, M, (1 + K) · O].

        Args:
            patches: patches in window order with padding, I a multiple of a window's patches.
            positions: row and column of each patch.
            valid: False on padding.
            order: place in window order of each merged token in reading order; any on padding.
        """
        cos, sin = vision_rotary(
            positions, self.sizes.width // self.sizes.heads, self.sizes.rope_theta
        )
        graph, stacked = nnx.split(self.blocks)
        x = self.patch_embedding(patches.astype(self.patch_embedding.kernel[...].dtype))
        if self.positions is not None:
            side = self.sizes.position_side
            x = x + resampled(self.positions[...], positions, side).astype(x.dtype)
        features = []
        # Consecutive blocks of one kind are one scan, so that the kind is static and no program
        # branches on it; it ends where deepstack wants its output.
        deep = self.sizes.deepstack_blocks
        kinds = [
            (layer in self.sizes.full_attention_blocks, sum(block < layer for block in deep))
            for layer in range(self.sizes.depth)
        ]
        for (full, _), run in itertools.groupby(range(self.sizes.depth), kinds.__getitem__):
            first, *rest = run
            part = jax.tree.map(lambda p: p[first : first + len(rest) + 1], stacked)

            def block(x, parameters, full=full):
                return nnx.merge(graph, parameters)(x, cos, sin, valid, full), None

            x, _ = jax.lax.scan(block, x, part)
            if first + len(rest) in deep:
                features.append(self.deepstack_features(x, deep.index(first + len(rest))))
        features = jnp.concatenate([self.merger(x), *features], axis=-1)
        return jnp.take_along_axis(features, order[..., None], axis=1)

    def deepstack_features(self, x: Float[Array, 'n i d'], index: int) -> Float[Array, 'n m o']:
        """Features of one of the deepstack mergers, of patches in window order."""
        graph, stacked = nnx.split(self.deepstack)
        return nnx.merge(graph, jax.tree.map(lambda p: p[index], stacked))(x)
