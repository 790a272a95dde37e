"""BN-GSPO on a 7B policy with the paper's settings: 128 questions × 8 trajectories a step, learning rate 1e-6.

    python -m sensesearch_jax.main --config=configs/rl_7b.py --workdir=DIR --config.policy=SFT/sft/policy

Mesh: every device of one host along fsdp; a minibatch is one update. Programs of several hosts are for SFT so far, so
this wants a host whose devices hold 122 GB of float32 state, 30 GB of the reference and the caches (eight GPUs of 80
GB, or four chips of TPU v5p). Steps: 150 of the paper's 150 to 300. Not run: no such machine was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import config, questions, rl  # noqa: E402
from common_7b import common_7b  # noqa: E402


def get_config():
    settings = config(common_7b('rl'), {'questions': questions(train=240, test=0), 'rl': rl()})
    settings.rl.update(learning_rate=1e-6, warmup=0, steps=150, questions_per_step=128, members=8, minibatches=1,
                       micro_batch=8, kl_coefficient=1e-4, checkpoint_every=10, dtype='bfloat16', remat='full')
    return settings
