"""How much of RL's gradient one question shares with another: can so many trajectories teach a policy anything?

    python -m experiments.gradient_signal --workdir=runs/pocket

Takes the rollouts of a finished pocket run and, at its SFT policy, the gradient of the policy loss for every group that
has right and wrong answers (accuracy alone counts). What two questions have in common is the cosine of their gradients;
what a policy can learn from N of them is signal where N times that is not small against 1. 2 cores: 5 minutes for 100
groups.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from absl import app, flags
from ml_collections import ConfigDict
from tqdm import tqdm

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.learning.advantages import group_advantages
from sensesearch_jax.learning.steps import Learner, PolicyTargets
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.tasks.rl import LEARNED_FROM, make_objective
from sensesearch_jax.tasks.session import load_student, open_session, read_trajectories
from sensesearch_jax.tasks.sft import row_batch, suppressed_mask

WORKDIR = flags.DEFINE_string('workdir', None, 'Of a finished run of configs/pocket.py.', required=True)
STEPS = flags.DEFINE_integer('steps', 12, 'RL steps whose rollouts are taken, the first ones.')


def groups_of(folder: Path, steps: int) -> list[list[Trajectory]]:
    """The groups of the first steps."""
    groups = []
    for path in sorted(folder.glob('*.jsonl'))[:steps]:
        found: dict[str, list[Trajectory]] = {}
        for trajectory in read_trajectories(path):
            found.setdefault(trajectory.question.id, []).append(trajectory)
        groups += found.values()
    return groups


def cosines(gradients: np.ndarray) -> tuple[float, float]:
    """Mean cosine of two different rows, and its standard error as if pairs were independent."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(pairs.mean()), float(pairs.std() / max(len(pairs), 1)**0.5)


def main(_) -> None:
    run = Path(WORKDIR.value)
    if not (run / 'sft' / 'policy').is_dir() or not (groups := groups_of(run / 'rl' / 'trajectories', STEPS.value)):
        raise app.UsageError(f'{run} holds no SFT policy or no rollouts; give the workdir of a finished run of configs/pocket.py.')
    config = ConfigDict(json.loads((run / 'config.json').read_text()))
    config.tools.folder = str(run / 'tools')
    student = load_student(run / 'sft' / 'policy')
    learner = Learner(student.policy, optax.identity(), suppressed=suppressed_mask(student),
                      temperature=config.rl.temperature, objective=make_objective(config.rl))
    kinds, gradients = [], []
    with (tempfile.TemporaryDirectory() as scratch,
          open_session(config, Workdir.open(scratch, config.to_dict())) as session):
        features = session.features(student)
        for group in tqdm(groups, 'gradients', unit='group'):
            right = np.array([t.reward['accuracy'] for t in group], np.float32)
            usable = np.array([t.state in LEARNED_FROM for t in group])
            advantages = np.asarray(group_advantages(right, np.zeros(len(group), int), usable))
            if not np.abs(advantages).sum():
                continue
            targets = PolicyTargets(advantages[None], usable[None], None)
            batch = row_batch(student, features, [group], len(group), 1)
            (gradient, _), = learner.policy_gradients([(batch, targets)])
            gradients.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
            kinds.append(group[0].question.kind)
    found, of = np.stack(gradients), np.array(kinds)
    print('| questions | groups | with right and wrong answers | mean cosine of two gradients |\n|---|---|---|---|')
    for kind in ['all', *sorted(set(kinds))]:
        chosen = np.ones(len(of), bool) if kind == 'all' else of == kind
        asked = sum(kind in ('all', g[0].question.kind) for g in groups)
        if chosen.sum() > 1:
            mean, error = cosines(found[chosen])
            print(f'| {kind} | {asked} | {chosen.sum()} | {mean:.4f} ± {error:.4f} |')


if __name__ == '__main__':
    app.run(main)
