"""The paper's ablations over seeds: runs of RL from one policy, each with its evaluation, and their comparison.

    python -m sensesearch_jax.main --config=configs/cold_start.py:search --workdir=runs/cold
    python -m sensesearch_jax.main --config=configs/sft.py --workdir=runs/sft \
        --config.sft.data=runs/cold/cold_start/kept.jsonl --config.tools.folder=runs/cold/tools
    python -m sensesearch_jax.sweep --config=configs/sweep_algorithms.py --workdir=runs/ablations \
        --config.rl.policy=runs/sft/sft/policy --cores=0 --cores=1

Machine: 2 cores; the first two take 5 minutes, and each run 8 minutes of one core. That SFT policy has seen few
demonstrations, hardly any of perception, so RL has much to find. It asks about invented entities; the evaluation asks 80 test
questions of each kind.

Variants, each a list of settings times seeds (`--config=configs/sweep_algorithms.py:data`), and the policy that they start from:

    algorithms   GRPO, GSPO and BN-GSPO, 5 seeds each
    no_sft       the same three from the base policy, 3 seeds each: "pure RL", the paper's Table 3
    data         questions of search alone, of perception alone, and of both, 3 seeds each
    price        a price of 0.05 a call in the second half of the steps, and none, 3 seeds each
    means        a trajectory's mean, LUSPO's sum, a sum over a constant length, and a rate as much larger as the batch layer
                 makes the gradient, 3 seeds each
    staleness    the next step sampled while this one trains, and not, 3 seeds each
    all          all of these

Several variants in one workdir share the runs that they have in common. Runs go side by side with --at_once, --cores or
--devices, or as the jobs of an array (docs/sweeps.md). Start the same command again after any stop.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import evaluate
import rl
from common import pocket, pocket_test
from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.sweep.plan import product, seeds

STEPS, QUESTIONS = 16, 8


def of_kinds(**counts: int) -> list:
    """Questions of RL about invented entities; which, the run's seed says."""
    return pocket('train', world='invented', **counts)


START = {'setting': 'start', 'tasks': ('evaluate',)}
BASE = {'setting': 'base', 'tasks': ('evaluate',), 'policy': ''}
GRPO = {'setting': 'GRPO', 'rl.algorithm': 'grpo'}
GSPO = {'setting': 'GSPO', 'rl.algorithm': 'gspo'}
BN_GSPO = {'setting': 'BN-GSPO', 'rl.algorithm': 'bn_gspo'}
# The other settings are BN-GSPO's on both kinds of question, with free calls, but for what they say.
NO_SFT = [
    {**setting, 'setting': f'{setting["setting"]}, no SFT', 'policy': ''}
    for setting in (BN_GSPO, GRPO, GSPO)
]
SEARCH = {'setting': 'search alone', 'rl:data.rl': of_kinds(search=86, search_only=42)}
PERCEPTION = {'setting': 'perception alone', 'rl:data.rl': of_kinds(perception=128)}
PRICED = {
    'setting': 'priced calls',
    'rl.tool_prices': {'text_search': 0.05, 'image_search': 0.05, 'image_crop': 0.05},
    'rl.price_from_step': STEPS // 2,
}
STALE = {'setting': 'staleness 1', 'rl.max_staleness': 1}
MEANS = [
    # the mean gain of the batch layer in these runs
    {**GSPO, 'setting': 'GSPO, rate times 1.2', 'rl.learning_rate': 1.2e-4},
    {'setting': 'LUSPO', 'rl.algorithm': 'luspo'},
    {
        **GSPO,
        'setting': 'GSPO, constant length',
        'rl.aggregation': 'constant',
        'rl.constant_length': 128,  # tokens; what a trajectory of the starting policy writes
    },
]
ALGORITHMS = [BN_GSPO, GSPO, GRPO]
# Seed after seed, so that an unfinished sweep compares what it has.
VARIANTS = {
    'algorithms': [START, *product(seeds(5), ALGORITHMS)],
    'no_sft': [BASE, *product(seeds(3), NO_SFT)],
    'data': [START, *product(seeds(3), [BN_GSPO, SEARCH, PERCEPTION])],
    'price': [START, *product(seeds(3), [BN_GSPO, PRICED])],
    'means': [START, *product(seeds(3), [BN_GSPO, GSPO, *MEANS])],
    'staleness': [START, *product(seeds(3), [BN_GSPO, STALE])],
    'all': [
        START,
        BASE,
        *product(seeds(3), [*ALGORITHMS, PRICED, PERCEPTION, SEARCH, NO_SFT[0], STALE]),
        *product(seeds(5)[3:], ALGORITHMS),
        *product(seeds(3), [*MEANS, *NO_SFT[1:]]),
    ],
}


def get_config(variant: str = 'algorithms'):
    if variant not in VARIANTS:
        raise UserError(
            f'configs/sweep_algorithms.py:{variant} is unknown; choose from {", ".join(VARIANTS)}.'
        )
    trained, asked = rl.get_config(), evaluate.get_config()
    for settings in trained, asked:
        settings.tools.config = 'configs/tools_invented.yaml'
    trained.data.rl = of_kinds(perception=64, search=43, search_only=21)
    # Two updates a step, so that in the second the ratio is not 1.
    trained.rl.update(
        {'steps': STEPS, 'questions_per_step': QUESTIONS, 'minibatches': 2, 'pack_step': 1536}
    )
    # A run has one core.
    trained.rollout.engines = asked.rollout.engines = trained.rl.threads = 1
    asked.data.eval = pocket_test(80)
    return ConfigDict({'rl': trained, 'evaluate': asked})


def get_hyper(variant: str = 'algorithms'):
    return VARIANTS[variant]
