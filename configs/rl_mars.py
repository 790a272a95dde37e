r"""BN-GSPO alone on Qwen3-VL-8B-Instruct, as SenseNova-MARS-8B was made: no cold start, no SFT.

    python -m sensesearch_jax.main --config=configs/rl_mars.py --workdir=DIR --config.policy=QWEN3_VL_8B_INSTRUCT \
        --config.agent.released.system_file=MANIFEST --config.agent.released.tools_file=TOOLS

For the two files see configs/evaluate_mars.py; `agent.released.form` is 'trained' here.

| | theirs | ours |
|---|---|---|
| context | 32,768 tokens | 11,264 of the prompt, 21,504 after it |
| pictures | 65,536 to 8,294,400 pixels | the same |
| crops | of the image named, resized | the same, from the file's own pixels |
| line break after a turn | none in training | none |
| questions × trajectories, rates | see rl_7b.py, the paper's | those of rl_7b.py |

Machine: a slice of 64 TPU chips, v5p:4x4x4, and the keys of configs/tools_online.yaml.
Mesh as in rl_7b.py: tensor 4, the others along fsdp; the eight key/value heads take up to 8. v5p:4x4x4 holds it as it is,
v6e:8x8 with --config.rollout.groups=1 --config.rollout.suffix_capacity=15296, and by hand one host of 8 GPUs of 80 GB with
--config.rl.micro_batch=2 (docs/tpu_memory.md). Not run at this size: no machine for it was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rl_7b
from common_7b import as_mars


def get_config():
    settings = as_mars(rl_7b.get_config())
    settings.agent.released.form = 'trained'
    return settings
