"""How much of RL's gradient one question shares with another: can so many trajectories teach a
policy anything?

    python -m experiments.gradient_signal --workdir=runs/pocket

Asks the SFT policy of a finished pocket run RL's own questions, in groups as RL does, and takes the
gradient of the policy loss for every group whose members differ in a reward: accuracy, format and
evidence, each alone, and accuracy with evidence as the run weighs it. What two questions have in
common is the cosine of their gradients; what a policy can learn from N of them is signal where N
times that is not small against 1. RL's own rollouts would not do: those of later steps come from
policies that have moved, and imitating them is common to all. 5 minutes for 32 groups on 2 cores.
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
from sensesearch_jax.recipes.rl import (
    make_objective,
    question_order,
    rl_engines,
    rl_questions,
    sample_groups,
)
from sensesearch_jax.recipes.rows import row_batch, suppressed_mask
from sensesearch_jax.recipes.session import Session, Student, load_student, open_session
from sensesearch_jax.rewards.evidence import evidence
from sensesearch_jax.rewards.scorer import LEARNED_FROM
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.advantages import group_advantages
from sensesearch_jax.training.trainer import Learner, PolicyTargets, trained_part

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Of a finished run of configs/pocket.py.', required=True
)
GROUPS = flags.DEFINE_integer(
    'groups', 32, "How many of RL's questions are asked, the first ones of its steps."
)


def sampled(
    session: Session, student: Student, learner: Learner, features: FeatureStore
) -> list[list[Trajectory]]:
    """Groups of the policy as it is."""
    config = session.config.rl
    engines = rl_engines(session, student, learner)
    asked_at = question_order(session.config, rl_questions(session.config, session.workdir))
    groups = []
    for step in tqdm(range(-(-GROUPS.value // config.questions_per_step)), 'rollouts', unit='step'):
        groups += sample_groups(session, student, features, engines, asked_at(step), step)[0]
    for engine in engines:
        engine.release()  # the gradients want the memory
    return groups[: GROUPS.value]


def cosines(gradients: np.ndarray) -> tuple[float, float]:
    """Mean cosine of two different rows, and its standard error as if pairs were independent."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(pairs.mean()), float(pairs.std() / max(len(pairs), 1) ** 0.5)


def main(_) -> None:
    run = Path(WORKDIR.value)
    if not (run / 'sft' / 'policy').is_dir():
        raise app.UsageError(
            f'{run} holds no SFT policy; give the workdir of a finished run of configs/pocket.py.'
        )
    config = ConfigDict(json.loads((run / 'config.json').read_text()))
    config.tools.folder = str(run / 'tools')
    student = load_student(run / 'sft' / 'policy', config, make_mesh(), 'float32')
    learner = Learner(
        student.policy,
        optax.identity(),
        suppressed=suppressed_mask(student),
        temperature=config.rl.temperature,
        objective=make_objective(config.rl),
        threads=2,
        trained=trained_part(config.rl),
    )
    weight = config.rl.get('evidence_weight', 0.0)
    rewards = {
        'accuracy': lambda t: t.reward['accuracy'],
        'format': lambda t: t.reward['format'],
        'evidence': evidence,
        f'accuracy + {weight} evidence': lambda t: t.reward['accuracy'] + weight * evidence(t),
    }
    found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_session(config, Workdir.open(scratch, config.to_dict())) as session,
    ):
        features = session.features(student)
        groups = sampled(session, student, learner, features)
        for group in tqdm(groups, 'gradients', unit='group'):
            usable = np.array([t.state in LEARNED_FROM for t in group])
            batch = row_batch(student, features, [group], len(group), 1)
            differing: dict[str, tuple] = {}
            for name, reward in rewards.items():
                value = np.array([reward(t) for t in group], np.float32)
                advantages = np.asarray(group_advantages(value, np.zeros(len(group), int), usable))
                if np.abs(advantages).sum():
                    differing[name] = batch, PolicyTargets(advantages[None], usable[None], None)
            for name, pair in differing.items():
                gradient, _ = learner.policy_gradient(*pair)
                found[name, group[0].question.kind].append(
                    np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
                )
    asked = Counter(group[0].question.kind for group in groups)
    print(
        '| reward | questions | groups | that differ in it | mean cosine of two gradients |\n|---|---|---|---|---|'
    )
    for name in rewards:
        for kinds in (sorted(asked), *([kind] for kind in sorted(asked))):
            rows = [gradient for kind in kinds for gradient in found[name, kind]]
            if len(rows) > 1:
                mean, error = cosines(np.stack(rows))
                print(
                    f'| {name} | {", ".join(kinds)} | {sum(asked[kind] for kind in kinds)} | {len(rows)} '
                    f'| {mean:.4f} ± {error:.4f} |'
                )


if __name__ == '__main__':
    app.run(main)
