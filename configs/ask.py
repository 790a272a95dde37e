"""Asks a policy one question about one picture and prints the trajectory as it happens, or serves a page for it.

    python -m sensesearch_jax.main --config=configs/ask.py --config.policy=runs/pocket/rl/policy \
        --config.image=FILE --config.question='What is the capital of the country whose flag is in the picture?'

    python -m sensesearch_jax.main --config=configs/ask.py --config.policy=runs/pocket/rl/policy --config.ask.page=True

serves a page on this machine: drop a picture, type a question, watch the trajectory grow; docs/watch.md.

Machine: any; about half a minute, most of it compilation.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import agent, common, config, sampler


def get_config():
    return config(
        common('ask'),
        {'agent': agent(), 'rollout': sampler()},
        {'ask': {'page': False, 'port': 0}},
        {'image': '', 'question': '', 'temperature': 0.0, 'top_k': 0, 'top_p': 1.0},
    )
