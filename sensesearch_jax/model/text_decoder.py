"""Text decoder: grouped-query attention with M-RoPE, scanned over layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sensesearch_jax.model.attention.dispatch import attend
from sensesearch_jax.model.attention.kv_cache import ATTENDED, KVCache
from sensesearch_jax.model.experts import Experts
from sensesearch_jax.model.parameters import GatedMLP, Linear, RMSNorm, parameter, read_trained
from sensesearch_jax.model.rope import rotate, text_rotary
from sensesearch_jax.model.sizes import LanguageSizes
from sensesearch_jax.runtime.mesh import constrain

PREFIX = 'model.language_model'
UNROLLED = 4  # up to so many layers are unrolled: XLA on a CPU runs their loop 20 % slower


def attention_saveable(primitive, *operands, **parameters) -> bool:
    """Remat policy that saves the residuals of attention: its output, and the logarithms of its sums.

    Ours and splash name them (ATTENDED); cuDNN's are the results of a primitive.
    """
    named = jax.checkpoint_policies.save_only_these_names(ATTENDED)(
        primitive, *operands, **parameters
    )
    return named or primitive.name.startswith('dot_product_attention_fwd')


# Remat policies: the activations of a layer that are saved for the backward pass beside its input.
# The others are computed again.
REMAT = {
    'none': None,  # all are saved
    # products with parameters, and attention
    'dots': jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, attention_saveable
    ),
    'attention': attention_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


def rematted(layer: Callable, name: str, unrolled: bool) -> Callable:
    """Layer under a remat policy.

    Args:
        layer: the function of one layer.
        name: of the policy, a key of REMAT.
        unrolled: whether the layers are unrolled, and not a loop.

    Raises:
        ValueError: there is no such policy.
    """
    if name not in REMAT:
        raise ValueError(f"remat '{name}' is unknown; choose from {', '.join(REMAT)}.")
    # Across the steps of a loop the compiler cannot merge the recomputation with the first one, so
    # common-subexpression elimination need not be prevented there.
    return (
        layer if name == 'none' else jax.checkpoint(layer, policy=REMAT[name], prevent_cse=unrolled)
    )


def between_layers(x: Float[Array, 'b g s d']) -> Float[Array, 'b g s d']:
    """Sharding of a layer's input along tokens too: it is saved for the backward pass, by every
    device of the sequence and tensor axes if it were replicated there.
    """
    return constrain(x, ('rows', None, 'tokens', None))


# Attended values [b, g, s, h, e] of queries [b, g, s, h, e], keys and values [b, g, s, k, e], all
# after rotation.
Attention = Callable[[Array, Array, Array], Array]


class Embedded(NamedTuple):
    """Embeddings of tokens, and what deepstack adds to them after each of the first K layers, which is
    0 on text; None where all is text, or where nothing is added.
    """

    tokens: Float[Array, 'b g s d']
    deepstack: Float[Array, 'k b g s d'] | None


class KeysValues(NamedTuple):
    """Keys and values of the tokens of one forward pass, of all layers."""

    keys: Float[Array, 'l b g s k e']
    values: Float[Array, 'l b g s k e']


class DecoderLayers(nnx.Module):
    """Decoder layers, each parameter stacked along a leading layer axis."""

    def __init__(self, sizes: LanguageSizes, rngs: nnx.Rngs):
        d, e, n = sizes.width, sizes.head_width, sizes.layers
        hf = PREFIX + '.layers.{}'
        make = functools.partial(Linear, rngs, layers=n)
        self.attention_norm = RMSNorm(
            rngs, d, f'{hf}.input_layernorm', epsilon=sizes.norm_epsilon, layers=n
        )
        bias, kv = not sizes.query_norm, ('embed', 'kv_heads')
        self.query = make(
            d, sizes.heads * e, ('embed', 'heads'), f'{hf}.self_attn.q_proj', bias=bias
        )
        self.key = make(d, sizes.kv_heads * e, kv, f'{hf}.self_attn.k_proj', bias=bias)
        self.value = make(d, sizes.kv_heads * e, kv, f'{hf}.self_attn.v_proj', bias=bias)
        self.query_norm, self.key_norm = (
            RMSNorm(rngs, e, f'{hf}.self_attn.{name}', epsilon=sizes.norm_epsilon, layers=n)
            if sizes.query_norm
            else None
            for name in ('q_norm', 'k_norm')
        )
        self.out = make(sizes.heads * e, d, ('heads', 'embed'), f'{hf}.self_attn.o_proj')
        self.mlp_norm = RMSNorm(
            rngs, d, f'{hf}.post_attention_layernorm', epsilon=sizes.norm_epsilon, layers=n
        )
        self.mlp = (
            Experts(sizes, rngs, f'{hf}.mlp')
            if sizes.experts
            else GatedMLP(rngs, d, sizes.mlp_width, f'{hf}.mlp', bias=False, layers=n)
        )
        self.head_width = e

    @jax.named_scope('decoder_layer')
    def __call__(self, x, cos, sin, attention: Attention, added: Array | None = None):
        """Output and keys and values of one layer, whose parameters have no layer axis here.

        Args:
            x: hidden states [B, G, S, D].
            cos: cosines of the rotary angles [B, G, S, E].
            sin: sines of the rotary angles [B, G, S, E].
            attention: attends over queries, keys and values.
            added: to the output [B, G, S, D], for deepstack.
        """
        b, g, s, _ = x.shape
        y = self.attention_norm(x)

        def split(z, norm=None):
            z = z.reshape(b, g, s, -1, self.head_width)
            return z if norm is None else norm(z)

        with jax.named_scope('attention'):
            queries = rotate(split(self.query(y), self.query_norm), cos, sin)
            keys = rotate(split(self.key(y), self.key_norm), cos, sin)
            values = split(self.value(y))
            x = x + self.out(attention(queries, keys, values).reshape(b, g, s, -1))
        with jax.named_scope('mlp'):
            x = x + self.mlp(self.mlp_norm(x))
        return between_layers(x if added is None else x + added), (keys, values)


class LanguageModel(nnx.Module):
    """Decoder from embeddings to hidden states, with the embedding and output matrices.

    The caller applies the head, where log-probs or samples are wanted.
    """

    def __init__(self, sizes: LanguageSizes, rngs: nnx.Rngs):
        self.sizes = sizes
        table = (sizes.vocabulary, sizes.width), ('vocabulary', 'embed')
        self.embedding = parameter(rngs, *table, f'{PREFIX}.embed_tokens.weight')
        self.layers = DecoderLayers(sizes, rngs)
        self.norm = RMSNorm(rngs, sizes.width, f'{PREFIX}.norm', epsilon=sizes.norm_epsilon)
        self.untied_head = None if sizes.tied_head else parameter(rngs, *table, 'lm_head.weight')

    @property
    def head(self) -> Float[Array, 'v d']:
        """Output matrix: logits = hidden @ head.T."""
        return (self.embedding if self.untied_head is None else self.untied_head)[...]

    def __call__(
        self,
        embedded: Embedded,
        positions: Int[Array, '3 b g s'],
        valid: Bool[Array, 'b g s'],
        caches: tuple[KVCache, ...] = (),
    ) -> tuple[Float[Array, 'b g s d'], KeysValues]:
        """Forward pass of new tokens, causal over them and full over the KV caches.

        Args:
            embedded: the new tokens, see `Policy.embed`.
            positions: M-RoPE positions, see model/rope.py.
            valid: False on padding.
            caches: keys and values of earlier tokens, with a leading layer axis.

        Returns:
            the hidden states after the last norm, and the keys and values of these tokens.
        """
        per_layer = tuple(c._replace(valid=None) for c in caches)

        def with_masks(of_layer):
            return tuple(kv._replace(valid=c.valid) for kv, c in zip(of_layer, caches))

        return self.run(
            embedded,
            positions,
            lambda *qkv, of_layer: attend(*qkv, valid, with_masks(of_layer)),
            per_layer,
        )

    def run(
        self,
        embedded: Embedded,
        positions: Int[Array, '3 b g s'],
        attention: Callable[..., Array],
        per_layer: tuple[KVCache, ...] = (),
        *,
        remat: str = 'none',
        perturbations: nnx.State | None = None,
    ) -> tuple[Float[Array, 'b g s d'], KeysValues]:
        """Forward pass through all layers, with an attention of the caller's.

        Args:
            embedded: the tokens, see `Policy.embed`.
            positions: M-RoPE positions, see model/rope.py.
            attention: an `Attention` that is also given one layer's slice of `per_layer`, as
                `of_layer`.
            per_layer: arrays with a leading layer axis.
            remat: remat policy of a layer, a name of REMAT.
            perturbations: zeros for each parameter of the layers that is trained, by which the loss is
                differentiated in place of the parameter; see `parameters.read`.

        Returns:
            the hidden states after the last norm, and the keys and values of these tokens.

        Raises:
            ValueError: there is no remat policy of that name.
        """
        rotary, (graph, stacked) = self._rotary(positions), nnx.split(self.layers)
        deepstack = embedded.deepstack

        def added(number):
            """To the output of a layer. All layers are one program, so most of them add zeros."""
            last = len(deepstack) - 1
            return jnp.where(number <= last, deepstack[jnp.minimum(number, last)], 0)

        def layer(x, scanned):
            parameters, of_layer, zeros, number = scanned
            if zeros is not None:
                parameters = read_trained(parameters, zeros)
            return nnx.merge(graph, parameters)(
                x,
                *rotary,
                functools.partial(attention, of_layer=of_layer),
                None if deepstack is None else added(number),
            )

        unrolled = self.sizes.layers <= UNROLLED
        numbers = None if deepstack is None else jnp.arange(self.sizes.layers)
        x, (keys, values) = jax.lax.scan(
            rematted(layer, remat, unrolled),
            between_layers(embedded.tokens),
            (stacked, per_layer, perturbations, numbers),
            unroll=unrolled,
        )
        return self.norm(x), KeysValues(keys, values)

    def _rotary(self, positions: Int[Array, '3 b g s']) -> tuple[Array, Array]:
        s = self.sizes
        return text_rotary(positions, s.head_width, s.rope_theta, s.mrope_sections, s.interleaved)

    def unstack(self) -> tuple[nnx.State, ...]:
        """Parameters of each layer as arrays of their own, for `run_unstacked`.

        In a loop over tokens a slice of a stacked array is a copy: of all parameters for each token.
        """
        _, stacked = nnx.split(self.layers)
        return tuple(jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(self.sizes.layers))

    def run_unstacked(
        self,
        embeddings: Float[Array, 'b g s d'],
        positions: Int[Array, '3 b g s'],
        valid: Bool[Array, 'b g s'],
        unstacked: tuple[nnx.State, ...],
        caches: tuple[tuple[KVCache, ...], ...],
    ) -> tuple[Float[Array, 'b g s d'], tuple[KeysValues, ...]]:
        """Forward pass of text like `__call__`, over unstacked layers.

        Args:
            embeddings: of the new tokens, which are text.
            positions: M-RoPE positions, see model/rope.py.
            valid: False on padding.
            unstacked: parameters of each layer, see `unstack`.
            caches: keys and values of earlier tokens for each layer, without a layer axis.

        Returns:
            the hidden states after the last norm, and for each layer the keys and values of these
            tokens, with a layer axis of 1.
        """
        rotary, graph, x, found = self._rotary(positions), nnx.split(self.layers)[0], embeddings, []
        for parameters, now in zip(unstacked, caches, strict=True):
            x, kv = nnx.merge(graph, parameters)(
                x, *rotary, lambda *qkv, now=now: attend(*qkv, valid, now)
            )
            found.append(KeysValues(*(y[None] for y in kv)))
        return self.norm(x), tuple(found)
