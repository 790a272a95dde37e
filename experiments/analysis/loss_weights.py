"""The share of the policy loss that falls on trajectories that were right, wrong or ran out of turns.

    python -m experiments.analysis.loss_weights --run=runs/rl

At the first update on a step every ratio is 1: a trajectory's weight is its advantage, once (means over its
tokens: GSPO, BN-GSPO) or for each of its tokens (sums: GRPO, LUSPO, a constant length).
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.benchmarks.work import markdown
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.batching.from_trajectories import response_tokens
from sensesearch_jax.recipes.session import read_trajectories
from sensesearch_jax.rewards.scorer import is_usable
from sensesearch_jax.training.advantages import group_advantages

RUN = flags.DEFINE_string('run', 'runs/rl', 'workdir of a run of RL')


def main(_) -> None:
    files = sorted((Path(RUN.value) / 'rl' / 'trajectories').glob('*.jsonl'))
    sampled = [(f.stem, t) for f in files for t in read_trajectories(f) if is_usable(t)]
    if not sampled:
        raise app.UsageError(f'{RUN.value} has no trajectories of RL; give the workdir of a run.')
    groups = np.unique([f'{step} {t.question.id}' for step, t in sampled], return_inverse=True)[1]
    rewards = np.array([t.reward['total'] for _, t in sampled], np.float32)
    means = np.abs(group_advantages(rewards, groups, np.ones(len(rewards), bool)))
    tokens = np.array([response_tokens(t) for _, t in sampled])
    right = np.array([t.reward['accuracy'] > 0.5 for _, t in sampled])
    out, rows = np.array([t.state is SampleState.TRUNCATED for _, t in sampled]), []
    for end, found in (('right', right), ('wrong', ~right & ~out), ('ran out of turns', out)):
        shares = (100 * x[found].sum() / x.sum() for x in (right | True, means, means * tokens))
        rows.append([end, *(f'{x:.0f}' for x in shares), f'{tokens[found].mean():.0f}'])
    print(*markdown(('', 'all, %', 'means, %', 'sums, %', 'tokens'), rows), sep='\n')


if __name__ == '__main__':
    app.run(main)
