"""The engine against whole sequences run one by one: the same tokens and log-probs, whatever runs
beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_policies import (
    END,
    MERGE,
    PAD,
    START,
    STOP,
    SUPPRESSED,
    VOCABULARY,
    alone,
    quick_compilation,
    small_policy,
    table,
    tokens_of,
)

from sensesearch_jax.batching.group_batch import Member, Row, build_groups
from sensesearch_jax.model.attention import dispatch
from sensesearch_jax.rollout import engine as engine_module
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling, distribution
from sensesearch_jax.training.trainer import Learner

POLICY = small_policy()
MASK = np.isin(np.arange(VOCABULARY), SUPPRESSED)


@pytest.fixture(autouse=True, scope='module')
def quick():
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_compilation(monkeypatch)
        yield


@functools.cache  # what was in its rows before does not matter to a test: rows are opened anew
def make_engine(
    groups=3,
    members=2,
    chunk=4,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    prompt_capacity=40,
    suffix_capacity=160,
    suppressed=SUPPRESSED,
    cache_dtype='policy',
):
    # Two rows, two lanes and eight tokens a pass, so that prompts and responses take several.
    return Engine(
        POLICY,
        groups=groups,
        members=members,
        prompt_capacity=prompt_capacity,
        suffix_capacity=suffix_capacity,
        chunk=chunk,
        stop=(STOP,),
        suppressed=suppressed,
        sampling=Sampling(temperature, top_k, top_p),
        prefill_rows=2,
        extend_lanes=2,
        extend_tokens=8,
        cache_dtype=cache_dtype,
    )


class Driver:
    """Plays the scheduler: opens rows, decodes and extends lanes, and writes down all that
    happened.

    `lanes` maps (row, member) to what it holds; `ended` collects what stood in rows that were
    opened anew.
    """

    def __init__(self, engine, seed=0):
        self.engine, self.random = engine, np.random.default_rng(seed)
        self.lanes, self.ended = {}, []

    def open(self, rows, parts):
        prompts = [tokens_of(part, self.random) for part in parts]
        following = self.engine.prefill(
            rows, [p for p, _ in prompts], [i for _, i in prompts], table()
        )
        for row, (prompt, images), position in zip(rows, prompts, following, strict=True):
            for g in range(self.engine.members):
                if (row, g) in self.lanes:
                    self.ended.append(self.lanes[row, g])
                # From prompt and member, so that any grid of lanes gives a trajectory the same
                # seed.
                self.lanes[row, g] = {
                    'prompt': prompt,
                    'images': list(images),
                    'tokens': [],
                    'own': [],
                    'log_probs': [],
                    'position': position,
                    'seed': (sum(prompt) + g) % 1000,
                    'first': len(images),
                }

    def decode(self, budgets):
        """Samples on the lanes of `budgets`; returns how many tokens each got."""
        shape = self.engine.groups, self.engine.members
        active, budget, seeds = np.zeros(shape, bool), np.zeros(shape, int), np.zeros(shape, int)
        for lane, most in budgets.items():
            active[lane], budget[lane], seeds[lane] = True, most, self.lanes[lane]['seed']
        chunk = self.engine.decode(active, budget, seeds)
        for lane in budgets:
            state, n = self.lanes[lane], int(chunk.count[lane])
            assert n <= budgets[lane]
            state['tokens'] += chunk.tokens[lane][:n].tolist()
            state['own'] += [True] * n
            state['log_probs'] += chunk.log_probs[lane][:n].tolist()
            state['position'] += n
        assert not chunk.count[~active].any()
        return {lane: int(chunk.count[lane]) for lane in budgets}

    def turn(self, budgets):
        """Decodes until every lane stopped or used its budget."""
        left = dict(budgets)
        while left:
            done = self.decode(left)
            left = {
                lane: most - done[lane]
                for lane, most in left.items()
                if most > done[lane] and not (done[lane] and self.lanes[lane]['tokens'][-1] == STOP)
            }

    def extend(self, parts):
        """Appends a tool's response to the lanes of `parts`."""
        lanes = list(parts)
        new = [tokens_of(parts[lane], self.random) for lane in lanes]
        states = [self.lanes[lane] for lane in lanes]
        following = self.engine.extend(
            lanes,
            [s['tokens'][-1] for s in states],
            [t for t, _ in new],
            [i for _, i in new],
            [s['position'] for s in states],
            table(),
        )
        for state, (tokens, images), position in zip(states, new, following, strict=True):
            state['tokens'] += tokens
            state['own'] += [False] * len(tokens)
            state['log_probs'] += [0.0] * len(tokens)
            state['images'] += images
            state['position'] = position

    def everything(self):
        return [*self.ended, *self.lanes.values()]

    def sequences(self):
        return [(s['prompt'] + s['tokens'], s['images']) for s in self.everything()]


