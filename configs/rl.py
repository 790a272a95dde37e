"""RL alone: BN-GSPO from a policy directory (an SFT policy), with real tools.

    python -m sensesearch_jax.main --config=configs/rl.py --workdir=runs/rl --config.policy=runs/sft/sft/policy

Machine: 2 cores; about 5 minutes in the main job, 13 on a slow machine. Writes rl/policy, report.html and every
trajectory of every step. The ablations of the paper are --config.rl.algorithm=grpo, gspo or bn_gspo.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import agent, alarms, checkpoint, common, config, data, pocket_rl, rl, rl_rollout


def get_config():
    settings = config(
        common('rl'),
        {'agent': agent(), 'rollout': rl_rollout()},
        data(rl=pocket_rl(40)),
        {'rl': rl(), 'checkpoint': checkpoint()},
        alarms('rl'),
    )
    del settings.rollout.dtype  # RL samples in the type that it trains in
    return settings
