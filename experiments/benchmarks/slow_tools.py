"""Cost of slow tools and of a slow judge in a rollout: the same trajectories with tools that answer
at once, and after seconds.

    python -m experiments.benchmarks.slow_tools --workdir=runs/pocket [--groups=128] [--tasks=256] [--judge_s=2]

Takes the SFT policy, questions and tools of a finished pocket run. Waiting times are log-normal
with a median of 2 s and a 99th percentile of 10 s, drawn from what is asked, so that they are the
same whatever comes first; the judge's have the median that is given and the same spread, and every
answer is judged. While some lanes wait the others decode; what is left is the share of lanes that
wait and the last ones' tail, so more groups in flight cost less, and so do more groups in all.
Prints a table; exits with 1 beyond BAR times the time of tools that answer at once. 2 cores, 24 GB:
9 minutes on a fast machine.

With --overlap the questions are steps of RL one after another, the next one's there before one ends
(rl.max_staleness=1), and seconds are those from one step's end to the next; the bar is OVERLAPPED_BAR.
Nothing is trained here: a step's end brings new weights, which are the old ones, at once.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments.benchmarks.work import markdown
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.recipes.session import (
    load_policy_directory,
    open_session,
    read_trajectories,
    rollout_limits,
)
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.lanes import RolloutStatistics
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import Stream
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir

MEDIAN_S, LATE_S, BAR, OVERLAPPED_BAR = 2.0, 10.0, 1.15, 1.05
TIMED = 2  # steps that overlap, behind a first one
SPREAD = math.log(LATE_S / MEDIAN_S) / 2.326  # of a normal distribution's 99th percentile

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Of a finished run of configs/pocket.py.', required=True
)
GROUPS = flags.DEFINE_integer('groups', 128, 'Groups in flight.')
TASKS = flags.DEFINE_integer('tasks', 256, 'Groups in all; questions come again with other seeds.')
JUDGE = flags.DEFINE_float('judge_s', 2.0, 'Median seconds of a verdict.')
MEMBERS = flags.DEFINE_integer('members', 8, 'Trajectories of a group.')
OVERLAP = flags.DEFINE_bool('overlap', False, 'Whether steps overlap.')


class SlowEnvironment(Environment):
    """Every answer comes later than it could."""

    waited: list[float]

    def execute(self, action, images):
        seconds = late(f'{action} {[i.sha256 for i in images]}', MEDIAN_S)
        self.waited.append(seconds)
        time.sleep(seconds)
        return super().execute(action, images)


class SlowScorer(Scorer):
    """Every verdict comes later than it could."""

    def verdict(self, trajectory, answer):
        time.sleep(late(f'{trajectory.question.id} {answer}', JUDGE.value))
        return super().verdict(trajectory, answer)


def late(what: str, median: float) -> float:
    """Seconds that follow from what is asked."""
    return random.Random(what).lognormvariate(math.log(median), SPREAD)


def overlapped(stream: Stream, engines, asked, scorer, on_group) -> tuple[list, RolloutStatistics]:
    """As `Stream.sample`, but for one step among others: costs are those of its share of the time."""
    ends, groups = [], []

    def ask(step):
        left = itertools.count(len(asked) - 1, -1)

        def note(group):
            on_group(group)
            if not next(left):
                ends.append(time.monotonic())
                stream.set_weights([engine.parameters for engine in engines], len(ends))
                ask(step + 2) if len(ends) <= TIMED else stream.queue.stop()

        groups.append(stream.add(asked, scorer, note))

    ask(0)
    ask(1)
    stream.run()
    cost, seconds = stream.cost(), (ends[TIMED] - ends[0]) / TIMED
    waits = cost.waiting_for_tools, cost.waiting_for_judge
    return groups[1], RolloutStatistics(seconds, *(w / cost.seconds * seconds for w in waits))


def main(_) -> None:
    run = Path(WORKDIR.value)
    if not (run / 'sft' / 'policy').is_dir():
        raise app.UsageError(
            f'{run} holds no SFT policy; give the workdir of a finished run of configs/pocket.py.'
        )
    config = ConfigDict(json.loads((run / 'config.json').read_text()))
    config.tools.folder = str(run / 'tools')
    files, members = sorted((run / 'rl' / 'trajectories').glob('*.jsonl')), MEMBERS.value
    found = {t.question.id: t.question for path in files for t in read_trajectories(path)}
    tasks = [
        Task(question, tuple(range(i * members, (i + 1) * members)))
        for i, question in zip(range(TASKS.value), itertools.cycle(found.values()))
    ]
    loaded = load_policy_directory(run / 'sft' / 'policy', config, make_mesh(), 'float32')
    costs, actions, compiled = {}, {}, {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_session(config, Workdir.open(scratch, config.to_dict())) as session,
    ):
        sampling, threads = Sampling(config.rl.temperature), GROUPS.value * members
        asked = {'asked': len(tasks), 'groups': GROUPS.value, 'members': members}
        engines = session.engines(loaded, **asked, sampling=sampling)
        features, plain = session.features(loaded), session.environment()
        slow = SlowEnvironment(plain.client, plain.protocol, plain.tools, plain.limits)
        scorer = session.scorer()
        judge, limits = SlowScorer(**vars(scorer)), rollout_limits(config.agent)
        # The first rollout embeds the pictures that all have in common; it and the second one
        # compile.
        for name, environment, scored, asked in (
            ('pictures', plain, scorer, tasks),
            ('warm-up', slow, scorer, tasks[: GROUPS.value]),
            ('at once', plain, scorer, tasks),
            ('slow tools', slow, scorer, tasks),
            *(
                (
                    ('at once, overlapped', plain, scorer, tasks),
                    ('slow tools, overlapped', slow, scorer, tasks),
                )
                if OVERLAP.value
                else (('slow judge', plain, judge, tasks),)
            ),
            ('slow tools and judge' + ', overlapped' * OVERLAP.value, slow, judge, tasks),
        ):
            slow.waited = []
            stream = Stream(
                engines,
                loaded.chat,
                environment,
                features,
                limits,
                tool_threads=threads,
                judge_threads=threads,
            )
            sample = (
                functools.partial(overlapped, stream, engines)
                if 'overlapped' in name
                else stream.sample
            )
            with Progress(name, len(asked), unit='group') as bar:
                groups, costs[name] = sample(asked, scored, lambda group: bar.update())
            compiled[name] = engines[0].compiles
            actions[name] = [[turn.action for turn in t.turns] for group in groups for t in group]
    middle, late_s = np.quantile(slow.waited, (0.5, 0.99))
    print(f'{len(tasks)} groups of {members}, {GROUPS.value} in flight; {len(slow.waited)} calls, '
          f'median {middle:.1f} s, 99th percentile {late_s:.1f} s')  # fmt: skip
    _, _, *sides = costs
    ratios = {name: costs[name].seconds / costs['at once'].seconds for name in sides}
    rows = []
    for name, ratio in ratios.items():
        cost = costs[name]
        seconds = cost.seconds, cost.waiting_for_tools, cost.waiting_for_judge
        rows.append([name, *(f'{s:.1f}' for s in seconds), f'{ratio:.2f}'])
    columns = '', 'seconds', 'only waiting for tools', 'only for the judge', 'ratio'
    print(*markdown(columns, rows), sep='\n')
    for name in sides[1:]:
        same = sum(a == b for a, b in zip(actions['at once'], actions[name], strict=True))
        print(f'{name}: {same} of {len(actions[name])} trajectories took the same actions')
    more = compiled[sides[-1]] - compiled['at once']
    print(f'{more} programs were compiled while tools or judge were slow')
    barred = [ratio for name, ratio in ratios.items() if 'overlapped' in name or not OVERLAP.value]
    sys.exit(max(barred) > (OVERLAPPED_BAR if OVERLAP.value else BAR))


if __name__ == '__main__':
    keep_memory('experiments.benchmarks.slow_tools')  # as runs of sensesearch_jax.main do
    app.run(main)
