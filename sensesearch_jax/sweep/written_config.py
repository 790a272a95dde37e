"""Config file of a sweep's run: the JSON file that follows the colon.

    python -m sensesearch_jax.main --config=sensesearch_jax/sweep/written_config.py:runs/sweep/runs/grpo-0/rl.json …

starts one task of a run as the sweep does.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config(path: str) -> ConfigDict:
    """The config that `plan.write_config` wrote."""
    return ConfigDict(json.loads(Path(path).read_text(encoding='utf-8')))
