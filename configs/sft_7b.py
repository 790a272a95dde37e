"""SFT of Qwen2.5-VL-7B as in the paper, on the kept trajectories of a cold start (configs/cold_start_7b.py, on FVQA).

    python -m sensesearch_jax.main --config=configs/sft_7b.py --workdir=DIR --config.policy=QWEN \
        --config.sft.data=KEPT.jsonl --config.tools.folder=PICTURES

Machine: a slice of 64 TPU chips, v5e:8x8, v6e:8x8 or v5p:4x4x4.
Mesh: tensor 2, which shards heads and what a layer keeps, and every other device along fsdp, which shards parameters,
moments and batches. On several hosts add --config.multi_host=True (docs/multi_host.md). micro_batch is one row per two
devices: 32 for the 64 chips of v5e:8x8, v6e:8x8 or v5p:4x4x4; a machine of another size sets
`--config.sft.micro_batch` to a half of its devices. A v5e chip's 16 GiB hold it with 2 to spare (docs/tpu_memory.md).
Memory: float32 parameters and moments of the decoder are 12 bytes × 7.6 billion = 91 GB over all devices, a micro-batch's
gradient in bfloat16 15 GB, and, where a batch has several, their sum in float32 30 GB; beside what `remat` keeps.
Validation (docs/validation.md) calls tools: --config.sft.validate_every=20 --config.data.validation=YOURS
--config.tools.config=configs/tools_online.yaml.
One machine of 8 devices, eight chips of v5e among them: --config=configs/sft_7b.py:lora trains adapters, 15 GB of frozen
weights and 1 GB of state over all devices; one GPU of 80 GB with --config.mesh.tensor=1 --config.sft.micro_batch=1
(docs/lora.md).
Steps: 3,000 trajectories × 3 epochs / 64 = 140. Not run: no machine of this size was at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import sft
from common_7b import as_7b, with_adapters


def get_config(variant: str = 'full'):
    settings = as_7b(sft.get_config())
    settings.mesh.tensor = 2
    settings.sft.update(
        learning_rate=1e-5,
        warmup=10,
        b2=0.999,
        epochs=3,
        batch=64,
        micro_batch=32,
        row_trajectories=1,
        pack_step=0,
        threads=1,
        length_window=16,
        dtype='bfloat16',
        remat='full',
        freeze_embedding=False,
    )
    return with_adapters(settings, 'sft', variant)
