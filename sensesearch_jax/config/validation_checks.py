"""Checks of the fields of validation during training."""

from __future__ import annotations

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.capacities import validated_stages
from sensesearch_jax.recipes.validation import SCORES

RESULTS = 'last', 'best'


def check_validation(config: ConfigDict) -> None:
    """Whether what is asked for can be done, and what is given has an effect.

    Raises:
        UserError: it cannot, or has none.
    """
    settings, validated = config.validation, validated_stages(config)
    for stage in (name for name in ('sft', 'rl') if name in config):
        if config[stage].validate_every < 0:
            raise UserError(
                f'{stage}.validate_every is {config[stage].validate_every}; give 0 (no validation) or more.'
            )
        if config[stage].result not in RESULTS:
            raise UserError(
                f"{stage}.result '{config[stage].result}' is unknown; choose from {list(RESULTS)}."
            )
        if config[stage].result == 'best' and stage not in validated:
            raise UserError(
                f"{stage}.result 'best' is by validation, and {stage}.validate_every is 0; give the steps between "
                'two validations.'
            )
        if config[stage].result == 'best' and not config.checkpoint.keep_best:
            raise UserError(
                f"{stage}.result 'best' needs the best checkpoint, and checkpoint.keep_best is 0; give 1 or more."
            )
    held_out = config.sft.held_out if 'sft' in config else 0
    if held_out < 0:
        raise UserError(f'sft.held_out is {held_out}; give 0 (none) or more.')
    if held_out and 'sft' not in validated:
        raise UserError(
            f'sft.held_out is {held_out}, but sft.validate_every is 0, and nobody looks at their loss; give the '
            'steps between two validations.'
        )
    if settings.samples < 0:
        raise UserError(f'validation.samples is {settings.samples}; give 0 (none) or more.')
    if settings.samples and not settings.temperature > 0:
        raise UserError(
            f'validation.samples is {settings.samples}, but at validation.temperature 0 all are equal to the greedy '
            'one; give a temperature above 0, or no samples.'
        )
    unknown = [tool for tool in settings.without if tool not in config.agent.tools]
    if unknown:
        raise UserError(
            f'validation.without names {unknown}, but agent.tools are {list(config.agent.tools)}; name some of these.'
        )
    if settings.best_by not in SCORES:
        raise UserError(
            f"validation.best_by '{settings.best_by}' is unknown; choose from {list(SCORES)}."
        )
    if settings.best_by == 'avg@k' and not settings.samples:
        raise UserError("validation.best_by 'avg@k' needs validation.samples; give 1 or more.")
    if settings.best_by == 'loss' and ('rl' in validated or not held_out):
        raise UserError(
            "validation.best_by 'loss' is the loss of SFT on sft.held_out trajectories; give their number, and "
            'validate no RL by it.'
        )
