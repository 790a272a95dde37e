"""What experiments/benchmarks/throughput.py compares on: a policy, random pictures, and a group's
conversation.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from experiments.benchmarks.work import random_policy
from sensesearch_jax import pocket
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import abstract_policy, save_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.policy import Policy

POCKET = Path(pocket.__file__).with_name('policy')
MEMBERS, TURNS, TURN = 8, 3, 48  # trajectories, their turns, sampled tokens of a turn
RESPONSE_PICTURE = (224, 224)  # pixels: 64 visual tokens


class Setting(NamedTuple):
    """What is compared on: a policy, and tokens and pictures around the picture of the prompt."""

    sizes: PolicySizes
    picture: tuple[int, int]  # pixels of the prompt's picture
    text: int  # tokens of text in the prompt beside it
    response: int  # and in a tool response
    micro: int  # sequences of the peer's micro-batch
    released: bool  # a policy of this size fills an accelerator: bfloat16, one side at a time


def small(scale: float = 1.0) -> Setting:
    """A hundred million parameters, 2,170 visual tokens; widths and lengths times `scale`."""
    heads = max(2, 2 * round(6 * scale))
    width = 64 * heads
    vision = VisionSizes(
        depth=6,
        width=32 * heads,
        mlp_width=64 * heads,
        heads=heads // 2,
        out_width=width,
        full_attention_blocks=(2, 5),
    )
    language = LanguageSizes(
        layers=12,
        width=width,
        mlp_width=round(2.75 * width),
        heads=heads,
        kv_heads=heads // 2,
        vocabulary=8192,
        mrope_sections=(8, 12, 12),
        tied_head=True,
    )
    # The pocket policy's tokenizer, for trl; the rows of the vocabulary behind it are never met.
    sizes = dataclasses.replace(
        PolicySizes.from_directory(POCKET), vision=vision, language=language
    )
    picture = tuple(28 * max(2, round(side * min(scale, 1.0) / 28)) for side in (1736, 980))
    return Setting(sizes, picture, round(300 * scale), 96, 2, False)


class Pictures:
    """Random pictures by content hash, in the place of a tool server."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.random = np.random.default_rng(0)

    def draw(self, size: tuple[int, int]) -> ImageRef:
        """A new picture of (width, height) pixels."""
        pixels = self.random.integers(0, 255, (size[1] // 28, size[0] // 28, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(buffer, 'PNG')
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.files[name] = buffer.getvalue()
        return ImageRef(name, *size)

    def image(self, name: str) -> bytes:
        """A picture's file, as a tool client gives it."""
        return self.files[name]


class Conversation(NamedTuple):
    """The prompt that a group shares and each member's tool responses; the policy's own turns stand
    between them.
    """

    prompt: list[int]
    picture: ImageRef
    responses: list[list[tuple[list[int], ImageRef]]]  # [member][turn]


class Sampled(NamedTuple):
    """What a rollout brought: each member's turns and their log-probs."""

    turns: list[list[list[int]]]
    log_probs: list[list[list[float]]]


class Bench:
    """The policy, its pictures and its conversation; a small policy as a directory, too."""

    def __init__(self, folder: Path, setting: Setting):
        self.setting, self.sizes, self.folder = setting, setting.sizes, folder
        self.preprocessor = Preprocessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
        self.pictures, self.random = Pictures(), np.random.default_rng(1)
        self.conversation = self._converse()
        self.parameters = sum(
            x.size for x in jax.tree.leaves(nnx.state(abstract_policy(self.sizes), nnx.Param))
        )
        self.policy = None

    def make_policy(self) -> Policy:
        """The policy in JAX, kept in `policy`."""
        if self.policy is not None:
            return self.policy
        if self.setting.released:
            self.policy = random_policy(self.sizes)
        else:
            self.policy = Policy(self.sizes, nnx.Rngs(0))
            save_policy(self.policy, self.folder, copy_from=POCKET)
            path = self.folder / 'preprocessor_config.json'
            more = {'max_pixels': self.preprocessor.max_pixels}
            path.write_text(json.dumps(json.loads(path.read_text()) | more))
        return self.policy

    def about(self, conversation: Conversation) -> Bench:
        """The same policy in another conversation."""
        other = copy.copy(self)
        other.conversation = conversation
        return other

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that neither side may sample."""
        s = self.sizes
        visual = s.image_token, s.video_token, s.vision_start_token, s.vision_end_token
        return (*visual, *s.end_tokens)

    def _converse(self) -> Conversation:
        picture = self.pictures.draw(self.setting.picture)
        prompt = [*self._text(self.setting.text), *self._seen(picture), *self._text(8)]
        half, responses = self.setting.response // 2, []
        for _ in range(MEMBERS):
            shown = [self.pictures.draw(RESPONSE_PICTURE) for _ in range(TURNS - 1)]
            responses.append(
                [([*self._text(half), *self._seen(p), *self._text(half)], p) for p in shown]
            )
        return Conversation(prompt, picture, responses)

    def _text(self, count: int) -> list[int]:
        return self.random.integers(0, min(self.suppressed), count).tolist()

    def _seen(self, picture: ImageRef) -> list[int]:
        sizes = self.sizes
        visual = self.preprocessor.merged_tokens(picture.width, picture.height)
        return [sizes.vision_start_token, *[sizes.image_token] * visual, sizes.vision_end_token]

    def tokens(self) -> dict[str, int]:
        """How much there is to run."""
        after = [
            TURNS * TURN + sum(len(r) for r, _ in member) for member in self.conversation.responses
        ]
        return {
            'prompt': len(self.conversation.prompt),
            'after it, per trajectory': round(float(np.mean(after))),
        }
