"""From logits to the distribution that tokens are drawn from."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sensesearch_jax.policy.context import MASKED


class Sampling(NamedTuple):
    """Which tokens can be drawn, and how readily.

    RL samples by temperature alone: of tokens left out by the others the trainer's distribution would know nothing.
    """

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # so many of the most likely tokens; 0: all
    top_p: float = 1.0  # the fewest of the most likely tokens that have this probability together (arXiv 1904.09751)

    def check(self) -> Sampling:
        """Itself.

        Raises:
            ValueError: a field out of range.
        """
        if self.temperature < 0:
            raise ValueError(f'temperature {self.temperature} is negative; give 0 for greedy decoding or a positive '
                             'number.')
        if self.top_k < 0:
            raise ValueError(f'top_k {self.top_k} is negative; give 0 for all tokens or a positive number.')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p {self.top_p} is out of range; give a number above 0 and at most 1.')
        return self


def distribution(logits: Float[Array, '*b v'], sampling: Sampling) -> Float[Array, '*b v']:
    """Log-probs that tokens are drawn from; those that cannot be drawn are hardly above -1e30.

    Temperature comes first, then top_k, then top_p of what is left, as in transformers. At temperature 0 the whole
    distribution is given back as it is. Tokens as likely as the last one let in come in as well.
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
