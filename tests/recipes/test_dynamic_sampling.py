"""Dynamic sampling: further questions until enough groups have spread, and the groups that are used."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.data.mixing import Pool
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.rl import check_rounds
from sensesearch_jax.recipes.rl_rollout import chosen_groups, has_spread
from sensesearch_jax.recipes.rl_samplers import sample_step
from sensesearch_jax.rollout.scheduler import RolloutStatistics


def group(name, *rewards, state=SampleState.OK):
    question = Question(name, 'Which?')
    return [
        Trajectory(question, g, 0, [], state, [], [], {'total': reward}, None)
        for g, reward in enumerate(rewards)
    ]


def test_spread_is_that_of_what_counts():
    assert has_spread(group('a', 0.0, 1.0)) and not has_spread(group('a', 0.1 + 0.2, 0.3))
    mixed = [*group('a', 1.0, 1.0), *group('a', 0.0, state=SampleState.INFRA_FAILED)]
    assert not has_spread(mixed) and not has_spread(group('a', 1.0))


def test_groups_with_spread_are_used_first_in_their_order():
    groups = [group('a', 1, 1), group('b', 0, 1), group('c', 0, 0), group('d', 1, 0)]
    assert [g[0].question.id for g in chosen_groups(groups, 3)] == ['a', 'b', 'd']
    assert chosen_groups(groups, 4) == groups


@pytest.mark.parametrize(
    'rounds, spread, sampled',
    [
        (1, 'abcdef', 'ab'),
        (3, 'abcdef', 'ab'),  # enough in the first round
        (3, 'bcf', 'abc'),  # one is missing, and the second round brings it
        (3, 'f', 'abcdef'),  # not enough in all rounds
    ],
)
def test_rounds_go_on_until_enough_groups_have_spread(rounds, spread, sampled):
    """Two questions a step; each round asks as many as are missing."""

    def sample(asked, step):
        groups = [group(q.id, 0, q.id in spread) for q in asked]
        return groups, RolloutStatistics(seconds=1.0, sampled_tokens=len(asked))

    asked = [Question(name, 'Which?') for name in 'abcdef'[: 2 * rounds]]
    groups, cost = sample_step(SimpleNamespace(sample=sample), rounds, asked, 0)
    assert ''.join(g[0].question.id for g in groups) == sampled
    assert cost.sampled_tokens == len(sampled)


def test_more_rounds_than_questions_are_refused():
    pools = [Pool('', [Question(name, 'Which?') for name in 'abcd'], None)]
    config = ConfigDict({'questions_per_step': 2, 'sampling_rounds': 3})
    with pytest.raises(UserError, match='may ask 6 questions in a step, but data.rl has 4'):
        check_rounds(config, pools)
    config.sampling_rounds = 2
    check_rounds(config, pools)
