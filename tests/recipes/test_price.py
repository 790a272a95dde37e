"""A price on calls in a second phase of RL."""

import runpy
from pathlib import Path

import pytest

from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.agent.trajectory import Observation, Question, SampleState, Trajectory, Turn
from sensesearch_jax.evaluation.behaviour import behaviour
from sensesearch_jax.recipes.session import Session

RL = Path(__file__).parents[2] / 'configs' / 'rl.py'


def trajectory():
    """Right, with a crop and two text searches."""
    seen = Observation(('1. Chad',), True, 'text_search')
    box = (0.0, 0.0, 0.5, 0.5)
    called = [ImageCrop(box), TextSearch('Chad'), TextSearch('Chad capital')]
    turns = [Turn([], [], '', action, seen, []) for action in called]
    turns.append(Turn([], [], '', Answer('Ndjamena'), None, []))
    question = Question('q', 'Which capital?', ('a.png',), ('Ndjamena',))
    return Trajectory(question, 0, 0, turns, SampleState.OK, [], [], {}, None)


@pytest.mark.parametrize(
    'first, step, cost', [(0, 0, 0.4), (3, 0, 0.0), (3, 1, 0.0), (3, 2, 0.4), (3, None, 0.4)]
)
def test_calls_cost_from_the_phase_s_first_step_on(first, step, cost):
    """0.2 for the crop and 0.1 for each search, of an answer that is worth 1."""
    config = runpy.run_path(str(RL))['get_config']()
    config.rl.tool_prices.update(text_search=0.1, image_crop=0.2)
    config.rl.update(price_from_step=first, evidence_weight=0.0)
    scorer = Session(config, None, ToolClient(''), None, None).scorer(step)
    scored = scorer.scored(found := trajectory(), 1.0)
    found.reward = scored.reward
    assert behaviour([[found]])['tool_cost'] == pytest.approx(cost)
    assert scored.reward['total'] == pytest.approx(1 - cost)
