"""What slow tools cost a rollout: the same trajectories with tools that answer at once, and with tools that take seconds.

    python -m experiments.slow_tools --workdir=runs/pocket [--groups=128] [--tasks=256]

Takes the SFT policy, questions and tools of a finished pocket run. Waiting times are log-normal with a median of 2 s and a
99th percentile of 10 s, drawn from what is asked, so that they are the same whatever comes first. While some lanes wait
the others decode; what is left is the share of lanes that wait and the last ones' tail, so more groups in flight cost
less, and so do more groups in all. Prints a table; exits with 1 beyond BAR times the time of tools that answer at once.
2 cores, 24 GB: 9 minutes on a fast machine.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import Task, rollout
from sensesearch_jax.runtime.allocator import keep_memory
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.tasks.session import load_student, open_session, read_trajectories, rollout_limits

MEDIAN_S, LATE_S, BAR = 2.0, 10.0, 1.15
SPREAD = math.log(LATE_S / MEDIAN_S) / 2.326  # of a normal distribution's 99th percentile

WORKDIR = flags.DEFINE_string('workdir', None, 'Of a finished run of configs/pocket.py.', required=True)
GROUPS = flags.DEFINE_integer('groups', 128, 'Groups in flight.')
TASKS = flags.DEFINE_integer('tasks', 256, 'Groups in all; questions come again with other seeds.')
MEMBERS = flags.DEFINE_integer('members', 8, 'Trajectories of a group.')


class SlowEnvironment(Environment):
    """Every answer comes later than it could."""

    waited: list[float]

    def execute(self, action, images):
        seconds = random.Random(f'{action} {[i.sha256 for i in images]}').lognormvariate(math.log(MEDIAN_S), SPREAD)
        self.waited.append(seconds)
        time.sleep(seconds)
        return super().execute(action, images)


def main(_) -> None:
    run = Path(WORKDIR.value)
    if not (run / 'sft' / 'policy').is_dir():
        raise app.UsageError(f'{run} holds no SFT policy; give the workdir of a finished run of configs/pocket.py.')
    config = ConfigDict(json.loads((run / 'config.json').read_text()))
    config.tools.folder = str(run / 'tools')
    found = {t.question.id: t.question for path in sorted((run / 'rl' / 'trajectories').glob('*.jsonl'))
             for t in read_trajectories(path)}
    questions = list(found.values())
    student = load_student(run / 'sft' / 'policy')
    seconds: dict[str, float] = {}
    idle: dict[str, float] = {}  # nothing to decode, only answers to wait for
    actions: dict[str, list] = {}
    compiled: dict[str, int] = {}  # programs, until then
    with (tempfile.TemporaryDirectory() as scratch,
          open_session(config, Workdir.open(scratch, config.to_dict())) as session):
        engines = session.engines(student, groups=GROUPS.value, members=MEMBERS.value,
                                  sampling=Sampling(config.rl.temperature))
        features, plain = session.features(student), session.environment()
        slow = SlowEnvironment(plain.client, plain.protocol, plain.tools, plain.limits)
        limits = rollout_limits(config.agent)
        tasks = [Task(q, tuple(range(i, i + MEMBERS.value)))
                 for i, q in zip(range(0, TASKS.value * MEMBERS.value, MEMBERS.value), itertools.cycle(questions))]
        # The first rollout embeds the pictures that all have in common; it and the second one compile.
        for name, environment, asked in (('pictures', plain, tasks), ('warm-up', slow, tasks[:GROUPS.value]),
                                         ('at once', plain, tasks), ('slow', slow, tasks)):
            slow.waited = []
            with Progress(name, len(asked), unit='group') as bar:
                groups, cost = rollout(asked, engines, student.chat, environment, features, limits,
                                       tool_threads=GROUPS.value * MEMBERS.value, on_group=lambda group: bar.update())
            seconds[name], idle[name] = cost.seconds, cost.waiting_for_tools
            compiled[name] = engines[0].compiles
            actions[name] = [[turn.action for turn in t.turns] for group in groups for t in group]
    waited = sorted(slow.waited)
    print(f'{len(tasks)} groups of {MEMBERS.value}, {GROUPS.value} in flight; {len(waited)} calls, median '
          f'{waited[len(waited) // 2]:.1f} s, 99th percentile {waited[int(0.99 * len(waited))]:.1f} s')
    print('| tools | seconds | of them with nothing to decode | ratio |\n|---|---|---|---|')
    for name in ('at once', 'slow'):
        print(f'| {name} | {seconds[name]:.1f} | {idle[name]:.1f} | {seconds[name] / seconds["at once"]:.2f} |')
    same = sum(a == b for a, b in zip(actions['at once'], actions['slow'], strict=True))
    print(f'{same} of {len(actions["slow"])} trajectories took the same actions; '
          f'{compiled["slow"] - compiled["at once"]} programs were compiled while tools were slow')
    sys.exit(seconds['slow'] > BAR * seconds['at once'])


if __name__ == '__main__':
    keep_memory('experiments.slow_tools')  # as runs of sensesearch_jax.main do
    app.run(main)
