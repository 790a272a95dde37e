"""The paper's ablations over seeds: runs of RL from one policy, each with its evaluation, and their comparison.

    python -m sensesearch_jax.sweep --config=configs/sweep_algorithms.py --workdir=runs/algorithms \
        --config.rl.policy=runs/pocket/sft/policy

Variants, each a list of settings times seeds (`--config=configs/sweep_algorithms.py:no_sft`):

    algorithms   GRPO, GSPO and BN-GSPO, 5 seeds each, and the policy that they start from
    no_sft       the same three from the base policy, 3 seeds each: "pure RL", the paper's Table 3
    data         questions of search alone, of perception alone, and of both, 3 seeds each
    price        a price of 0.05 a call in the second half of the steps, and none, 3 seeds each
    means        GSPO's mean over a trajectory's tokens, LUSPO's sum, and a sum over a constant length, 3 seeds each

Machine: 2 cores; a run is as long as configs/rl.py and configs/evaluate.py together, about 15 minutes. Runs go side by side with
--at_once, --cores or --devices, or as the jobs of an array (docs/sweeps.md). Start the same command again after any stop.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import evaluate
import rl
from common import pocket
from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.sweep.plan import product, seeds

ALGORITHMS = [
    {'setting': 'GRPO', 'rl.algorithm': 'grpo'},
    {'setting': 'GSPO', 'rl.algorithm': 'gspo'},
    {'setting': 'BN-GSPO', 'rl.algorithm': 'bn_gspo'},
]
START = {'setting': 'start', 'tasks': ('evaluate',)}


def of_kinds(**counts: int) -> list:
    """Questions of RL about the entities of configs/rl.py."""
    return pocket('validation', **counts)


DATA = [
    {'setting': 'search only', 'rl:data.rl': of_kinds(search=160, search_only=80)},
    {'setting': 'perception only', 'rl:data.rl': of_kinds(perception=240)},
    {'setting': 'both', 'rl:data.rl': of_kinds(search=80, search_only=40, perception=120)},
]
PRICE = [
    {'setting': 'free calls'},
    {
        'setting': 'priced calls',
        'rl.tool_prices': {'text_search': 0.05, 'image_search': 0.05, 'image_crop': 0.05},
        'rl.price_from_step': 12,
    },
]
MEANS = [
    {'setting': 'GSPO', 'rl.algorithm': 'gspo'},
    {'setting': 'LUSPO', 'rl.algorithm': 'luspo'},
    {
        'setting': 'GSPO constant',
        'rl.algorithm': 'gspo',
        'rl.aggregation': 'constant',
        'rl.constant_length': 672,  # seven turns of 96 tokens
    },
]
# Seed after seed, so that an unfinished sweep compares what it has.
VARIANTS = {
    'algorithms': [START, *product(seeds(5), ALGORITHMS)],
    'no_sft': [START, *product(seeds(3), ALGORITHMS)],
    'data': [START, *product(seeds(3), DATA)],
    'price': [START, *product(seeds(3), PRICE)],
    'means': [START, *product(seeds(3), MEANS)],
}


def get_config(variant: str = 'algorithms'):
    if variant not in VARIANTS:
        raise UserError(
            f'configs/sweep_algorithms.py:{variant} is unknown; choose from {", ".join(VARIANTS)}.'
        )
    return ConfigDict({'rl': rl.get_config(), 'evaluate': evaluate.get_config()})


def get_hyper(variant: str = 'algorithms'):
    return VARIANTS[variant]
