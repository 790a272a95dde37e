"""Trajectories: question, turns, observations, images and reward of an episode; also as JSON."""

import base64
import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from sensesearch_jax.agent.actions import Action, FormatError, action_from_json, action_to_json


@dataclass(frozen=True)
class ImageRef:
    """An image by content hash; `width` and `height` in pixels."""

    sha256: str
    width: int
    height: int


_LISTS = 'images', 'answers', 'choices'


@dataclass(frozen=True)
class Question:
    """One question, about any number of images.

    Args:
        id: unique within a run.
        text: of the question, without its options.
        images: references (`sensesearch_jax.data.images`), in order; () for a question without.
        answers: accepted references, the first is canonical.
        choices: of multiple choice, the options A, B, … in order; answers name theirs by letter or
            text.
        category: by which results are reported, one of the set's own.
        difficulty: likewise.
        source: name of the set.
        weight: how often training draws it, relative to the others of its source.
        reward: rule by which an answer is right: 'judge', 'exact', 'letter', 'f1' or 'number'.
        truth: the generator's ground truth, for expert, rewards and reports, never for policy or
            tools: 'box' [x0, y0, x1, y1] (fractions of the first image) of the object asked for,
            its 'title', a good text 'query' where a fact is to be looked up, and the fact's name,
            'field'.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    category: str = ''
    difficulty: str = ''
    source: str = ''
    weight: float = 1.0
    reward: str = 'judge'
    truth: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one member per field."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return value | {name: list(value[name]) for name in _LISTS} | {'truth': dict(self.truth)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Question':
        """The question that `to_json` wrote."""
        lists = {name: value[name] for name in _LISTS if name in value}
        for name, items in lists.items():
            if isinstance(items, str):  # which would come apart into letters
                raise TypeError(
                    f'{name} of question {value.get("id")} are a text; give a list of texts'
                )
        return cls(**value | {name: tuple(items) for name, items in lists.items()})


class SampleState(StrEnum):
    """Whether a trajectory counts: only OK and TRUNCATED enter the loss and the group statistics."""

    OK = 'ok'
    TRUNCATED = 'truncated'  # turns or tokens ran out before an answer: scored, as wrong
    INFRA_FAILED = 'infra_failed'  # a tool's infrastructure failed
    UNSCORABLE = 'unscorable'  # the judge failed
    # the prompt, or a tool's response, is longer than the sampler has room for at all
    TOO_LONG = 'too_long'


@dataclass(frozen=True)
class Observation:
    """The environment's response to an action."""

    # text and images in reading order, without the tool-response wrapper
    parts: tuple[str | ImageRef, ...]
    ok: bool  # False: an error text the model is to read
    kind: str  # 'text_search', 'image_search', 'image_crop', 'format_error', 'tool_error'
    new_images: tuple[ImageRef, ...] = ()  # images that got an image_index (crops)
    latency_s: float = 0.0  # seconds spent waiting for the tool
    infra_failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an image part becomes an object, a text part stays a string."""
        return {
            'parts': [p if isinstance(p, str) else dataclasses.asdict(p) for p in self.parts],
            'ok': self.ok,
            'kind': self.kind,
            'new_images': [dataclasses.asdict(ref) for ref in self.new_images],
            'latency_s': float(self.latency_s),
            'infra_failed': self.infra_failed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Observation':
        """The observation that `to_json` wrote."""
        parts = tuple(p if isinstance(p, str) else ImageRef(**p) for p in value['parts'])
        new_images = tuple(ImageRef(**r) for r in value['new_images'])
        return cls(**value | {'parts': parts, 'new_images': new_images})


@dataclass
class Turn:
    """One turn: what the policy sampled and what the environment appended."""

    tokens: list[int]  # sampled by the policy, as sampled
    log_probs: list[float]  # of the distribution really sampled from
    text: str
    action: Action | FormatError
    observation: Observation | None
    # includes the closing <|im_end|>, up to the next assistant header
    observation_tokens: list[int]
    # RL steps that the policy had learned from when it wrote this; None outside RL
    version: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; log-probs, which are float32, become base64 of their bytes, a quarter of the
        length of their digits.
        """
        return {
            'tokens': [int(t) for t in self.tokens],
            'log_probs': base64.b64encode(np.asarray(self.log_probs, '<f4').tobytes()).decode(),
            'text': self.text,
            'action': action_to_json(self.action),
            'observation': None if self.observation is None else self.observation.to_json(),
            'observation_tokens': [int(t) for t in self.observation_tokens],
            'version': self.version,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Turn':
        """The turn that `to_json` wrote; files of earlier versions have log-probs as numbers, and
        `raw_log_probs` as well.
        """
        known = {name: x for name, x in value.items() if name != 'raw_log_probs'}
        known['action'] = action_from_json(value['action'])
        if isinstance(value['log_probs'], str):
            known['log_probs'] = np.frombuffer(base64.b64decode(value['log_probs']), '<f4').tolist()
        if value['observation'] is not None:
            known['observation'] = Observation.from_json(value['observation'])
        return cls(**known)


@dataclass
class Trajectory:
    """One episode of one question."""

    question: Question
    member: int  # which of the group's G trajectories
    seed: int
    turns: list[Turn]
    state: SampleState
    prompt_tokens: list[int]
    # all whose patches entered the prompt or an observation, in order of appearance
    images: list[ImageRef]
    reward: dict[str, float]  # 'total', 'accuracy', 'format', 'evidence', 'tool_cost'
    answer: str | None
    failure: str = ''  # why it does not count, in a sentence; '' if it does

    @property
    def own_images(self) -> list[ImageRef]:
        """The question's images; none where they could not be had."""
        return self.images[: len(self.question.images)]

    @property
    def retrieved_images(self) -> list[ImageRef]:
        """Images of search results that stood in the prompt, behind the question's own."""
        observed = [part for t in self.turns if t.observation for part in t.observation.parts]
        shown = sum(isinstance(part, ImageRef) for part in observed)
        return self.images[len(self.own_images) : len(self.images) - shown]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with everything `from_json` needs to give an equal trajectory back."""
        return {
            'question': self.question.to_json(),
            'member': int(self.member),
            'seed': int(self.seed),
            'turns': [turn.to_json() for turn in self.turns],
            'state': self.state.value,
            'prompt_tokens': [int(t) for t in self.prompt_tokens],
            'images': [dataclasses.asdict(ref) for ref in self.images],
            'reward': {name: float(x) for name, x in self.reward.items()},
            'answer': self.answer,
            'failure': self.failure,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> 'Trajectory':
        """The trajectory that `to_json` wrote."""
        read = {
            'question': Question.from_json(value['question']),
            'turns': [Turn.from_json(turn) for turn in value['turns']],
            'state': SampleState(value['state']),
            'images': [ImageRef(**ref) for ref in value['images']],
        }
        return cls(**value | read)
