"""What can be told of a run from its config alone, so that bad input is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.protocol import PROTOCOLS
from sensesearch_jax.learning.steps import make_optimizer
from sensesearch_jax.policy.sizes import PolicySizes
from sensesearch_jax.tasks.ask import check_image
from sensesearch_jax.tasks.cold_start import EXPERTS
from sensesearch_jax.tasks.rl import make_objective
from sensesearch_jax.tasks.session import POCKET_POLICY


def check(config: ConfigDict) -> None:
    """Looks at the fields that name something, whatever task they belong to.

    Raises:
        ValueError: no policy directory of the right type, no readable image, no trajectories to learn from, or a
            protocol, tool, expert, algorithm or schedule that does not exist.
    """
    if 'policy' in config:
        PolicySizes.from_directory(config.policy or POCKET_POLICY)
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
    for stage in ('sft', 'rl'):
        if stage in config:
            make_optimizer(config[stage], 1)
    if 'rl' in config:
        make_objective(config.rl)
