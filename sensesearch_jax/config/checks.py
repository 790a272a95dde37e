"""Checks of a config before anything is read or written: bad input is refused in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.tool_client import ToolClient
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.config.evaluation_checks import check_evaluation
from sensesearch_jax.config.fields import check_types
from sensesearch_jax.config.validation_checks import check_validation
from sensesearch_jax.data.questions import STAGES, check_sources
from sensesearch_jax.data.sources import parse_sources
from sensesearch_jax.errors import UserError, field
from sensesearch_jax.model.config import PolicySizes
from sensesearch_jax.model.lora import Lora
from sensesearch_jax.model.text_decoder import REMAT
from sensesearch_jax.recipes.ask import check_ask, image_files
from sensesearch_jax.recipes.capacities import check_capacities, validated_stages
from sensesearch_jax.recipes.checkpoint_policy import policy_files
from sensesearch_jax.recipes.cold_start import EXPERTS, MINERS, VALIDATORS, make_expert
from sensesearch_jax.recipes.rl import make_objective
from sensesearch_jax.recipes.rows import PROMPT_STEP, SHARED_STEP, SUFFIX_STEP
from sensesearch_jax.recipes.session import observation_limits
from sensesearch_jax.rewards.scorer import check_prices
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.alarm_log import check_alarms
from sensesearch_jax.runtime.mesh import ROWS, make_mesh
from sensesearch_jax.runtime.metric_sinks import check_sinks
from sensesearch_jax.training.optimizer import make_optimizer


def check_mesh(config: ConfigDict) -> None:
    """Whether the mesh fits the devices, and the policy and the stages' micro-batches the mesh."""
    shape = make_mesh(config.mesh).shape
    heads = PolicySizes.from_directory(policy_files(config.policy)).language.kv_heads
    if heads % shape['tensor']:
        raise UserError(
            f"mesh.tensor {shape['tensor']} does not divide the policy's {heads} key/value heads; choose "
            'one that does.'
        )
    shards, tokens = math.prod(shape[axis] for axis in ROWS), shape['sequence'] * shape['tensor']
    for stage in ('sft', 'rl'):
        if stage in config and config[stage].micro_batch % shards:
            raise UserError(
                f"{stage}.micro_batch {config[stage].micro_batch} cannot be sharded over the mesh's data × fsdp "
                f'× expert = {shards} devices; make it a multiple of that.'
            )
        packed = config.get(stage, {}).get('pack_step', 0)
        unit = math.gcd(PROMPT_STEP, SUFFIX_STEP, SHARED_STEP, packed)
        if stage in config and shape['sequence'] > 1 and unit % tokens:
            raise UserError(
                f'Rows of {stage} are padded to multiples of {unit} tokens, which mesh.sequence {shape["sequence"]} '
                f'× mesh.tensor {shape["tensor"]} = {tokens} does not divide; choose powers of two, and a multiple '
                f'of {tokens} for {stage}.pack_step.'
            )


# Fields that count something, of which there must be at least one.
COUNTS = {
    'rollout': (
        'groups', 'prompt_capacity', 'suffix_capacity', 'chunk', 'tool_threads', 'judge_threads',
        'extend_lanes', 'extend_tokens', 'tower_batch', 'engines',
    ),
    'agent': ('max_turns', 'turn_tokens'),
    'mine': ('samples', 'answer_tokens', 'threads', 'attempts'),
    'expert': ('questions', 'threads', 'tries', 'turn_tokens', 'attempts'),
    'validate': ('tries', 'reply_tokens', 'attempts'),
    'sft': (
        'epochs', 'batch', 'micro_batch', 'row_trajectories', 'length_window', 'checkpoint_every', 'threads',
        'max_skipped_updates',
    ),
    'rl': (
        'steps', 'questions_per_step', 'members', 'minibatches', 'epochs', 'micro_batch',
        'checkpoint_every', 'threads', 'max_skipped_updates', 'max_failed_steps', 'sampling_rounds',
    ),
    'checkpoint': ('keep_last',),
    'validation': ('lanes',),
    'evaluate': ('lanes', 'samples'),
    'benchmark': ('min_width', 'min_height'),
}  # fmt: skip


