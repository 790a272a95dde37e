"""The whole method, end to end, on real pictures and facts: what a newcomer starts first.

    python -m sensesearch_jax.main --config=configs/pocket.py --workdir=runs/pocket

Machine: 2 cores, 9 GB; 22 to 60 minutes. The first start builds the invented world (some minutes, 180 MB under
~/.cache/sensesearch_jax). Any step may be interrupted and started again with the same workdir. The cold start shows every
kind of question in full, on real training entities and on invented ones; RL asks about invented ones. docs/results.md has
what came out.
Writes summary.json, metrics.jsonl, all trajectories and report.html to the workdir.

    python -m sensesearch_jax.main --config=configs/pocket.py:smoke --workdir=runs/smoke

goes through the same stages in a few minutes, in the pocket world alone and with too little of each to learn much.

    python -m sensesearch_jax.main --config=configs/pocket.py:long --workdir=runs/long

has 160 steps of RL in place of 32: two hours. docs/results.md has both, side by side.
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
    pocket,
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
    train = [
        *pocket('train', search=140, perception=140, search_only=50),
        *pocket('train', world='invented', search=200, perception=200, search_only=70),
    ]
    steps = 160 if mode == 'long' else 32
    # 16 questions a step, each asked once
    fresh = pocket(
        'train',
        world='invented',
        search=7 * steps,
        perception=13 * steps // 2,
        search_only=5 * steps // 2,
    )
    full = config(
        common('pocket'),
        {'agent': agent(), 'rollout': rl_rollout()},
        data(
            train=train,
            rl=[{**source, 'seed': 2} for source in fresh],
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
    full.expert.questions = 800
    full.sft.epochs = 2
    # Over so many steps less padding wins more than the programs of more lengths take to compile.
    full.sft.pack_step, full.rl.pack_step = 256, 1536
    # After a full cold start little is left to find: samples stay near the greedy answers.
    full.rl.update(
        {'steps': steps, 'questions_per_step': 16, 'learning_rate': 6e-5, 'temperature': 0.5}
    )
    full.tools.config = 'configs/tools_invented.yaml'
    if mode == 'smoke':
        full.update(
            {
                'data': {'train': pocket_train(24), 'rl': pocket_rl(6), 'eval': pocket_test(8)},
                'expert': {'questions': 32},
                'sft': {'epochs': 1, 'pack_step': 1536},
                'rl': {'steps': 2, 'questions_per_step': 4, 'members': 4, 'pack_step': 0},
                'tools': {'config': common('pocket')['tools']['config']},
            }
        )
    elif mode not in ('full', 'long'):
        raise UserError(f"configs/pocket.py:{mode} is unknown; choose 'full', 'long' or 'smoke'.")
    return full
