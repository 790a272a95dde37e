"""The engine against whole sequences run one by one: the same tokens and log-probs, whatever runs
beside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_engine import MASK, POLICY, Driver, gap_to_trainer, make_engine, play
from small_policies import (
    END,
    PAD,
    START,
    STOP,
    SUPPRESSED,
    VOCABULARY,
    alone,
    each_family,
    small_policy,
    table,
    tokens_of,
)

from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling, distribution
from sensesearch_jax.training.trainer import Learner

family = each_family(
    'qwen2_5_vl',
    pytest.param('qwen3_vl', marks=pytest.mark.slow),
    modules=[__name__, 'small_engine'],
    reset=[make_engine],
)


@pytest.mark.parametrize('family', ['qwen2_5_vl', 'qwen3_vl'], indirect=True)
def test_greedy_equals_whole_sequences():
    """Every token is the most likely allowed one after all before it; its log-prob is of that
    pass."""
    driver = play(make_engine())
    assert len(driver.ended) == 2
    logits = alone(POLICY, driver.sequences())
    allowed = np.where(MASK, -np.inf, logits)
    used = np.asarray(jax.nn.log_softmax(allowed))
    count = 0
    for n, state in enumerate(driver.everything()):
        first = len(state['prompt']) - 1
        for s, (token, own) in enumerate(zip(state['tokens'], state['own'], strict=True)):
            if own:
                assert token == allowed[n, first + s].argmax()
                assert abs(state['log_probs'][s] - used[n, first + s, token]) < 1e-4
                count += 1
    assert count > 50


def test_a_turn_stops_at_its_stop_token_or_budget():
    """Which tokens stop a turn is told by the ids alone: here everything below 60 does."""
    engine = Engine(
        POLICY,
        groups=1,
        members=4,
        prompt_capacity=40,
        suffix_capacity=160,
        chunk=16,
        stop=range(60),
        suppressed=SUPPRESSED,
    )
    driver = Driver(engine, seed=1)
    driver.open([0], [[7]])
    counts = driver.decode({(0, g): 12 for g in range(4)})
    assert len(set(counts.values())) > 1
    for lane, count in counts.items():
        own = driver.lanes[lane]['tokens']
        assert len(own) == count <= 12
        assert all(token >= 60 for token in own[:-1]) and (own[-1] < 60 or count == 12)


@pytest.mark.parametrize(
    ('temperature', 'cache_dtype', 'most'),
    [(1.0, 'policy', 1e-4), (0.7, 'policy', 1e-4), (1.0, 'int8', 0.05)],
)
def test_log_probs_are_the_trainers(temperature, cache_dtype, most):
    """Log-probs of the sampler are those that the trainer computes for the batch of groups."""
    driver = play(make_engine(temperature=temperature, cache_dtype=cache_dtype), seed=1)
    gap = gap_to_trainer(driver, temperature, jnp.float32)
    assert gap.max() < most and (gap.mean() > 1e-5) == (cache_dtype == 'int8')
    sampled = np.concatenate([np.array(s['tokens'])[s['own']] for s in driver.everything()])
    assert not np.isin(sampled, SUPPRESSED).any()


def test_suppressed_ids_are_never_sampled():
    """With all but three ids suppressed the log-probs are those of the three."""
    kept = [3, 17, 55]
    driver = Driver(
        make_engine(
            groups=1,
            members=4,
            temperature=1.5,
            chunk=8,
            suppressed=tuple(i for i in range(VOCABULARY) if i not in kept),
        )
    )
    driver.open([0], [[6]])
    driver.turn({(0, g): 24 for g in range(4)})
    tokens = [t for s in driver.lanes.values() for t in s['tokens']]
    assert set(tokens) == set(kept)
    logits = alone(POLICY, driver.sequences())[..., kept]
    used = np.asarray(jax.nn.log_softmax(logits / 1.5))
    for n, state in enumerate(driver.everything()):
        for s, token in enumerate(state['tokens']):
            assert (
                abs(
                    state['log_probs'][s] - used[n, len(state['prompt']) - 1 + s, kept.index(token)]
                )
                < 1e-4
            )


@pytest.mark.parametrize('top_k, top_p', [(0, 1.0), (7, 0.8)])
def test_sampling_follows_the_distribution(top_k, top_p):
    """Over many seeds the first token comes as often as its probability says."""
    engine = make_engine(groups=1, members=64, chunk=1, temperature=1.0, top_k=top_k, top_p=top_p)
    prompt, _ = tokens_of([7], np.random.default_rng(3))
    counts = np.zeros(VOCABULARY)
    one = np.ones((1, 64), int)
    for first in range(0, 2048, 64):
        engine.prefill([0], [prompt], [[]], table())
        chunk = engine.decode(one.astype(bool), one, first + np.arange(64)[None])
        counts += np.bincount(chunk.tokens[..., 0].ravel(), minlength=VOCABULARY)
    logits = np.where(MASK, -np.inf, alone(POLICY, [(prompt, [])])[0, -1])
    expected = np.exp(distribution(logits, Sampling(1.0, top_k, top_p)))
    assert not counts[expected == 0].any()
    error = np.sqrt(expected * (1 - expected) / counts.sum())
    assert (np.abs(counts / counts.sum() - expected) < 5 * error + 1e-3).all()
    assert engine.tokens_run == 32 * (6 + 64)


@pytest.mark.parametrize('chunk, groups, order', [(4, 3, [2, 0]), (7, 1, [0])])
def test_draws_depend_on_seed_and_place_only(chunk, groups, order):
    """A trajectory is the same alone and among others, in any row, in chunks of any size."""
    parts = {0: [5, 'thumbnail', 6], 1: [4]}
    prompts = [tokens_of(parts[i], np.random.default_rng(i)) for i in range(2)]

    def sample(engine, rows):
        driver = Driver(engine)
        for row, (prompt, _) in zip(rows, prompts, strict=False):
            driver.random = np.random.default_rng(rows.index(row))
            driver.open([row], [parts[rows.index(row)]])
            assert driver.lanes[row, 0]['prompt'] == prompt
        lanes = [(row, g) for row in rows for g in range(2)]
        driver.turn({lane: 9 for lane in lanes})
        for row in rows:
            driver.random = np.random.default_rng(9)
            driver.extend({(row, g): [4, 'crop', 2] for g in range(2)})
        driver.turn({lane: 7 + lane[1] for lane in lanes})
        return [driver.lanes[row, g]['tokens'] for row in rows for g in range(2)]

    wanted = sample(make_engine(groups=2, chunk=16, temperature=1.0), [0, 1])
    found = sample(make_engine(groups=groups, chunk=chunk, temperature=1.0), order)
    assert found == wanted[: len(found)]
    assert wanted[0] != wanted[1]


def test_where_most_lanes_wait_the_others_do_not_pay_for_them():
    """A smaller grid decodes, with the same tokens as all lanes at once; who was left out comes first
    the next time."""
    prompts = [tokens_of([4 + row], np.random.default_rng(row))[0] for row in range(2)]
    awake = np.zeros((2, 8), bool)
    awake[0, [0, 2, 5, 6, 7]] = awake[1, :7] = True
    budget, seeds = np.full((2, 8), 20), np.arange(16).reshape(2, 8)

    def sample(active):
        engine = make_engine(groups=2, members=8, temperature=1.0)
        engine.prefill([0, 1], prompts, [[], []], table())
        tokens = [[[] for _ in range(8)] for _ in range(2)]
        shapes = []
        for _ in range(2):
            at, _ = engine._taking_part(active)
            shapes.append(np.broadcast(*at).shape)
            chunk = engine.decode(active, budget, seeds)
            for row, member in zip(*np.nonzero(active)):
                tokens[row][member] += chunk.tokens[
                    row, member, : chunk.count[row, member]
                ].tolist()
        return tokens, shapes

    wanted, all_lanes = sample(np.ones((2, 8), bool))
    found, half = sample(awake)
    assert all_lanes == [(2, 8)] * 2 and half == [(8, 1)] * 2
    for row, member in zip(*np.nonzero(awake)):
        got = found[row][member]
        assert got and got == wanted[row][member][: len(got)]


def test_new_parameters_are_sampled_with():
    other, engine = small_policy(seed=3), make_engine()
    before = engine.parameters
    engine.set_parameters(Learner(other, optax.sgd(0.1)).all_parameters)
    driver = Driver(engine)
    driver.open([0], [[5, 'scene', 4]])
    driver.turn({(0, 0): 10})
    engine.set_parameters(before)
    tokens = driver.lanes[0, 0]['tokens']
    logits = np.where(MASK, -np.inf, alone(other, driver.sequences())[0])
    first = len(driver.lanes[0, 0]['prompt']) - 1
    assert tokens == logits[first : first + len(tokens)].argmax(-1).tolist()


def test_counters_and_room():
    """Each token is run once: a prompt for its whole group, a sampled or appended one for its lane."""
    engine = make_engine()
    engine.tokens_run = 0
    driver = Driver(engine)
    driver.open([0, 1], [[10], [6, 'thumbnail', 1]])
    assert engine.tokens_run == 9 + 10
    counts = driver.decode({(0, 0): 3, (1, 1): 2})
    sampled = sum(counts.values())
    assert engine.tokens_run == 19 + sampled
    # the pending token and 5 + 10 + 4 new ones, but for the last
    driver.extend({(0, 0): [5, 'crop', 4]})
    assert engine.tokens_run == 19 + sampled + 19
    assert engine.room((0, 0)) == 160 - counts[0, 0] - 19 and engine.room((0, 1)) == 160
    driver.open([0], [[8]])
    assert engine.room((0, 0)) == 160


def test_the_last_token_that_fits_is_as_right_as_the_first():
    # Without a stop token, which the policy of a family may choose before the end.
    never = (*SUPPRESSED, STOP)
    engine = make_engine(groups=1, members=2, chunk=7, suffix_capacity=30, suppressed=never)
    driver = Driver(engine)
    driver.open([0], [[5]])
    driver.turn({(0, 0): 30, (0, 1): 11})
    tokens = driver.lanes[0, 0]['tokens']
    assert len(tokens) == 30 and engine.room((0, 0)) == 0
    mask = np.isin(np.arange(VOCABULARY), never)
    logits = np.where(mask, -np.inf, alone(POLICY, driver.sequences())[0])
    assert tokens == logits[4:34].argmax(-1).tolist()


def test_refusals():
    engine = make_engine(prompt_capacity=20)
    with pytest.raises(
        ValueError, match='prompt of 22 tokens does not fit into 20; raise rollout.prompt_capacity'
    ):
        engine.prefill([0], [list(range(22))], [[]], table())
    engine.prefill([0], [list(range(21))], [[]], table())
    with pytest.raises(ValueError, match='belong to none'):
        engine.prefill([0], [[1, START, *[PAD] * 3, END, 4]], [['thumbnail']], table())
    with pytest.raises(
        ValueError, match="cache_dtype 'int4' is unknown; choose 'policy' or 'int8'"
    ):
        make_engine(cache_dtype='int4')
