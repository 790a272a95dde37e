"""How much of RL's gradient one question shares with another: can so many trajectories teach a policy anything?

    python -m experiments.gradient_signal --workdir=runs/pocket

Takes the rollouts of a finished pocket run and, at its SFT policy, the gradient of the policy loss for every group whose
members differ in a reward: accuracy, format and evidence, each alone, and accuracy with evidence as the run weighs it.
What two questions have in common is the cosine of their gradients; what a policy can learn from N of them is signal where
N times that is not small against 1. 9 minutes for 32 groups on one core beside other work.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
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
from sensesearch_jax.rewards.evidence import evidence
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
    weight = config.rl.get('evidence_weight', 0.0)
    rewards = {
        'accuracy': lambda t: t.reward['accuracy'],
        'format': lambda t: t.reward['format'],
        'evidence': evidence,
        f'accuracy + {weight} evidence': lambda t: t.reward['accuracy'] + weight * evidence(t),
    }
    found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    with (tempfile.TemporaryDirectory() as scratch,
          open_session(config, Workdir.open(scratch, config.to_dict())) as session):
        features = session.features(student)
        for group in tqdm(groups, 'gradients', unit='group'):
            usable = np.array([t.state in LEARNED_FROM for t in group])
            batch = row_batch(student, features, [group], len(group), 1)
            for name, reward in rewards.items():
                value = np.array([reward(t) for t in group], np.float32)
                advantages = np.asarray(group_advantages(value, np.zeros(len(group), int), usable))
                if np.abs(advantages).sum():
                    targets = PolicyTargets(advantages[None], usable[None], None)
                    (gradient, _), = learner.policy_gradients([(batch, targets)])
                    found[name, group[0].question.kind].append(
                        np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
    asked = Counter(group[0].question.kind for group in groups)
    print('| reward | questions | groups | that differ in it | mean cosine of two gradients |\n|---|---|---|---|---|')
    for name in rewards:
        for kinds in (sorted(asked), *([kind] for kind in sorted(asked))):
            differing = [gradient for kind in kinds for gradient in found[name, kind]]
            if len(differing) > 1:
                mean, error = cosines(np.stack(differing))
                print(f'| {name} | {", ".join(kinds)} | {sum(asked[kind] for kind in kinds)} | {len(differing)} '
                      f'| {mean:.4f} ± {error:.4f} |')


if __name__ == '__main__':
    app.run(main)
