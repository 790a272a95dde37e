"""Tokens that prompts and tool responses take, from images' sizes, and the engine's capacities."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.errors import UserError, field
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.runtime.machine import host_memory

PROMPT_STEP = 128  # an answered question's room is a multiple of it, for few programs
BATCHES_AT_ONCE = 5  # of SFT, whose next ones' pictures fill up passes through the tower
AROUND_IMAGE = 2  # tokens that mark where visual tokens begin and end


class Room(NamedTuple):
    """A sampler's capacities in tokens: of a prompt, and of a trajectory behind it."""

    prompt: int
    suffix: int


def read_preprocessor(folder: str | Path, config: ConfigDict) -> Preprocessor:
    """The policy directory's preprocessor with the config's `min_pixels` and `max_pixels`, where
    those are not 0.

    Raises:
        UserError: no such directory, or no picture has so few and so many pixels.
    """
    preprocessor = Preprocessor.read(folder)
    with field('min_pixels, max_pixels'):
        return preprocessor.within(config.min_pixels, config.max_pixels)


def room_for(
    prompt: int,
    images: Sequence[ImageRef],
    config: ConfigDict,
    chat: ChatTokenizer,
    preprocessor: Preprocessor,
) -> Room:
    """Capacities for one question, which shares the engine with no other: its prompt, and behind it
    at least two turns and the largest crop of its images.

    Args:
        prompt: tokens of its prompt.
        images: the question's.
        config: with `agent.turn_tokens` and `rollout.suffix_capacity`, below which the suffix's
            capacity does not fall.
        chat: the policy's tokenizer.
        preprocessor: the policy's, with the run's pixel limits.
    """
    side = preprocessor.token_side
    sizes = [-(-image.width // side) * -(-image.height // side) for image in images]
    crop = min(preprocessor.most_tokens, max(sizes, default=0))
    largest = (
        max(crop, preprocessor.least_tokens)
        + AROUND_IMAGE
        + len(chat.observation(['Image 2:']))
        + 1
    )
    return Room(
        -(-prompt // PROMPT_STEP) * PROMPT_STEP,
        max(config.rollout.suffix_capacity, largest + 2 * config.agent.turn_tokens),
    )


def feature_cache_bytes(
    config: ConfigDict, policy: Policy, preprocessor: Preprocessor, replicas: int
) -> int:
    """Bytes of `rollout.feature_cache_gib`; at 0 enough for the images of one step.

    Those are, of this process's share, one image of the largest size for each question of a step,
    and as much again for what tools show; at least 1 GiB, at most half of the host's memory.

    Args:
        config: the run's.
        policy: whose tower makes the features.
        preprocessor: the policy's, with the run's pixel limits.
        replicas: of the sampler in this process, for each of which groups and lanes are counted.
    """
    gib = 1 << 30
    if config.rollout.feature_cache_gib:
        return int(config.rollout.feature_cache_gib * gib)
    hosts = jax.process_count()
    at_once = [config.rollout.get('groups', 1) * replicas]
    if 'rl' in config:
        steps = 1 + config.rl.max_staleness  # whose questions are under way at once
        at_once.append(-(-config.rl.questions_per_step // hosts) * steps)
    at_once += [-(-config.sft.batch // hosts) * BATCHES_AT_ONCE] if 'sft' in config else []
    at_once += [config.evaluate.lanes * replicas] if 'evaluate' in config else []
    at_once += [config.validation.lanes * replicas] if validated_stages(config) else []
    each = (
        preprocessor.most_tokens
        * policy.sizes.vision.feature_width
        * policy.language.embedding[...].dtype.itemsize
    )
    return max(gib, min(2 * max(at_once) * each, host_memory() // 2))


def validated_stages(config: ConfigDict) -> list[str]:
    """The stages of a run that are validated."""
    return [s for s in ('sft', 'rl') if s in config and config[s].validate_every]


def check_capacities(config: ConfigDict, folder: Path) -> None:
    """Compares images of the smallest and of the largest size with `rollout`'s capacities.

    Prints a sentence where the largest do not fit: such questions and responses would be left out,
    one by one.

    Raises:
        UserError: not even the smallest fit.
    """
    preprocessor, rollout = read_preprocessor(folder, config), config.rollout
    chat = ChatTokenizer(folder, preprocessor.merged_tokens)
    system = protocol_of(config.agent).system_prompt(config.agent.tools)
    least, most = preprocessor.least_tokens, preprocessor.most_tokens
    around = AROUND_IMAGE + len(chat.prompt(system, ['']))
    if around + least > rollout.prompt_capacity:
        raise UserError(
            f'rollout.prompt_capacity {rollout.prompt_capacity} holds no prompt at all: without its question it '
            f'is {around} tokens and at least {least} of a picture; raise it.'
        )
    if around + most > rollout.prompt_capacity:
        warn(
            f'a picture of max_pixels {preprocessor.max_pixels} is {most} tokens, which with {around} of the prompt around it '  # noqa: E501
            f'and the question is more than rollout.prompt_capacity {rollout.prompt_capacity}: such questions will be left '  # noqa: E501
            f'out as too long. Set max_pixels below {preprocessor.pixels_of(rollout.prompt_capacity - around)} or '
            f'rollout.prompt_capacity above {around + most}.'
        )
    response = AROUND_IMAGE + len(chat.observation(['Image 2:'])) + most
    if 'image_crop' in config.agent.tools and response + 1 >= rollout.suffix_capacity:
        free = rollout.suffix_capacity - (response - most) - 2
        warn(
            f'a crop of max_pixels {preprocessor.max_pixels} is a response of {response} tokens, which never fits into '
            f'rollout.suffix_capacity {rollout.suffix_capacity}: its trajectory will be left out as too long. Set max_pixels '  # noqa: E501
            f'below {preprocessor.pixels_of(max(free, 0))} or rollout.suffix_capacity above {response + 1}.'
        )


def warn(sentence: str) -> None:
    """Prints a sentence for the reader of a run."""
    print(f'sensesearch_jax: {sentence}', file=sys.stderr)