def check(config: ConfigDict) -> None:
    """Checks the fields that name or count something, whatever task they belong to.

    Raises:
        UserError: no policy directory of the right type, no readable image, no trajectories to
            learn from, a protocol, tool, expert, algorithm or schedule that does not exist, or a
            number out of its range.
    """
    if config.task != 'base':
        check_types(config)
    if 'alarms' in config:
        check_alarms(config.alarms)
    if 'policy' in config:
        PolicySizes.from_directory(policy_files(config.policy))
    if 'mesh' in config:
        check_mesh(config)
    if 'ask' in config:
        check_ask(config)
    if 'image' in config:
        image_files(config.image)
    if config.task == 'sft' and not Path(config.sft.data).is_file():
        raise UserError(
            f"sft.data '{config.sft.data}' is no file; give the kept.jsonl of a cold start or an import."
        )
    for stage, names in COUNTS.items():
        for name in names if stage in config else ():
            if config[stage].get(name, 1) < 1:
                raise UserError(f'{stage}.{name} is {config[stage][name]}; give 1 or more.')
    for part, name, none in (
        ('checkpoint', 'keep_every', 'none'),
        ('checkpoint', 'keep_best', 'none'),
        ('rl', 'keep_trajectories', 'all'),
        ('rl', 'max_staleness', 'sampling awaits training'),
        ('benchmark', 'samples', 'none'),
    ):
        if config.get(part, {}).get(name, 0) < 0:
            raise UserError(f'{part}.{name} is {config[part][name]}; give 0 ({none}) or more.')
    if config.get('max_skipped_updates', 1) < 1:
        raise UserError(f'max_skipped_updates is {config.max_skipped_updates}; give 1 or more.')
    if 'agent' in config:
        check_agent(config.agent)
    if 'cache_dtype' in config.get('rollout', {}) and config.rollout.cache_dtype not in (
        'policy',
        'int8',
    ):
        raise UserError(
            f"rollout.cache_dtype '{config.rollout.cache_dtype}' is unknown; choose 'policy' or 'int8'."
        )
    if 'dtype' in config.get('rollout', {}):
        check_dtype('rollout', config.rollout)
    if 'tools' in config:
        check_tools(config.tools)
    if not config.get('rollout', {}).get('feature_cache_gib', 0) >= 0:
        raise UserError(
            f'rollout.feature_cache_gib is {config.rollout.feature_cache_gib}; give 0 (as much as a step needs) or '
            'more.'
        )
    if 'prompt_capacity' in config.get('rollout', {}) and (
        config.task != 'sft' or validated_stages(config)
    ):
        check_capacities(config, policy_files(config.policy))
    if 'expert' in config:
        check_served(config)
        check_expert(config)
    for stage in STAGES:
        if stage in config.get('data', {}) and (stage != 'validation' or validated_stages(config)):
            check_sources(config.data, stage)
    if 'data' in config and not 0 <= config.data.max_bad_share < 1:
        raise UserError(
            f'data.max_bad_share is {config.data.max_bad_share}; give a share, 0 or more and below 1.'
        )
    if 'mode' in config.get('evaluate', {}):
        check_evaluation(config)
    if config.get('profile_steps', 0) < 0:
        raise UserError(f'profile_steps is {config.profile_steps}; give 0 (none) or more.')
    if 'metrics' in config:
        check_sinks(config.metrics.sinks)
    if 'validation' in config:
        check_validation(config)
    check_sampling(config)
    if 'benchmark' in config:
        check_benchmark(config.benchmark)
    for stage in ('sft', 'rl'):
        if stage in config:
            check_training(stage, config[stage])
            check_lora(stage, config[stage], config.policy)
    if 'rl' in config:
        make_objective(config.rl)
        with field('rl.tool_prices'):
            check_prices(config.rl.tool_prices)
        check_price_phase(config.rl)
        if not 0 <= config.rl.fatal_mistakes < config.agent.max_turns:
            raise UserError(
                f'rl.fatal_mistakes is {config.rl.fatal_mistakes}, and nothing follows that many of agent.max_turns '
                f'{config.agent.max_turns}; give fewer, or 0 (none are fatal).'
            )


def check_price_phase(rl: ConfigDict) -> None:
    """Whether a second phase with a price on calls is one."""
    if not 0 <= rl.price_from_step <= rl.steps:
        raise UserError(
            f'rl.price_from_step is {rl.price_from_step}, and the run has rl.steps {rl.steps}; give 0 (from the '
            'first step on) or one of them.'
        )
    if rl.price_from_step and not any(rl.tool_prices.values()):
        raise UserError(
            f'rl.price_from_step is {rl.price_from_step}, but all rl.tool_prices are 0; give a price, or 0 here.'
        )


def check_agent(agent: ConfigDict) -> None:
    """Whether there is such a protocol, such tools, and something of every result to show."""
    protocol = protocol_of(agent)
    with field('agent.tools'):
        protocol.system_prompt(agent.tools)
    with field('agent'):
        observation_limits(agent)


def check_tools(tools: ConfigDict) -> None:
    """Whether fields of a server that is started are given for one that runs already."""
    for name in ('port', 'mode', 'answers') if tools.url else ():
        if tools[name]:
            raise UserError(
                f'tools.{name} is of a server that is started, but tools.url names one that runs already; '
                'leave one of them out.'
            )


def check_expert(config: ConfigDict) -> None:
    """Whether some question can be demonstrated."""
    made = make_expert(config, ToolClient(config.tools.url), None, 0)
    sources = parse_sources('data.train', config.data.train)
    # Of a source without a category the questions tell, once they are read.
    asked = [Question('', '', category=s.category, source=s.name) for s in sources if s.category]
    unmet = [made.unmet(question) for question in asked]
    if len(unmet) == len(sources) and all(unmet):
        raise UserError(f'The cold start has nothing to demonstrate: {"; ".join(unmet)}.')


