"""SFT alone, on the kept trajectories of a cold start.

    python -m sensesearch_jax.main --config=configs/sft.py --workdir=runs/sft \
        --config.sft.data=runs/cold_start/cold_start/kept.jsonl --config.tools.folder=runs/cold_start/tools

Machine: 2 cores; about 9 minutes. Writes sft/policy, a Hugging Face directory, and report.html. The pictures of the
trajectories are where the cold start's tool server kept them, hence tools.folder. `agent` and most of `rollout` are of
validation: with --config.sft.validate_every=50 the questions of data.validation are asked every 50 steps, and the best
checkpoint is kept (docs/validation.md).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    agent,
    alarms,
    checkpoint,
    common,
    config,
    data,
    measured,
    pocket_validation,
    rollout,
    sft,
    validation,
)


def get_config():
    settings = config(
        common('sft'),
        {'agent': agent(), 'rollout': rollout()},
        data(validation=pocket_validation(20)),
        {'sft': {**sft(), 'data': ''}, 'checkpoint': checkpoint(), **measured()},
        {'validation': validation()},
        alarms('sft'),
    )
    del settings.rollout.dtype  # validation samples in the type that SFT trains in
    return settings
