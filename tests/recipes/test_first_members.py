"""RL on groups that begin with some of their members: sizes, advantages, and restarts."""

import zlib
from collections import defaultdict

import numpy as np
import pytest
from ml_collections import ConfigDict
from scripted_tools import ScriptedTools

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.rl_rollout import has_spread, is_whole, members_at_once
from sensesearch_jax.recipes.rl_update import by_member, rollout_advantages
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.training.advantages import batch_normalize, group_advantages

SETTINGS = {'steps': 2, 'members': 4, 'first_members': 2}


def group(*rewards):
    question = Question('q', 'Which?')
    return [
        Trajectory(question, g, 0, [], SampleState.OK, [], [], {'total': reward}, None)
        for g, reward in enumerate(rewards)
    ]


def config_of(**fields):
    return ConfigDict(
        {
            'members': 4,
            'first_members': 2,
            'algorithm': 'bn_gspo',
            'baseline': 'mean_std',
            'batch_scope': 'batch',
            **fields,
        }
    )


@pytest.mark.parametrize(
    'rewards, whole',
    [
        ((0, 1), True),
        ((0, 0), False),
        ((0, 0, 0, 1), True),
        ((0, 0, 0, 0), True),
        ((0, 0, 1), False),  # torn in the second half
        ((0,), False),
    ],
)
def test_a_group_is_whole_with_spread_or_with_all_members(rewards, whole):
    assert is_whole(group(*rewards), config_of()) == whole
    everyone = len(rewards) == 4
    assert is_whole(group(*rewards), config_of(first_members=0)) == everyone


def test_more_at_first_than_members_are_refused():
    assert [members_at_once(config_of(first_members=n)) for n in (0, 1, 4)] == [4, 1, 4]
    with pytest.raises(UserError, match='rl.first_members is 5; give 0, or at most rl.members 4'):
        members_at_once(config_of(first_members=5))


def test_groups_of_different_sizes_have_the_advantages_of_what_is_there():
    groups = [group(0.0, 1.0), group(0.2, 0.2, 0.2, 0.9), group(0.5, 0.5, 0.5, 0.5)]
    usable = by_member([[True] * len(g) for g in groups], 4, bool)
    assert usable.sum() == 10
    found, statistics = rollout_advantages(config_of(), groups, usable)
    rewards = np.array([t.reward['total'] for g in groups for t in g], np.float32)
    ids, valid = np.repeat([0, 1, 2], [2, 4, 4]), np.ones(10, bool)
    expected = batch_normalize(group_advantages(rewards, ids, valid), valid)
    np.testing.assert_allclose(found[usable], expected, rtol=1e-6)
    assert not found[~usable].any() and statistics['frac_reward_zero_std'] == pytest.approx(1 / 3)


@pytest.fixture(scope='module', autouse=True)
def seldom_right(world):
    """Rewards of 0 or 1 that trajectories' tokens decide."""
    by_rule = Scorer.scored

    def scored(self, trajectory, verdict):
        values, state = by_rule(self, trajectory, verdict)
        written = zlib.crc32(repr([turn.tokens for turn in trajectory.turns]).encode())
        return values | {'total': float(written % 3 == 0)}, state

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Scorer, 'scored', scored)
        yield


def sampled(path, step):
    found = defaultdict(list)
    for t in read_trajectories(path / 'rl' / 'trajectories' / f'{step:05d}.jsonl'):
        found[t.question.id].append(t)
    return found


@pytest.fixture(scope='module')
def grown(world, tmp_path_factory):
    """A run whose groups began with two members."""
    path, tools = tmp_path_factory.mktemp('grown') / 'run', ScriptedTools()
    world.run(path, tools, **SETTINGS)
    return path, tools


def test_a_run_samples_more_where_rewards_are_equal(grown, world, tmp_path):
    world.run(tmp_path / 'all', ScriptedTools(), **SETTINGS | {'steps': 1, 'first_members': 0})
    (grown, _), everyone, sizes = grown, sampled(tmp_path / 'all', 0), []
    for step in range(2):
        for name, members in sampled(grown, step).items():
            sizes.append(len(members))
            assert has_spread(members[:2]) == (len(members) == 2)
            if step == 0:
                of_all = [t.turns[-1].tokens for t in everyone[name]]
                assert [t.turns[-1].tokens for t in members] == of_all[: len(members)]
    assert set(sizes) == {2, 4}
    records = read_metrics(grown / 'metrics.jsonl')
    steps = [r['values'] for r in records if 'members_mean' in r['values']]
    assert np.mean([values['members_mean'] for values in steps]) == pytest.approx(np.mean(sizes))
    assert all(values['usable_share'] == 1 for values in steps)


@pytest.mark.parametrize('kept', range(1, 12, 2))
def test_a_restart_samples_what_is_missing_alone(grown, world, tmp_path, kept):
    (grown, tools), name = grown, 'rl/trajectories/00000.jsonl'
    lines = (grown / name).read_text().splitlines()[:kept]
    settings = SETTINGS | {'steps': 1}
    with world.session(tmp_path / 'run', tools, **settings):
        (tmp_path / 'run' / name).parent.mkdir(parents=True)
        (tmp_path / 'run' / name).write_text(''.join(f'{line}\n' for line in lines))
    world.run(tmp_path / 'run', tools, **settings)

    again = read_trajectories(tmp_path / 'run' / name)
    latest = {(t.question.id, t.member): t.turns[-1].tokens for t in again}
    assert latest == {
        (q, t.member): t.turns[-1].tokens for q, of in sampled(grown, 0).items() for t in of
    }
