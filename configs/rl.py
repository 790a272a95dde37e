"""RL alone: BN-GSPO from a policy directory (an SFT policy), with real tools.

    python -m sensesearch_jax.main --config=configs/rl.py --workdir=runs/rl --config.policy=runs/sft/sft/policy

Machine: 2 cores; 5 to 15 minutes. Writes rl/policy, report.html and every
trajectory of every step. The ablations of the paper are --config.rl.algorithm=grpo, gspo or bn_gspo. With
--config.rl.validate_every=6 the questions of data.validation are asked every six steps, and the best checkpoint is kept
(docs/validation.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    agent,
    alarms,
    checkpoint,
    common,
    config,
    data,
    measured,
    pocket_rl,
    pocket_validation,
    rl,
    rl_rollout,
    validation,
)


def get_config():
    settings = config(
        common('rl'),
        {'agent': agent(), 'rollout': rl_rollout()},
        data(rl=pocket_rl(96), validation=pocket_validation(20)),
        {'rl': rl(), 'checkpoint': checkpoint(), **measured()},
        {'validation': validation()},
        alarms('rl'),
    )
    del settings.rollout.dtype  # RL samples in the type that it trains in
    return settings
