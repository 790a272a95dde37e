"""Cold start alone: mine hard questions, let the expert solve them with real tools, keep what is sound.

    python -m sensesearch_jax.main --config=configs/cold_start.py --workdir=runs/cold_start

Machine: 2 cores; 2 to 5 minutes. Writes cold_start/kept.jsonl, which configs/sft.py trains on, and the reasons of
every rejection. With --config.expert.kind=openai, .expert.url and .expert.model any OpenAI-compatible model is the
expert; its key comes from the environment variable that .expert.key_env names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import alarms, cold_start, common, config, data, interaction, pocket_train, rollout


def get_config():
    return config(
        common('cold_start'),
        {'agent': interaction(), 'rollout': rollout(groups=8)},
        data(train=pocket_train(360)),
        cold_start(),
        alarms('cold_start'),
    )
