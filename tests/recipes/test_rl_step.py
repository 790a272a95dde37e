"""One rollout batch and its updates: what counts, what a restarted step takes from disk, what
failures do."""

import math

import numpy as np
import pytest
from flax import nnx
from scripted_tools import DOWN, ScriptedTools

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.batching.from_trajectories import length
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.recipes import rl_rollout
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training import flops
from sensesearch_jax.training.trainer import Learner


@pytest.fixture(scope='module')
def whole(world, tmp_path_factory):
    """A step in which nothing fails: its folder, its tools, its metrics and how far the parameters
    moved."""
    folder, tools = tmp_path_factory.mktemp('whole') / 'run', ScriptedTools()
    return folder, tools, world(folder, tools), world.moved()


def assert_same(ours, theirs):
    """Metrics of what was learned and from what; not those of time, memory and tokens run."""
    for name in (
        'reward',
        'turns',
        'response_length',
        'frac_reward_zero_std',
        'batch_gain',
        'loss',
        'kl',
        'ratio',
        'entropy',
        'grad_norm',
        'sampler_gap',
        'padding_share',
        'infra_failed',
    ):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_a_step_learns_and_says_what_it_cost(whole):
    _, tools, values, moved = whole
    assert moved > 1e-3 and len(tools.calls) > 10
    assert all(math.isfinite(value) for value in values.values())
    assert values['infra_failed'] == values['unscorable'] == 0 and 1 < values['turns'] <= 3
    # Every token is computed once per pass and every picture once: the idea of the group.
    assert (
        values['token_amplification'] == pytest.approx(1, abs=0.02)
        and values['vision_amplification'] == 1
    )
    assert (
        values['sampler_gap'] < 1e-5
        and 0 <= values['padding_share'] < 1
        and 0 <= values['frac_reward_zero_std'] < 1
    )


def test_mfu_is_the_share_of_a_known_peak_that_the_updates_used(
    world, whole, policy_folder, tmp_path, monkeypatch
):
    """Of a forward and a backward pass and the reference's forward pass over every group, by hand;
    a device of unknown peak has none."""
    monkeypatch.setitem(flops.PEAK_FLOPS, 'cpu', 1e9)
    values = world(tmp_path / 'run', ScriptedTools())
    text = load_policy(policy_folder).sizes.language
    groups = {}
    for t in read_trajectories(tmp_path / 'run' / 'rl' / 'trajectories' / '00000.jsonl'):
        groups.setdefault(t.question.id, []).append(t)
    by_hand = sum(
        flops.forward_flops(text, [len(g[0].prompt_tokens) - 1], [[1 + length(t) for t in g]])
        for g in groups.values()
    )
    seconds = values['step_s'] - values['rollout_s']
    assert values['mfu'] * seconds * 1e9 == pytest.approx(4 * world.config.rl.epochs * by_hand)
    assert 'mfu' not in whole[2]


def test_a_restarted_step_takes_finished_groups_from_disk(world, whole):
    """No tool is called again but for the pictures' files."""
    folder, tools, values, moved = whole
    path = folder / 'rl' / 'trajectories' / '00000.jsonl'
    before = path.read_text()
    tools.calls.clear()
    assert_same(world(folder, tools), values)
    assert {method for method, _ in tools.calls} <= {'image'}
    assert world.moved() == pytest.approx(moved, rel=1e-3) and path.read_text() == before


@pytest.mark.parametrize('kept', [1, 4.5])
def test_a_group_that_was_torn_is_sampled_again(world, whole, tmp_path, kept):
    """Whole members and half a line of it may be on disk; later starts are content with what is
    there."""
    folder, tools, values, moved = whole
    text = (folder / 'rl' / 'trajectories' / '00000.jsonl').read_text().splitlines(keepends=True)
    path = tmp_path / 'run' / 'rl' / 'trajectories' / '00000.jsonl'
    with Workdir.open(tmp_path / 'run', world.config):
        path.parent.mkdir(parents=True)
        path.write_text(''.join(text[: int(kept)]) + text[int(kept)][: int(kept % 1 * 200)])
    for _ in range(2):
        tools.calls.clear()
        assert_same(world(tmp_path / 'run', tools), values)
        assert world.moved() == pytest.approx(moved, rel=1e-3)
    assert {method for method, _ in tools.calls} <= {'image'}
    found = {(t.question.id, t.member) for t in read_trajectories(path)}
    assert found == {(f'q{i}', g) for i in range(3) for g in range(3)}


