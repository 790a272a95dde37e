"""SFT alone, on the kept trajectories of a cold start.

    python -m sensesearch_jax.main --config=configs/sft.py --workdir=runs/sft \
        --config.sft.data=runs/cold_start/cold_start/kept.jsonl --config.tools.folder=runs/cold_start/tools

Machine: 2 cores; about 9 minutes. Writes sft/policy, a Hugging Face directory, and report.html. The pictures of the
trajectories are where the cold start's tool server kept them, hence tools.folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import alarms, checkpoint, common, config, sft, tower


def get_config():
    return config(
        common('sft'),
        {'rollout': tower(), 'sft': {**sft(), 'data': ''}, 'checkpoint': checkpoint()},
        alarms('sft'),
    )
