"""Cold start alone: mine hard questions, let the expert solve them with real tools, keep what is sound.

    python -m sensesearch_jax.main --config=configs/cold_start.py --workdir=runs/cold_start

Machine: 2 cores; 2 to 5 minutes. Writes cold_start/kept.jsonl, which configs/sft.py trains on, and the reasons of
every rejection. `configs/cold_start.py:search` demonstrates search, in the pocket world and the invented one, and
hardly any perception, which is left to RL (configs/sweep_algorithms.py). With --config.expert.kind=openai, .expert.url
and .expert.model any OpenAI-compatible model is the expert; its key comes from the environment variable that
.expert.key_env names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    alarms,
    cold_start,
    common,
    config,
    data,
    interaction,
    pocket,
    pocket_train,
    rollout,
)

from sensesearch_jax.errors import UserError


def get_config(kinds: str = 'all'):
    settings = config(
        common('cold_start'),
        {'agent': interaction(), 'rollout': rollout(groups=8)},
        data(train=pocket_train(360)),
        cold_start(),
        alarms('cold_start'),
    )
    if kinds == 'search':
        settings.data.train = [
            *pocket('train', search=100, search_only=40, perception=12),
            *pocket('train', world='invented', search=150, search_only=60, perception=20),
        ]
        settings.tools.config = 'configs/tools_invented.yaml'
    elif kinds != 'all':
        raise UserError(f"configs/cold_start.py:{kinds} is unknown; choose 'all' or 'search'.")
    return settings
