"""BN-GSPO on a 7B policy with the paper's settings: 128 questions × 8 trajectories a step, learning rate 1e-6.

    python -m sensesearch_jax.main --config=configs/rl_7b.py --workdir=DIR --config.policy=SFT/sft/policy

Questions are FVQA's, converted by `python -m sensesearch_jax.data.convert fvqa FILES DATA` (with --config.data.dir=DATA), or
those of any sources in --config.data.rl (docs/data.md).
Machine: a slice of 64 TPU chips, v5p:4x4x4 or v6e:8x8, and the keys of configs/tools_online.yaml.
Mesh: tensor 4, which shards heads, caches and what a layer keeps, and every other device along fsdp. micro_batch is one
row (8 trajectories of one question) per four devices: 16 for the 64 chips of v5p:4x4x4 or v6e:8x8; a machine of another
size sets `--config.rl.micro_batch` to a quarter of its devices, of which a chip of tpu7x is two. On several hosts add
--config.multi_host=True (docs/multi_host.md). All devices together hold 122 GB of float32 state and 30 GB of the
reference; every four devices along tensor sample with a copy of the policy, 17 GB in bfloat16 together, beside the caches of
`rollout.groups` groups; v5p has room for 8 groups, with which a step is 1.2 times as fast in simulation (docs/pod_simulation.md).
Steps: 150 of the paper's 150 to 300.
One machine of 8 GPUs of 80 GB: --config=configs/rl_7b.py:lora trains adapters, 15 GB of frozen weights, which are the
reference too, and 1 GB of state over all devices. Eight chips of v5e need shorter trajectories (docs/lora.md).
Suffixes are packed (pack_step): 10 % padding where there was 52 (experiments/benchmarks/padding.py), for two to three times as
many programs. Not run: no machine of this size was at hand. docs/tpu_memory.md has what its programs take on these
slices.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rl
from common_7b import as_7b, with_adapters


def get_config(variant: str = 'full'):
    settings = as_7b(rl.get_config())
    settings.data.rl = 'fvqa@train'
    settings.mesh.tensor = 4
    settings.rollout.groups = 4
    settings.rl.update(
        learning_rate=1e-6,
        warmup=0,
        steps=150,
        questions_per_step=128,
        members=8,
        minibatches=1,
        micro_batch=16,
        threads=1,
        averaged=False,
        freeze_embedding=False,
        pack_step=2048,
        kl_coefficient=1e-4,
        temperature=1.0,
        format_weight=0.5,
        evidence_weight=0.0,
        checkpoint_every=10,
        keep_trajectories=20,  # docs/storage.md computes a day's bytes
        dtype='bfloat16',
        remat='full',
    )
    return with_adapters(settings, 'rl', variant)
