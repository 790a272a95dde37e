"""The scripted expert, which writes cold-start trajectories and needs no network."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sensesearch_jax.agent.actions import Action, Answer, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.trajectory import ImageRef, Question, Turn
from sensesearch_jax.pocket.expert import phrases
from sensesearch_jax.pocket.expert.phrases import say
from sensesearch_jax.rewards.crop_geometry import (
    WHOLE,
    Box,
    crop_regions,
    fits,
    holds,
    loose_box,
    relative,
)
from sensesearch_jax.rewards.evidence import (
    answer_text,
    contains,
    observed_text,
    quoted,
    right_texts,
    seen_text,
    stating,
)

# The answer after giving up; validation rejects such a trajectory.
UNKNOWN = 'unknown'


@dataclass(eq=False)
class ScriptedExpert:
    """Solves questions of the pocket world by rule.

    It may look at `Question.truth`, but its tool calls run for real.

    It crops loosely and searches the crop; after a bad crop or a bad result it crops again; it
    looks up the fact, now and then with a poor query first; it answers with what it read. Its
    reasoning names only what was seen by then.

    Args:
        rng: where every choice comes from.
        protocol, tools: as in the environment; what they do not offer is never called.
        poor_crops: share of first crops that are too loose or off the object.
        hasty: share of those that are searched before a second look.
        poor_queries: share of first text searches that name the fact but not the object.
        direct: share of perception questions that are answered without a crop.
        max_crops: crops and image searches per trajectory, each, before it gives up.
        max_queries: text searches per trajectory before it gives up.
    """

    rng: random.Random
    protocol: Protocol
    tools: Sequence[str]
    poor_crops: float = 0.2
    hasty: float = 0.5
    poor_queries: float = 0.05
    direct: float = 0.5
    max_crops: int = 4
    max_queries: int = 3

    def unmet(self, question: Question) -> str | None:
        """See `Expert`. Perception is answered without a crop where there is none."""
        if question.source not in ('pocket', 'invented'):
            return 'the scripted expert solves questions of the pocket and the invented world alone'
        category = question.category
        wanted = {
            'search': ('image_crop', 'image_search', 'text_search'),
            'search_only': ('image_search', 'text_search'),
        }
        off = [tool for tool in wanted.get(category, ()) if tool not in self.tools]
        if off:
            return f'the scripted expert needs {", ".join(off)} for {category}, which agent.tools leaves out'
        if category == 'search' and not self.protocol.search_any_image:
            return (
                f'the scripted expert searches by crops for {category}, and agent.protocol '
                f"'{self.protocol.name}' by the original alone"
            )
        return None

    def next_turn(
        self, question: Question, images: Sequence[ImageRef], turns: Sequence[Turn]
    ) -> tuple[str, Action]:
        """Reasoning (a sentence or two) and one action; see `Expert`."""
        if question.category == 'perception':
            return self._perceive(question, turns)
        if _calls(turns, TextSearch):
            return self._after_text_search(question, turns)
        last = turns[-1].observation if turns else None
        if last is not None and last.ok and last.kind == 'image_search':
            return self._after_image_search(question, turns, observed_text(last))
        if question.category == 'search_only':
            if turns:
                return self._give_up(question)
            return self._goal(question) + say(phrases.SEARCH_PICTURE, question), ImageSearch()
        frames = _frames(turns)
        if _calls(turns, ImageSearch) >= self.max_crops:
            return self._give_up(question)
        looks_right = len(frames) > 1 and fits(frames[-1], question.truth['box'])
        if looks_right or (len(frames) == 2 and len(turns) == 1 and self.rng.random() < self.hasty):
            return say(phrases.SEARCH_CROP, question), ImageSearch(len(frames))
        return self._crop(question, turns)

    def _perceive(self, question: Question, turns: Sequence[Turn]) -> tuple[str, Action]:
        text = right_texts(question)[0]
        answer = Answer(text)
        box = question.truth.get('box')
        # nothing to zoom in on, as when objects are counted
        whole = box is None or loose_box(box) == WHOLE
        blind = whole or 'image_crop' not in self.tools
        if blind or (not turns and self.rng.random() < self.direct):
            return self._goal(question) + say(phrases.SEE, question, text=text), answer
        frames = _frames(turns)
        if len(frames) > 1 and fits(frames[-1], box):
            return say(phrases.SEE, question, text=text), answer
        return self._crop(question, turns)

    def _crop(self, question: Question, turns: Sequence[Turn]) -> tuple[str, Action]:
        """The first crop, or a better one than the last."""
        box = question.truth['box']
        good = loose_box(box)
        if _calls(turns, ImageCrop) >= self.max_crops:
            return self._give_up(question)
        if not turns:
            poor = self.rng.random() < self.poor_crops
            words = self._goal(question) + say(phrases.FIRST_CROP, question)
            return words, ImageCrop(self._poor_box(good) if poor else good)
        frames = _frames(turns)
        if len(frames) > 1 and holds(frames[-1], box):
            return self._zoom(question, frames, phrases.CROP_CLOSER)
        return say(phrases.CROP_AGAIN, question), ImageCrop(good)

    def _zoom(self, question: Question, frames: Sequence[Box], words: str) -> tuple[str, Action]:
        """A crop within the last crop, which holds the object."""
        inner = loose_box(relative(question.truth['box'], frames[-1]))
        if inner == WHOLE:
            return self._give_up(question)
        return say(words, question), ImageCrop(inner, len(frames))

    def _poor_box(self, good: Box) -> Box:
        """A first guess: too loose on every side, or shifted by a fifth, maybe into it."""
        if self.rng.random() < 0.5:
            grow = self.rng.choice((0.1, 0.2))
            grown = (good[0] - grow, good[1] - grow, good[2] + grow, good[3] + grow)
            return tuple(round(min(1.0, max(0.0, v)), 6) for v in grown)
        axis = self.rng.choice((0, 1))
        room_before, room_after = good[axis], 1 - good[axis + 2]
        shift = -min(0.2, room_before) if room_before > room_after else min(0.2, room_after)
        shifted = list(good)
        shifted[axis] = round(good[axis] + shift, 6)
        shifted[axis + 2] = round(good[axis + 2] + shift, 6)
        return tuple(shifted)

    def _after_image_search(
        self, question: Question, turns: Sequence[Turn], results: str
    ) -> tuple[str, Action]:
        title, box = question.truth['title'], question.truth.get('box')
        # A title further down the list is taken only where no closer look is left: a policy cannot
        # tell it from the rest.
        retried = question.category == 'search_only' or _calls(turns, ImageSearch) > 1
        if contains(results.split('\n', 1)[0], title) or (retried and contains(results, title)):
            return self._look_up(question, turns)
        frames = _frames(turns)
        closer = box is not None and len(frames) > 1 and _calls(turns, ImageCrop) < self.max_crops
        if question.category == 'search_only' or not closer:
            return self._give_up(question)
        if holds(frames[-1], box):
            return self._zoom(question, frames, phrases.NOT_FOUND)
        return say(phrases.NOTHING_HERE, question), ImageCrop(loose_box(box))

    def _look_up(self, question: Question, turns: Sequence[Turn]) -> tuple[str, Action]:
        asked = [turn.action.query for turn in turns if isinstance(turn.action, TextSearch)]
        title, field = question.truth['title'], phrases.field(question)
        queries = [question.truth['query'], f'the {field} of {title}', title]
        if not asked and self.rng.random() < self.poor_queries:
            queries.insert(0, f'the {field}')
        queries = [query for query in queries if query not in asked]
        if not queries or len(asked) >= self.max_queries:
            return self._give_up(question)
        query = queries[0]
        return say(
            phrases.ANOTHER_QUERY if asked else phrases.LOOK_UP, question, query=query
        ), TextSearch(query)

    def _after_text_search(self, question: Question, turns: Sequence[Turn]) -> tuple[str, Action]:
        read = seen_text(turns, ['text_search'])
        title = question.truth['title']
        for text in right_texts(question):
            if lines := stating(read, text, title):
                quote = quoted(lines, text, phrases.field(question))
                return say(phrases.READ, question, quote=quote), Answer(answer_text(question, text))
        return self._look_up(question, turns)

    def _give_up(self, question: Question) -> tuple[str, Action]:
        return say(phrases.GIVE_UP, question), Answer(UNKNOWN)

    def _goal(self, question: Question) -> str:
        counted = question.truth.get('field') == 'count'
        return say(phrases.GOAL_COUNT if counted else phrases.GOAL, question)


def _calls(turns: Sequence[Turn], kind: type) -> int:
    return sum(isinstance(turn.action, kind) for turn in turns)


def _frames(turns: Sequence[Turn]) -> list[Box]:
    """Sight of the object in the picture and its crops."""
    return [region.box for region in crop_regions(turns, 1)]
