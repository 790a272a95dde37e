"""What can be told of a run from its config alone, so that bad input is refused before anything is written."""

from __future__ import annotations

import math
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.protocol import PROTOCOLS
from sensesearch_jax.learning.steps import make_optimizer
from sensesearch_jax.policy.language import REMAT
from sensesearch_jax.policy.sizes import PolicySizes
from sensesearch_jax.runtime.mesh import ROWS, make_mesh
from sensesearch_jax.tasks.ask import check_image
from sensesearch_jax.tasks.cold_start import EXPERTS
from sensesearch_jax.tasks.rl import make_objective
from sensesearch_jax.tasks.session import POCKET_POLICY


def check_mesh(config: ConfigDict) -> None:
    """Whether the mesh fits the devices, and the policy and the stages' micro-batches the mesh."""
    shape = make_mesh(config.mesh).shape
    heads = PolicySizes.from_directory(config.policy or POCKET_POLICY).language.kv_heads
    if heads % shape['tensor']:
        raise ValueError(f"mesh.tensor {shape['tensor']} does not divide the policy's {heads} key/value heads; choose "
                         'one that does.')
    shards = math.prod(shape[axis] for axis in ROWS)
    for stage in ('sft', 'rl'):
        if stage in config and config[stage].micro_batch % shards:
            raise ValueError(f'{stage}.micro_batch {config[stage].micro_batch} cannot be cut over the mesh\'s data × fsdp '
                             f'= {shards} devices; make it a multiple of that.')


def check(config: ConfigDict) -> None:
    """Looks at the fields that name something, whatever task they belong to.

    Raises:
        ValueError: no policy directory of the right type, no readable image, no trajectories to learn from, a
            protocol, tool, expert, algorithm or schedule that does not exist, or no engine or thread.
    """
    if 'policy' in config:
        PolicySizes.from_directory(config.policy or POCKET_POLICY)
    if 'mesh' in config:
        check_mesh(config)
    if 'image' in config:
        check_image(config.image)
    if config.task == 'sft' and not Path(config.sft.data).is_file():
        raise ValueError(f"sft.data '{config.sft.data}' is no file; give the kept.jsonl of a cold start.")
    if 'agent' in config:
        if config.agent.protocol not in PROTOCOLS:
            raise ValueError(f"agent.protocol '{config.agent.protocol}' is unknown; choose from {list(PROTOCOLS)}.")
        PROTOCOLS[config.agent.protocol].system_prompt(config.agent.tools)
    if 'expert' in config and config.expert.kind not in EXPERTS:
        raise ValueError(f"expert.kind '{config.expert.kind}' is unknown; choose from {list(EXPERTS)}.")
    for stage, field in (*(('rollout', field) for field in ('engines', 'extend_lanes', 'extend_tokens', 'tower_batch')),
                         ('sft', 'threads'), ('rl', 'threads')):
        if stage in config and config[stage][field] < 1:
            raise ValueError(f'{stage}.{field} is {config[stage][field]}; give 1 or more.')
    for stage in ('sft', 'rl'):
        if stage in config:
            make_optimizer(config[stage], 1)
            if config[stage].remat not in REMAT:
                raise ValueError(f"{stage}.remat '{config[stage].remat}' is unknown; choose from {', '.join(REMAT)}.")
            if config[stage].dtype not in ('float32', 'bfloat16'):
                raise ValueError(f"{stage}.dtype '{config[stage].dtype}' is unknown; choose 'float32' or 'bfloat16'.")
    if 'rl' in config:
        make_objective(config.rl)
