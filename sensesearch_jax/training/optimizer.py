"""The optimiser: AdamW with clipping and a schedule, what decays, and updates that are not finite
left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# matrices, by the names that their declarations give them
DECAYED = (
    'kernel', 'embedding', 'untied_head', 'positions', 'gate_up', 'down', 'lora_a', 'lora_b',
)  # fmt: skip
SPARED = ('bias', 'scale')  # biases and norms, stacked over layers or not


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm.

    Args:
        config: learning_rate, schedule ('constant' | 'cosine'), warmup, b1, b2, eps, weight_decay,
            clip_norm. Only matrices decay, see `decays`.
        steps: updates that the cosine comes down over.

    Raises:
        ValueError: an unknown schedule.
    """
    if config.schedule == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(
            0,
            config.learning_rate,
            min(config.warmup, steps // 2),
            max(steps, 1) + 1,
            config.learning_rate * 0.05,
        )
    elif config.schedule == 'constant':
        schedule = optax.linear_schedule(0, config.learning_rate, max(config.warmup, 1))
    else:
        raise ValueError(f"schedule '{config.schedule}' is unknown; choose 'constant' or 'cosine'.")

    def rate(count):
        return schedule(count + 1)  # optax counts updates from 0, where the rate would be 0

    # The rate stands in the state, where `finite_update` reads it for the metrics.
    adamw = optax.inject_hyperparams(
        optax.adamw, static_args=('b1', 'b2', 'eps', 'eps_root', 'weight_decay', 'mask')
    )
    settings = {name: getattr(config, name) for name in ('b1', 'b2', 'eps', 'weight_decay')}
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, adamw(rate, **settings, mask=decays))


def decays(parameters: Any) -> Any:
    """Parameters that weight decay pulls to zero: matrices, the embedding and an untied head among
    them.

    Never biases and norms, whether they are stacked over layers or not.

    Returns:
        booleans in the parameters' structure, a mask as optax takes it.

    Raises:
        ValueError: a parameter whose name is in neither list.
    """

    def one(path, _):
        names = [str(getattr(key, 'key', getattr(key, 'name', key))) for key in path]
        name = next((name for name in reversed(names) if name in DECAYED + SPARED), None)
        if name is None:
            raise ValueError(
                f"The parameter '{'.'.join(names)}' is neither a matrix nor spared by weight decay; add "
                'its name to DECAYED or SPARED.'
            )
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(one, parameters)


def finite_update(
    optimizer: optax.GradientTransformation, parameters: Any, moments: Any, gradients: Any
) -> tuple[Any, Any, dict[str, Float[Array, '']]]:
    """An update of the optimiser, or none at all where the gradient is not finite.

    Then parameters and moments, their counter too, stay as they are: one NaN would make all of them
    NaN for good.

    Args:
        optimizer: of `make_optimizer`, or any of optax.
        parameters: a pytree.
        moments: the optimizer's state.
        gradients: in the parameters' structure.

    Returns:
        parameters, moments, and `grad_norm` (before clipping; not finite where nothing was
        updated), `param_norm` (before the update), `update_norm` (0 where nothing was updated) and,
        of an optimiser of `make_optimizer`, `learning_rate`.
    """
    grad_norm = optax.global_norm(gradients)
    updates, after = optimizer.update(gradients, moments, parameters)
    finite = jnp.isfinite(grad_norm)

    def kept(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    values = {
        'grad_norm': grad_norm,
        'param_norm': optax.global_norm(parameters),
        'update_norm': jnp.where(finite, optax.global_norm(updates), 0.0),
    }
    hyperparameters = optax.tree_utils.tree_get(after, 'hyperparams')
    if hyperparameters is not None:
        values['learning_rate'] = hyperparameters['learning_rate']
    return kept(optax.apply_updates(parameters, updates), parameters), kept(after, moments), values