def test_a_question_whose_picture_cannot_be_had_is_left_out(world, tmp_path):
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('upload', '1.png') else None
    )
    values = world(tmp_path / 'run', tools)
    assert values['infra_failed'] == pytest.approx(1 / 3) and math.isfinite(values['loss'])
    assert world.moved() > 1e-3
    tools.calls.clear()
    assert_same(world(tmp_path / 'run', tools), values)
    # The others are read from disk, and that one is asked again: its picture is wanted, no tool of
    # the others.
    assert ('upload', '1.png') in tools.calls and {method for method, _ in tools.calls} <= {
        'image',
        'upload',
    }


def test_a_prompt_that_is_too_long_is_left_out(world, tmp_path, monkeypatch):
    """Of loss and statistics; the others are learned from."""
    prompt = ChatTokenizer.prompt

    def long(self, system, parts):
        return prompt(self, system, parts) + [1] * 300 * ('What is 1?' in parts)

    monkeypatch.setattr(ChatTokenizer, 'prompt', long)
    values = world(tmp_path / 'run', ScriptedTools())
    assert (
        values['too_long'] == pytest.approx(1 / 3)
        and values['infra_failed'] == 0
        and values['judge_wait_share'] >= 0
    )
    assert math.isfinite(values['loss']) and world.moved() > 1e-3
    left_out = [
        t
        for t in read_trajectories(tmp_path / 'run' / 'rl' / 'trajectories' / '00000.jsonl')
        if t.failure
    ]
    assert {t.question.id for t in left_out} == {
        'q1'
    } and 'rollout.prompt_capacity 256' in left_out[0].failure
    assert 'rollout.prompt_capacity' in rl_rollout.cause_of_exclusion(left_out[0])


CALLED = ('text_search', 'image_search', 'crop')


@pytest.mark.parametrize(
    'down', [('upload', *CALLED, 'judge'), ('upload',), CALLED, ('judge',)], ids='+'.join
)
def test_what_failed_is_asked_again_when_the_run_goes_on(world, whole, tmp_path, down):
    """With all tools down, or some; then they are mended, and the step is that of a run in which
    nothing failed."""
    tools = ScriptedTools(fails=lambda method, what: DOWN if method in down else None)
    values = world(tmp_path / 'run', tools)
    assert values['infra_failed'] + values['unscorable'] > 0
    tools.fails = lambda method, what: None
    assert_same(world(tmp_path / 'run', tools), whole[2])


def test_nothing_is_learned_where_every_tool_is_down(world, tmp_path):
    """A step without any trajectory that counts neither stops the run nor moves the policy."""
    values = world(tmp_path / 'run', ScriptedTools(fails=lambda method, what: DOWN))
    assert values['infra_failed'] == 1
    assert world.moved() == 0


def test_a_judge_that_is_down_makes_answers_unscorable(world, tmp_path):
    """Such trajectories are no zeros: they are left out of loss and statistics."""
    values = world(
        tmp_path / 'run',
        ScriptedTools(fails=lambda method, what: DOWN if method == 'judge' else None),
    )
    states = [
        t.state for t in read_trajectories(tmp_path / 'run' / 'rl' / 'trajectories' / '00000.jsonl')
    ]
    assert values['unscorable'] == states.count(SampleState.UNSCORABLE) / 9 > 0
    assert math.isfinite(values['loss'])


def after(folder):
    """The parameters that a run left behind."""
    return {
        '.'.join(path): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(load_policy(folder)))
    }


