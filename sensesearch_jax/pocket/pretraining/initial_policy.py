"""The base policy before its first step: a tokenizer, a preprocessor and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import ml_collections
import numpy as np
from flax import nnx

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.reading import ReadingQuestions
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS

TITLES = 2000  # invented ones of each kind that the tokenizer is trained on


def write_tokenizer(folder: Path, pages: Pages, world: InventedWorld, vocabulary: int) -> None:
    """The pocket tokenizer, from passages and titles of training entities, invented names, the
    questions' words and the protocol's.

    That `<think>` or a tool's name is one token tells the policy nothing of how to use it.

    Args:
        folder: of the policy.
        pages: texts of training entities.
        world: of invented names.
        vocabulary: tokens at most.
    """
    words = [
        p.format(thing)
        for fields in FACT_FIELDS.values()
        for f in fields
        for p in (*f.phrasings, f.query)
        for thing in (
            'the country whose flag is farthest left',
            'the painting nearest the top',
            'this painting',
        )
    ]
    turn = (
        '<think>The flag farthest right is small. I crop it.</think>\n<tool_call>\n{"name": "image_crop", '
        '"arguments": {"bbox": [0.1, 0.3, 0.4, 0.6]}}\n</tool_call><tool_response>\n\n</tool_response>\n<answer></answer>'  # noqa: E501
    )
    reading = ReadingQuestions(pages)
    rng = np.random.default_rng(0)
    asked = [question for _ in range(300) for question, _ in reading(rng, 512).pairs]
    texts = [f'{p["title"]}: {p["text"][:400]}' for p in pages.passages]
    titles = [
        ' by '.join(part for part in world.title(rng, kind)[:2] if part)
        for _ in range(TITLES)
        for kind in ('flag', 'painting')
    ]
    often = [*pages.titles * 5, *words * 5, *asked, *[DEFAULT.system_prompt(TOOLS), turn] * 300]
    train_tokenizer([*texts, *titles, *often], folder, vocabulary)


def write_first(
    folder: Path, config: ml_collections.ConfigDict, pages: Pages, world: InventedWorld
) -> Policy:
    """A policy directory with tokenizer, preprocessor and random weights of the config's sizes, or
    with all of `config.policy`; gives the policy.

    A policy that is there already stays: it may have been trained.

    Args:
        folder: of the policy.
        config: of configs/base.py.
        pages: texts that the tokenizer is trained on.
        world: whose names it is trained on as well.
    """
    there = (folder / 'config.json').is_file()
    if config.policy:
        policy = load_policy(config.policy)
        if not there:
            save_policy(policy, folder, copy_from=Path(config.policy))
        return policy
    if not there:
        write_tokenizer(folder, pages, world, config.language.vocabulary)
    chat = ChatTokenizer(folder, lambda w, h: 0)
    ids = chat.tokenizer.token_to_id
    sizes = PolicySizes(
        VisionSizes(**config.vision, out_width=config.language.width),
        LanguageSizes(**config.language),
        image_token=chat.image_pad,
        vision_start_token=chat.vision_start,
        vision_end_token=chat.vision_end,
        video_token=ids('<|video_pad|>'),
        end_tokens=(chat.im_end, chat.end_of_text),
    ).adapted(config.family)
    if not there:
        budget = {'min_pixels': config.min_pixels, 'max_pixels': config.max_pixels}
        settings = sizes.family.preprocessor(sizes.vision) | budget
        (folder / 'preprocessor_config.json').write_text(json.dumps(settings, indent=2) + '\n')
    policy = Policy(sizes, nnx.Rngs(config.seed))
    if not there:
        save_policy(policy, folder, copy_from=folder)
    return policy