def check_served(config: ConfigDict) -> None:
    """Whether each stage of the cold start has such a model, with all that it needs and no more, and
    whether the budget can be kept.
    """
    kinds = {'mine': MINERS, 'expert': EXPERTS, 'validate': VALIDATORS}
    for stage, known in kinds.items():
        part = config[stage]
        if part.kind not in known:
            raise UserError(f"{stage}.kind '{part.kind}' is unknown; choose from {list(known)}.")
        for name in ('url', 'model'):
            if part.kind == 'openai' and not part[name]:
                raise UserError(f"{stage}.kind 'openai' needs {stage}.{name}; give it.")
            if part.kind != 'openai' and part[name]:
                raise UserError(
                    f"{stage}.{name} is of {stage}.kind 'openai', but {stage}.kind is '{part.kind}'; leave one of "
                    'them out.'
                )
        for name in ('input_usd', 'output_usd', 'retry_pause_s'):
            if not part[name] >= 0:
                raise UserError(f'{stage}.{name} is {part[name]}; give 0 or more.')
        if not part.timeout_s > 0:
            raise UserError(f'{stage}.timeout_s is {part.timeout_s}; give more than 0.')
    served = [stage for stage in kinds if config[stage].kind == 'openai']
    for name in ('usd', 'calls'):
        if not config.budget[name] >= 0:
            raise UserError(f'budget.{name} is {config.budget[name]}; give 0 (any number) or more.')
        if config.budget[name] and not served:
            raise UserError(
                f"budget.{name} is for served models, and no stage has one; leave it out, or set a stage's "
                "kind to 'openai'."
            )
    if config.budget.usd and not any(
        config[stage].input_usd or config[stage].output_usd for stage in served
    ):
        raise UserError(
            f'budget.usd is {config.budget.usd}, but {served[0]}.input_usd and {served[0]}.output_usd are 0, so '
            'that nothing counts; give the prices, or set budget.calls in its place.'
        )


def check_benchmark(benchmark: ConfigDict) -> None:
    """Whether there are items, and limits that some item can keep to."""
    if not Path(benchmark.data).is_file():
        raise UserError(
            f"benchmark.data '{benchmark.data}' is no file; give JSONL as in docs/build_benchmark.md."
        )
    for name in ('max_area', 'max_likeness'):
        if not 0 < benchmark[name] <= 1:
            raise UserError(
                f'benchmark.{name} is {benchmark[name]}; give a share above 0, at most 1.'
            )


def check_sampling(config: ConfigDict) -> None:
    """Whether tokens can be drawn like that."""
    for stage, of_stage in (
        ('', config if config.task == 'ask' else None),
        ('mine.', config.get('mine')),
        ('rl.', config.get('rl')),
        ('validation.', config.get('validation')),
        ('evaluate.', config.get('evaluate')),
        ('benchmark.', config.get('benchmark')),
    ):
        if of_stage is not None:
            with field(f'{stage}temperature, {stage}top_k or {stage}top_p'):
                Sampling(
                    of_stage.temperature, of_stage.get('top_k', 0), of_stage.get('top_p', 1.0)
                ).check()
    if 'rl' in config and not config.rl.temperature > 0:
        raise UserError(
            'rl.temperature is 0, and what is sampled greedily has no groups to learn from; give more than 0.'
        )


def check_training(stage: str, config: ConfigDict) -> None:
    """Whether the optimiser, what a layer keeps and the type of the arithmetic exist."""
    with field(stage):
        make_optimizer(config, 1)
    if config.remat not in REMAT:
        raise UserError(
            f"{stage}.remat '{config.remat}' is unknown; choose from {', '.join(REMAT)}."
        )
    check_dtype(stage, config)


def check_lora(stage: str, config: ConfigDict, policy: str) -> None:
    """Whether the policy can have the adapters, and nothing else is asked to be trained.

    Args:
        stage: 'sft' or 'rl'.
        config: its part of the config.
        policy: that training starts from.
    """
    with field(f'{stage}.lora'):
        Lora.of(config.lora).check(PolicySizes.from_directory(policy_files(policy)).language)
    if config.lora.rank and not config.freeze_embedding:
        raise UserError(
            f'{stage}.lora.rank is {config.lora.rank}, so that adapters alone are trained, but '
            f'{stage}.freeze_embedding is False; set it to True.'
        )


def check_dtype(part: str, config: ConfigDict) -> None:
    """Whether the type of the arithmetic exists."""
    if config.dtype not in ('float32', 'bfloat16'):
        raise UserError(
            f"{part}.dtype '{config.dtype}' is unknown; choose 'float32' or 'bfloat16'."
        )
