"""Evaluation of a 7B policy as an agent with the paper's turns and budgets on HR-MMSearch, greedy.

    python -m sensesearch_jax.main --config=configs/evaluate_7b.py --workdir=DIR --config.policy=SFT/sft/policy

HR-MMSearch is converted by `python -m sensesearch_jax.data.convert hr_mmsearch FILES DATA` (with --config.data.dir=DATA);
--config.data.eval names other sets or files, with commas between (docs/data.md).
Machine: a GPU of 80 GB or several, and the keys of configs/tools_online.yaml.
Mesh: all devices along fsdp, so that each is a replica of its own and holds the parameters (17 GB in bfloat16) and the caches
of `evaluate.lanes` trajectories (1.9 GB each for 32,768 tokens). Where a device has less, or for more lanes,
--config.mesh.tensor=4 makes replicas of four, which shard heads and caches. On several hosts add --config.multi_host=True.
Not run: no machine of this size was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import evaluate
from common_7b import as_7b


def get_config():
    settings = as_7b(evaluate.get_config())
    settings.data.eval = 'hr_mmsearch'
    settings.evaluate.lanes = 8
    return settings
