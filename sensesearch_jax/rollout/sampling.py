"""From logits to the distribution that tokens are drawn from, and the draw."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sensesearch_jax.model.attention.kv_cache import MASKED


class Sampling(NamedTuple):
    """Options of the distribution that tokens are drawn from.

    RL samples by temperature alone: of tokens left out by the others the trainer's distribution
    would know nothing.
    """

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # so many of the most likely tokens; 0: all
    # the fewest of the most likely tokens that have this probability together (arXiv 1904.09751)
    top_p: float = 1.0

    def check(self) -> Sampling:
        """These options, when they are in range.

        Raises:
            ValueError: a field out of range.
        """
        if self.temperature < 0:
            raise ValueError(
                f'temperature {self.temperature} is negative; give 0 for greedy decoding or a positive '
                'number.'
            )
        if self.top_k < 0:
            raise ValueError(
                f'top_k {self.top_k} is negative; give 0 for all tokens or a positive number.'
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f'top_p {self.top_p} is out of range; give a number above 0 and at most 1.'
            )
        return self


def distribution(logits: Float[Array, '*b v'], sampling: Sampling) -> Float[Array, '*b v']:
    """Log-probs that tokens are drawn from; those that cannot be drawn are hardly above -1e30.

    Temperature comes first, then top_k, then top_p of what is left, as in transformers. At
    temperature 0 the whole distribution is given back as it is. Tokens as likely as the last one
    let in come in as well.
    """
    if sampling.temperature == 0:
        return jax.nn.log_softmax(logits)
    found = jax.nn.log_softmax(logits / sampling.temperature)
    vocabulary = logits.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        least = jax.lax.top_k(found, sampling.top_k)[0][..., -1:]
        found = jax.nn.log_softmax(jnp.where(found < least, MASKED, found))
    if sampling.top_p < 1:
        falling = -jnp.sort(-found, axis=-1)
        before = jnp.cumsum(jnp.exp(falling), -1) - jnp.exp(falling)  # of all likelier tokens
        least = jnp.where(before < sampling.top_p, falling, 0.0).min(-1, keepdims=True)
        found = jax.nn.log_softmax(jnp.where(found < least, MASKED, found))
    return found


def draw(key: Key[Array, ''], log_probs: Float[Array, ' v']) -> Int[Array, '']:
    """One token of the distribution, a function of the key and the distribution alone.

    First a block of the vocabulary, by the blocks' probabilities, then a token in it, either by the
    largest sum of log-prob and Gumbel noise (Maddison et al., A* Sampling, arXiv 1411.0030, section
    2). That takes noise for some hundred numbers in the place of 152,064, which may then be the
    more exact one: jax's default ends at 15.94, and of tokens rarer than one in ten million, which
    may be many, a third as many came as should.
    """
    vocabulary, count = len(log_probs), _blocks(len(log_probs))
    blocks = jnp.pad(log_probs, (0, -vocabulary % count), constant_values=MASKED).reshape(count, -1)
    noise = jax.random.gumbel(key, (sum(blocks.shape),), mode='high')
    block = jnp.argmax(jax.nn.logsumexp(blocks, -1) + noise[:count])
    return block * blocks.shape[1] + jnp.argmax(blocks[block] + noise[count:])


def _blocks(vocabulary: int) -> int:
    """Number of blocks of a vocabulary: about as many as a block has tokens, a divisor if near."""
    root = math.isqrt(vocabulary)
    near = sorted(
        range(max(root // 4, 1), 4 * root + 1), key=lambda n: abs(math.log(n * n / vocabulary))
    )
    return next((n for n in near if vocabulary % n == 0), root)