def play(engine, seed=0):
    """Prompts with and without pictures, unequal turns, tool responses, a row that is filled anew."""
    driver = Driver(engine, seed)
    driver.open([0, 1, 2], [[5, 'scene', 6], [9, 'thumbnail', 3], [4]])
    driver.turn({(0, 0): 6, (0, 1): 3, (1, 0): 9, (1, 1): 5, (2, 0): 1, (2, 1): 7})
    driver.extend({(0, 0): [3, 'crop', 2], (1, 1): [7], (2, 0): [2, 'thumbnail', 1, 'crop', 4]})
    driver.turn({(0, 0): 5, (1, 1): 6, (2, 0): 4, (0, 1): 2})
    driver.open([1], [[2, 'crop', 2]])  # while the others are in the middle of a turn
    driver.turn({(1, 0): 4, (1, 1): 7, (0, 0): 3, (2, 1): 2})
    driver.extend({(1, 0): [5], (0, 1): [1, 'scene', 3]})
    driver.turn({(1, 0): 6, (0, 1): 5, (2, 0): 3})
    return driver


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
    """What the sampler says of its tokens is what the trainer computes for the batch of groups."""
    driver = play(make_engine(temperature=temperature, cache_dtype=cache_dtype), seed=1)
    gap = gap_to_trainer(driver, temperature, jnp.float32)
    assert gap.max() < most and (gap.mean() > 1e-5) == (cache_dtype == 'int8')
    sampled = np.concatenate([np.array(s['tokens'])[s['own']] for s in driver.everything()])
    assert not np.isin(sampled, SUPPRESSED).any()


def gap_to_trainer(driver, temperature, dtype):
    """Between the sampler's log-probs of its tokens and those of a trainer that computes in this
    dtype."""
    rows = []
    for pair in (driver.ended, *([driver.lanes[row, g] for g in range(2)] for row in range(3))):
        rows.append(
            Row(
                pair[0]['prompt'],
                pair[0]['images'][: pair[0]['first']],
                [
                    Member(s['tokens'], s['own'], s['images'][s['first'] :], s['log_probs'])
                    for s in pair
                ],
            )
        )
    batch = build_groups(rows, table(), image_token=PAD, merge=MERGE, members=2)
    learner = Learner(POLICY, optax.sgd(0.1), suppressed=MASK, temperature=temperature, dtype=dtype)
    ours = np.asarray(learner.log_probs(batch))
    own = batch.response_mask[:, :, 1:]
    assert own.sum() > 60
    return np.abs(ours - batch.log_probs[:, :, 1:])[own]


@pytest.mark.parametrize('cache_dtype', ['policy', 'int8'])
def test_everything_follows_the_dtype_of_the_parameters(monkeypatch, cache_dtype):
    """Of an engine and its twin, by either way through dispatch, when weights of another dtype come
    and go again."""
    monkeypatch.setattr(dispatch, 'LONG', 4)  # a response's pass is long, a token's is not
    engine = make_engine.__wrapped__(temperature=1.0, cache_dtype=cache_dtype)
    exact, half = (
        engine.parameters,
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), engine.parameters),
    )
    before = play(engine)
    for one in (engine, engine.twin()):
        one.set_parameters(half)
        driver = play(one)
        kept = one.caches.prefix.keys, one.caches.suffix.values
        assert {x.dtype for x in kept} == {
            jnp.dtype('int8' if cache_dtype == 'int8' else 'bfloat16')
        }
        assert gap_to_trainer(driver, 1.0, jnp.bfloat16).mean() < 0.03
    compiled = engine.compiles
    engine.set_parameters(jax.tree.map(lambda x: x + x, half))
    play(engine)
    assert engine.compiles == compiled
    engine.set_parameters(exact)
    assert [s['tokens'] for s in play(engine).everything()] == [
        s['tokens'] for s in before.everything()
    ]


def test_what_is_warmed_up_is_of_the_dtype_that_samples():
    engine = make_engine.__wrapped__(temperature=1.0)
    engine.set_parameters(jax.tree.map(lambda x: x.astype(jnp.bfloat16), engine.parameters))
    engine.warm_up()

    def compiled():
        return [f.program._cache_size() for f in (engine._extend, engine._decode)]

    before = compiled()
    play(engine)
    assert compiled() == before and engine.caches.suffix.keys.dtype == jnp.bfloat16


