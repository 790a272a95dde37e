"""The whole method, end to end, on real pictures and facts: what a newcomer starts first.

    python -m sensesearch_jax.main --config=configs/pocket.py --workdir=runs/pocket

Machine: 2 cores, 8 GB; up to 25 minutes on a slow machine (cold start 2, SFT 4, RL 13, evaluation 6), 9 on a fast one. Any
step may be interrupted and started again with the same workdir. Expect about 30 % after SFT and 0 before, and 40 % after
RL, which learns what the cold start hardly shows: to answer questions that the picture alone answers.
Writes summary.json, metrics.jsonl, all trajectories and report.html to the workdir.

    python -m sensesearch_jax.main --config=configs/pocket.py:smoke --workdir=runs/smoke

goes through the same stages in a few minutes, with too little of each to learn much.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    agent,
    alarms,
    checkpoint,
    cold_start,
    common,
    config,
    data,
    evaluation,
    measured,
    pocket_rl,
    pocket_test,
    pocket_train,
    pocket_validation,
    rl,
    rl_rollout,
    sft,
    validation,
)

from sensesearch_jax.errors import UserError


def get_config(mode: str = 'full'):
    full = config(
        common('pocket'),
        {'agent': agent(), 'rollout': rl_rollout()},
        data(
            train=pocket_train(360),
            rl=pocket_rl(40),
            validation=pocket_validation(20),
            eval=pocket_test(200),
        ),
        cold_start(),
        {
            'sft': sft(),
            'rl': rl(),
            'checkpoint': checkpoint(),
            **measured(),
            'validation': validation(),
            'evaluate': evaluation(),
        },
        alarms('cold_start', 'sft', 'rl', 'evaluate'),
    )
    if mode == 'smoke':
        full.update(
            {
                'data': {'train': pocket_train(24), 'rl': pocket_rl(6), 'eval': pocket_test(8)},
                'expert': {'questions': 32},
                'sft': {'epochs': 1},
                'rl': {'steps': 2, 'questions_per_step': 4, 'members': 4},
            }
        )
    elif mode != 'full':
        raise UserError(f"configs/pocket.py:{mode} is unknown; choose 'full' or 'smoke'.")
    return full
