"""Steps of RL whose sampling overlaps with training, and those whose sampling does not."""

import threading
import time
from collections import Counter
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from flax import nnx
from jax._src import pjit
from jax._src.interpreters import pxla
from scripted_tools import ScriptedTools
from toy_policy import write_toy_policy

from sensesearch_jax.data.mixing import step_questions
from sensesearch_jax.model.hf_checkpoint import load_policy
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rl_rollout import rl_engines
from sensesearch_jax.recipes.rl_update import rollout_advantages, update
from sensesearch_jax.recipes.rows import row_batch, suppressed_mask
from sensesearch_jax.recipes.session import load_policy_directory, read_trajectories
from sensesearch_jax.rewards.scorer import is_usable
from sensesearch_jax.rollout import scheduler
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.seeds import hash_seed
from sensesearch_jax.runtime.threads import LAUNCHING
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trained_part import trained_part
from sensesearch_jax.training.trainer import Learner

STEPS = 4


class Inline:
    """In the place of a pool of threads: all that happens is in one order."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done

    def shutdown(self, **_):
        pass


def by_hand(session, loaded, pools):
    """Steps of which each is sampled, and then trained on."""
    config = session.config.rl
    learner = Learner(
        loaded.policy,
        make_optimizer(config, config.steps),
        suppressed=suppressed_mask(loaded),
        temperature=config.temperature,
        objective=make_objective(config),
        trained=trained_part(config),
    )
    features, (engine,) = session.features(loaded), rl_engines(session, loaded, learner)
    asked_at = step_questions(pools, config.questions_per_step, session.config.data.seed)
    for step in range(config.steps):
        engine.set_parameters(learner.all_parameters)
        names = {
            q: [f'rl-{step}-{q.id}-{g}' for g in range(config.members)] for q in asked_at(step)
        }
        tasks = [
            Task(q, tuple(hash_seed(session.config.seed, name) for name in of_question))
            for q, of_question in names.items()
        ]
        stream = session.stream(engine, loaded, features)
        groups, _ = stream.sample(tasks, session.scorer(step))
        engine.release()
        usable = np.array([[is_usable(t) for t in group] for group in groups])
        advantages, _ = rollout_advantages(config, groups, usable)

        def to_batch(part):
            sizes = config.members, config.micro_batch
            return row_batch(
                loaded, features, part, *sizes, pack_step=config.pack_step, fatal_mistakes=0
            )

        draws = np.random.default_rng([session.config.seed, step])
        update(config, learner, None, groups, advantages, usable, to_batch, draws)
    return learner.policy


def test_without_staleness_each_step_is_sampled_and_then_trained_on_bit_for_bit(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(scheduler, 'ThreadPoolExecutor', Inline)
    found = load_policy(world.run(tmp_path / 'run', ScriptedTools(), steps=2, max_staleness=0))
    with world.session(tmp_path / 'hand', ScriptedTools(), steps=2) as session:
        expected = by_hand(session, world.loaded, world.pools)
    ours, theirs, before = (
        dict(nnx.to_flat_state(nnx.state(policy, nnx.Param)))
        for policy in (found, expected, world.loaded.policy)
    )
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name][...], value[...], err_msg=str(name))
    assert any(np.any(value[...] != before[name][...]) for name, value in ours.items())


def test_steps_overlap_within_the_bound_and_a_run_that_dies_goes_on(world, tmp_path, monkeypatch):
    """It dies while it trains on a step, when groups of the next one are finished: these are not
    sampled again, and no trajectory is there twice."""
    settings = {'steps': STEPS, 'max_staleness': 1}
    tools, learn, updates = ScriptedTools(lambda method, what: 0.02), Learner.rl_step, []

    def file(step):
        return tmp_path / 'run' / 'rl' / 'trajectories' / f'{step:05d}.jsonl'

    def dying(learner, *arguments):
        updates.append(len(updates))
        deadline = time.monotonic() + 60
        while len(updates) == 3 and not (file(3).is_file() and file(3).read_text()):
            assert time.monotonic() < deadline, 'nothing was sampled while the step was trained on'
            time.sleep(0.01)
        if len(updates) == 3:
            raise OSError('the machine is gone')
        return learn(learner, *arguments)

    with monkeypatch.context() as patched, pytest.raises(OSError, match='the machine is gone'):
        patched.setattr(Learner, 'rl_step', dying)
        world.run(tmp_path / 'run', tools, **settings)
    before = {step: file(step).read_text() for step in range(STEPS)}
    world.run(tmp_path / 'run', tools, **settings)

    records = read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl')
    assert [record['step'] for record in records] == [1, 2, 3, 4]
    ages = []
    for step, record in enumerate(records):
        assert file(step).read_text().startswith(before[step])
        found, values = read_trajectories(file(step)), record['values']
        names = [(t.question.id, t.member) for t in found]
        assert sorted(names) == [(f'q{i}', g) for i in range(3) for g in range(3)]
        turns = [turn for t in found for turn in t.turns]
        assert {turn.version for turn in turns} <= {max(step - 1, 0), step}
        for t in found:
            assert t.turns == sorted(t.turns, key=lambda turn: turn.version)
        written = sum(len(turn.tokens) for turn in turns)
        old = sum(len(turn.tokens) for turn in turns if turn.version < step) / written
        assert values['staleness'] == values['staleness/1'] == pytest.approx(old)
        assert values['staleness/0'] == pytest.approx(1 - old)
        assert 0 <= values['overlap_share'] <= 1 and 0 <= values['sampler_idle_share'] <= 1
        ages.append(old)
    # The second step's questions are asked with the first one's; the first update compiles long.
    assert ages[0] == 0 and ages[1] > 0
    assert records[0]['values']['overlap_share'] > 0


@pytest.fixture
def queued_in_one_order(monkeypatch):
    """While a sampler is at work, whoever queues a program of several devices must hold the lock."""
    launch = pxla.ExecuteReplicated.__call__

    def checked(program, *operands):
        if any(thread.name.startswith('sampler') for thread in threading.enumerate()):
            several = len(program.xla_executable.local_devices()) > 1
            assert LAUNCHING._is_owned() or not several, program.name
            queued[several] += 1
        return launch(program, *operands)

    queued = Counter()
    monkeypatch.setattr(pjit, '_get_fastpath_data', lambda *_, **__: None)  # past Python
    monkeypatch.setattr(pxla.ExecuteReplicated, '__call__', checked)
    yield
    assert queued[True] > 100


def test_steps_overlap_on_a_mesh(world, tmp_path, queued_in_one_order):
    """Of two replicas with two devices each, and two engines on each replica: five threads launch
    programs with collectives on the same devices."""
    write_toy_policy(tmp_path / 'policy', kv_heads=2)
    mesh = make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
    loaded = load_policy_directory(tmp_path / 'policy', world.config, mesh, 'float32')
    settings = {'steps': 3, 'max_staleness': 1, 'importance': 'token', 'minibatches': 2}
    tools = ScriptedTools(lambda method, what: 0.02)
    world.run(tmp_path / 'run', tools, loaded, mesh, **settings)

    records = read_metrics(tmp_path / 'run' / 'metrics.jsonl', 'rl')
    assert [record['step'] for record in records] == [1, 2, 3]
    for step, record in enumerate(records):
        file = tmp_path / 'run' / 'rl' / 'trajectories' / f'{step:05d}.jsonl'
        names = [(t.question.id, t.member) for t in read_trajectories(file)]
        assert sorted(names) == [(f'q{i}', g) for i in range(3) for g in range(3)]
        for name in ('importance_weight', 'importance_truncated', 'grad_norm'):
            assert np.isfinite(record['values'][name]), name
    assert max(record['values']['staleness'] for record in records) > 0