@pytest.mark.parametrize('good', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_whose_tools_are_down_stops_and_goes_on_when_they_are_mended(world, tmp_path, good):
    """From its first step on, or behind steps that were made: those that failed do not count, and
    no policy is left."""
    settings = {'steps': 4, 'max_failed_steps': 2}
    tools = ScriptedTools()
    whole = world.run(tmp_path / 'whole', tools, **settings)

    def metrics():
        return read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl')

    tools.fails = lambda method, what: (
        DOWN if method != 'health' and len(metrics()) >= good else None
    )
    with pytest.raises(UserError) as raised:
        world.run(tmp_path / 'run', tools, **settings)
    for words in (
        'last 2 steps',
        'upload of the picture (9 times)',
        tools.url,
        'text_search: bm25',
        'rl.max_failed_steps',
    ):
        assert words in str(raised.value)
    assert '\n' not in str(raised.value)
    assert [m['values']['usable_share'] for m in metrics()] == [1] * good + [0, 0]
    assert not (tmp_path / 'run' / 'rl' / 'policy').exists()
    tools.fails = lambda method, what: None
    mended = after(world.run(tmp_path / 'run', tools, **settings))
    assert [m['step'] for m in metrics()] == [1, 2, 3, 4] and all(
        m['values']['usable_share'] == 1 for m in metrics()
    )
    for name, value in after(whole).items():
        np.testing.assert_allclose(mended[name], value, atol=1e-4, err_msg=name)


def test_tools_that_are_down_at_the_last_step_leave_it_to_be_made(world, tmp_path):
    tools = ScriptedTools()
    settings = {'steps': 2, 'max_failed_steps': 5}

    def metrics():
        return read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl')

    tools.fails = lambda method, what: DOWN if metrics() else None
    with pytest.raises(UserError, match='does not answer: the tool is down'):
        world.run(tmp_path / 'run', tools, **settings)
    tools.fails = lambda method, what: None
    world.run(tmp_path / 'run', tools, **settings)
    assert [(m['step'], m['values']['usable_share']) for m in metrics()] == [(1, 1), (2, 1)]


def test_a_reward_that_is_not_finite_leaves_its_trajectory_out(world, tmp_path, monkeypatch):
    """Neither statistics nor loss see it; it is counted."""
    scored = Scorer.scored

    def sometimes(self, trajectory, verdict):
        values, state = scored(self, trajectory, verdict)
        return values | ({'total': math.nan} if trajectory.member == 0 else {}), state

    monkeypatch.setattr(Scorer, 'scored', sometimes)
    values = world(tmp_path / 'run', ScriptedTools())
    assert values['usable_share'] == pytest.approx(2 / 3) and values['skipped_updates'] == 0
    assert all(
        math.isfinite(values[name])
        for name in ('reward', 'frac_reward_zero_std', 'batch_gain', 'loss', 'grad_norm')
    )
    assert world.moved() > 1e-3


def test_the_updates_have_the_memory_of_the_samplers_weights_and_caches(
    world, tmp_path, monkeypatch
):
    held, update = [], Learner.rl_step

    def watched(learner, *arguments):
        engines = [engine for group in world.samplers.values() for engine in group]
        held.append([(engine.parameters, engine.caches) for engine in engines])
        return update(learner, *arguments)

    monkeypatch.setattr(Learner, 'rl_step', watched)
    world(tmp_path, ScriptedTools())
    assert held and all(pair == (None, None) for engines in held for pair in engines)


def test_every_option_of_the_objective_at_once(world, tmp_path):
    """Weights are those of the trainer before its first update against the sampler, so 1, whatever
    the batches of two epochs; the ratio to that trainer moves away from 1."""
    options = {
        'algorithm': 'luspo',
        'baseline': 'leave_one_out',
        'importance': 'token',
        'epochs': 2,
    }
    options |= {'entropy_coefficient': 0.01, 'fatal_mistakes': 2, 'sampling_rounds': 3}
    world.run(tmp_path / 'run', ScriptedTools(), steps=1, questions_per_step=1, **options)
    (record,) = read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl')
    values = record['values']
    assert values['importance_weight'] == pytest.approx(1, abs=1e-4)
    assert values['importance_truncated'] == values['sampler_gap_above/0.01'] == 0
    assert values['sampler_gap'] < 1e-5 and values['ratio_max'] > 1.001
    file = tmp_path / 'run' / 'rl' / 'trajectories' / '00000.jsonl'
    sampled = len({t.question.id for t in read_trajectories(file)})
    assert values['groups_without_use'] == pytest.approx(1 - 1 / sampled)
    assert values['spread_share'] == pytest.approx(1 / sampled) or sampled == 3
    assert 0 <= values['after_fatal_share'] < 1 and values['skipped_updates'] == 0
