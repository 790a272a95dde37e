"""A benchmark of your own, from pictures with boxes and questions, as HR-MMSearch was made.

    python -m sensesearch_jax.main --config=configs/build_benchmark.py --workdir=DIR --config.benchmark.data=items.jsonl
    python -m sensesearch_jax.data.review DIR/benchmark/candidates.jsonl

The first command checks every item (resolution, area of the box, one answer that does not stand in the question, pictures
that are nearly the same) and has the policy, as an agent with the config's tools, answer the sound ones eight times: hard
is an item that it never gets right. It writes benchmark/faults.jsonl, candidates.jsonl, trajectories.jsonl and summary.json;
interrupted, it goes on. The second serves a page on which a person accepts or rejects each, and keeps the accepted ones.
docs/build_benchmark.md has the form of an item.

Machine: 2 cores. With --config.benchmark.samples=0 no policy is asked: a few seconds for a hundred 4K pictures. With the project's
base policy and the pocket tools (the defaults) a hundred items take minutes. configs/build_benchmark.py:7b has the paper's
agent for a Qwen2.5-VL-7B and the tools of configs/tools_online.yaml.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import agent, common, config, rollout
from common_7b import as_7b

from sensesearch_jax.errors import UserError


def get_config(policy: str = 'pocket'):
    settings = config(
        common('build_benchmark'),
        {'agent': agent(), 'rollout': rollout(groups=8)},
        {
            'benchmark': {
                'data': '',
                'min_width': 3840,
                'min_height': 2160,
                'max_area': 0.05,
                'max_likeness': 0.9,
                'samples': 8,
                'temperature': 1.0,
            }
        },
    )
    if policy == '7b':
        return as_7b(settings)
    if policy != 'pocket':
        raise UserError(f"configs/build_benchmark.py:{policy} is unknown; choose 'pocket' or '7b'.")
    return settings