def test_an_engine_of_shapes_lowers_in_their_dtype():
    """Nothing of a large one is in float32 but what is said to be: the draw and the rotation."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    graph, state = nnx.split(POLICY)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=place), state
    )
    engine = Engine(
        nnx.merge(graph, shapes),
        groups=2,
        members=2,
        prompt_capacity=40,
        suffix_capacity=160,
        chunk=4,
        stop=(STOP,),
        suppressed=SUPPRESSED,
    )
    operands = jax.tree.leaves([program.in_avals for program in engine.lower(32, 164).values()])
    assert {x.dtype for x in operands if jnp.issubdtype(x.dtype, jnp.floating)} == {
        jnp.dtype(jnp.bfloat16)
    }


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
    """A narrower grid decodes, with the same tokens as all lanes at once; who was left out comes
    first the next time."""
    prompts = [tokens_of([4 + row], np.random.default_rng(row))[0] for row in range(2)]
    awake = np.zeros((2, 8), bool)
    awake[0, [0, 2, 5, 6, 7]] = awake[1, [1, 3, 4]] = True
    budget, seeds = np.full((2, 8), 20), np.arange(16).reshape(2, 8)

    def sample(active):
        engine = make_engine(groups=2, members=8, temperature=1.0)
        engine.prefill([0, 1], prompts, [[], []], table())
        tokens = [[[] for _ in range(8)] for _ in range(2)]
        shapes = []
        for _ in range(2):
            at, _ = engine._taking_part(active)
            shapes.append(at[1].shape[1])
            chunk = engine.decode(active, budget, seeds)
            for row, member in zip(*np.nonzero(active)):
                tokens[row][member] += chunk.tokens[
                    row, member, : chunk.count[row, member]
                ].tolist()
        return tokens, shapes

    wanted, wide = sample(np.ones((2, 8), bool))
    found, narrow = sample(awake)
    assert wide == [8] * 2 and narrow == [4] * 2
    for row, member in zip(*np.nonzero(awake)):
        got = found[row][member]
        assert got and got == wanted[row][member][: len(got)]


def test_nothing_compiles_after_warm_up():
    engine = make_engine(
        temperature=1.0
    )  # other tests may have warmed it up, which only makes this harder
    play(engine)
    warm = engine.compiles
    assert warm > 0
    play(engine, seed=4)
    before = engine.parameters
    engine.set_parameters(jax.tree.map(lambda x: x * 1.01, before))
    play(engine, seed=5)
    assert engine.compiles == warm
    engine.set_parameters(before)


def test_warm_up_compiles_every_size_of_extend_and_decode(monkeypatch):
    monkeypatch.setattr(engine_module, 'CACHE_STEP', 16)
    engine = make_engine.__wrapped__(temperature=1.0)
    engine.warm_up()

    def compiled():
        return [f.program._cache_size() for f in (engine._extend, engine._decode)]

    sizes, before = {engine._used(n) for n in range(1, 165)}, compiled()
    assert len(sizes) > 3 and max(sizes) == 164
    assert before == [len(sizes), 3 * len(sizes)]  # all lanes, half of each row, few lanes
    found = play(engine)
    assert compiled() == before
    wanted = play(make_engine(temperature=1.0))
    assert [s['tokens'] for s in found.everything()] == [s['tokens'] for s in wanted.everything()]


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
    driver.extend(
        {(0, 0): [5, 'crop', 4]}
    )  # the pending token and 5 + 10 + 4 new ones, but for the last
    assert engine.tokens_run == 19 + sampled + 19
    assert engine.room((0, 0)) == 160 - counts[0, 0] - 19 and engine.room((0, 1)) == 160
    driver.open([0], [[8]])
    assert engine.room((0, 0)) == 160


def test_the_last_token_that_fits_is_as_right_as_the_first():
    engine = make_engine(groups=1, members=2, chunk=7, suffix_capacity=30)
    driver = Driver(engine)
    driver.open([0], [[5]])
    driver.turn({(0, 0): 30, (0, 1): 11})
    tokens = driver.lanes[0, 0]['tokens']
    assert len(tokens) == 30 and engine.room((0, 0)) == 0
    logits = np.where(MASK, -np.inf, alone(POLICY, driver.sequences())[0])
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
