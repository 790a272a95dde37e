"""Checks of the fields of an evaluation."""

from __future__ import annotations

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.modes import MODES
from sensesearch_jax.recipes.evaluated_agents import KINDS


def check_evaluation(config: ConfigDict) -> None:
    """Whether there is such a mode and such an agent, its samples can differ, and the budget can be
    kept.

    Raises:
        UserError: there is not, or a field would have no effect.
    """
    evaluate, budget = config.evaluate, config.budget
    if evaluate.mode not in MODES:
        raise UserError(f"evaluate.mode '{evaluate.mode}' is unknown; choose from {list(MODES)}.")
    if evaluate.samples > 1 and not evaluate.temperature > 0:
        raise UserError(
            f'evaluate.samples is {evaluate.samples}, but at evaluate.temperature 0 all samples of a question are '
            'equal; give a temperature above 0, or one sample.'
        )
    kind = evaluate.agent.kind
    if kind not in KINDS:
        raise UserError(f"evaluate.agent.kind '{kind}' is unknown; choose from {list(KINDS)}.")
    for name in ('url', 'model'):
        if kind == 'openai' and not evaluate.agent[name]:
            raise UserError(f"evaluate.agent.kind 'openai' needs evaluate.agent.{name}; give it.")
        if kind != 'openai' and evaluate.agent[name]:
            raise UserError(
                f"evaluate.agent.{name} is of evaluate.agent.kind 'openai', but that is '{kind}'; leave one of them "
                'out.'
            )
    if kind == 'openai' and (evaluate.top_k, evaluate.top_p) != (0, 1.0):
        raise UserError(
            'evaluate.top_k and evaluate.top_p are of a policy that is sampled here, and no served model is sent '
            'them; leave them at 0 and 1.'
        )
    for name in ('usd', 'calls'):
        if not budget[name] >= 0:
            raise UserError(f'budget.{name} is {budget[name]}; give 0 (any number) or more.')
        if budget[name] and kind != 'openai':
            raise UserError(
                f"budget.{name} is for served models, but evaluate.agent.kind is '{kind}'; leave one of them out."
            )
    if budget.usd and not (evaluate.agent.input_usd or evaluate.agent.output_usd):
        raise UserError(
            f'budget.usd is {budget.usd}, but evaluate.agent.input_usd and output_usd are 0, so that nothing counts; '
            'give the prices, or set budget.calls in its place.'
        )
