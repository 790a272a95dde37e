"""Evaluation alone: a policy directory as an agent on held-out questions, the pocket world's or any (--config.data.eval).

    python -m sensesearch_jax.main --config=configs/evaluate.py --workdir=runs/evaluate --config.policy=runs/rl/rl/policy

Machine: 2 cores; about 2 minutes. Prints the scores with their harness card and writes results.jsonl, summary.json, card.json,
table.md, viewer.html and evaluation/policy.jsonl. Leave a tool out with --config.agent.tools="('text_search','image_search')";
ask in one turn with --config.evaluate.mode=direct or rag, several times with --config.evaluate.samples=8
--config.evaluate.temperature=1.0, a served model with --config.evaluate.agent.kind=openai (docs/evaluation.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    agent,
    alarms,
    common,
    config,
    data,
    evaluation,
    pocket_test,
    rollout,
    served_model,
)


def get_config():
    return config(
        common('evaluate'),
        {'agent': agent(), 'rollout': rollout()},
        data(eval=pocket_test(220)),
        {
            # US dollars and requests for a served model, over all starts of the run; 0: any number
            'budget': {'usd': 0.0, 'calls': 0},
            'evaluate': {
                'name': 'policy',
                'mode': 'agent',
                'samples': 1,
                'agent': {'kind': 'policy', **served_model()},
                **evaluation(),
            },
        },
        alarms('evaluate'),
    )
