"""A small engine and a driver that plays the scheduler: opens rows, decodes and extends lanes."""

import functools

import numpy as np
import optax
from small_policies import MERGE, PAD, STOP, SUPPRESSED, VOCABULARY, small_policy, table, tokens_of

from sensesearch_jax.batching.group_batch import Member, Row, build_groups
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.training.trainer import Learner

POLICY = small_policy()
MASK = np.isin(np.arange(VOCABULARY), SUPPRESSED)


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
    batch = build_groups(
        rows,
        table(),
        image_token=PAD,
        merge=MERGE,
        members=2,
        width=POLICY.sizes.vision.feature_width,
    )
    learner = Learner(POLICY, optax.sgd(0.1), suppressed=MASK, temperature=temperature, dtype=dtype)
    ours = np.asarray(learner.log_probs(batch))
    own = batch.response_mask[:, :, 1:]
    assert own.sum() > 60
    return np.abs(ours - batch.log_probs[:, :, 1:])[own]
