"""Trains the pocket base policy from nothing: it learns to see, read and copy, and neither protocol
nor test entities.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from PIL import Image

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import GroupBatch, ImageTable, Member, Row, build_groups
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.config import LanguageSizes, PolicySizes, VisionSizes
from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.qwen2_5_vl import Policy
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.pocket.pretraining.probes import Probes, VisualTargets, visual_targets
from sensesearch_jax.pocket.pretraining.search_dialogues import InquiryLessons
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer
from sensesearch_jax.pocket.pretraining.vqa_and_reading import (
    Lesson,
    Pages,
    ReadingLessons,
    SeeingLessons,
)
from sensesearch_jax.pocket.pretraining.zoom_dialogues import ZoomLesson, ZoomLessons
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.question_templates import FACT_FIELDS
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.checkpointing import Checkpoints
from sensesearch_jax.training.optimizer import decays, finite_update
from sensesearch_jax.training.prefix_shared_forward import group_hidden
from sensesearch_jax.training.token_log_probs import token_log_probs

PAGE_WEIGHT = 0.3  # of predicting the page itself, where most of a text's repetitions are


class Batch(NamedTuple):
    """A group batch; `images` and `targets` are None for a batch of pages."""

    groups: GroupBatch
    images: tuple[np.ndarray, ...] | None
    targets: VisualTargets | None


def write_tokenizer(folder: Path, pages: Pages, vocabulary: int) -> None:
    """The pocket tokenizer, from passages and titles of training entities, the questions' words and
    the protocol's.

    That `<think>` or a tool's name is one token tells the policy nothing of how to use it.
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
    lessons = ReadingLessons(pages)
    rng = np.random.default_rng(0)
    asked = [question for _ in range(300) for question, _ in lessons(rng, 512).pairs]
    texts = [f'{p["title"]}: {p["text"][:400]}' for p in pages.passages]
    train_tokenizer(
        [
            *texts,
            *pages.titles * 5,
            *words * 5,
            *asked,
            *[DEFAULT.system_prompt(TOOLS), turn] * 300,
        ],
        folder,
        vocabulary,
    )


def write_untrained(folder: Path, config: ml_collections.ConfigDict, pages: Pages) -> Policy:
    """A policy directory with tokenizer, preprocessor and random weights of the config's sizes;
    gives the policy.

    A policy that is there already stays: it may have been trained.
    """
    there = (folder / 'config.json').is_file()
    if not there:
        write_tokenizer(folder, pages, config.language.vocabulary)
    preprocessor = {
        'image_processor_type': 'Qwen2VLImageProcessor',
        'min_pixels': config.min_pixels,
        'max_pixels': config.max_pixels,
        'patch_size': 14,
        'temporal_patch_size': 2,
        'merge_size': 2,
    }
    if not there:
        (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor, indent=2) + '\n')
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
    )
    policy = Policy(sizes, nnx.Rngs(config.seed))
    if not there:
        save_policy(policy, folder, copy_from=folder)
    return policy


class Lessons:
    """Batches of lessons as arrays, in static shapes: short pages first, then pictures and growing
    pages in turn.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: Path,
        sizes: PolicySizes,
        files: PocketFiles,
        pages: Pages,
    ):
        self.config, self.sizes = config, sizes
        self.preprocessor = Preprocessor.read(folder)
        self.chat = ChatTokenizer(folder, self.preprocessor.merged_tokens)
        self.seeing = SeeingLessons(files, pages, max(config.questions))
        self.reading, self.inquiries = ReadingLessons(pages), InquiryLessons(files, pages)
        self.zooms = ZoomLessons(self.seeing)
        # Later turns of a dialogue: what stands between an answer's end and the next answer.
        plain = self.chat.prompt('', [''])
        self.empty_system = plain.index(self.chat.im_end) + 1

    def batches(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless; batch i depends on the seed and i only, so that a restart goes on where it
        stopped.
        """
        while True:
            yield self.batch(np.random.default_rng([seed, start]), start)
            start += 1

    def batch(self, rng: np.random.Generator, step: int) -> Batch:
        """The lessons of one step of the curriculum."""
        config, lengths = self.config, self.config.page_lengths
        after, left = step - config.reading_steps, config.steps - step
        if left <= config.sight_steps:
            parts = config.sight_shares
            return self.sight_batch(
                rng, parts[len(parts) * (config.sight_steps - left) // config.sight_steps]
            )
        left -= config.sight_steps
        zoomed = left <= config.zoom_steps
        formatted = left <= config.zoom_steps + config.formatted_steps
        dressed = left <= config.zoom_steps + config.formatted_steps + config.dressed_steps
        stage = dressed + formatted
        if after < 0:
            return self.page_batch(rng, lengths[0], self.reading)
        if formatted and after % 2 and rng.random() < 0.35:
            return self.plain_pages(rng)
        if dressed and after % 2 and rng.random() < 0.8:
            return self.inquiry_batch(rng, formatted)
        if after % (2 if dressed else 3) == dressed:
            longest = min(2 + after * len(lengths) // config.growing_steps, len(lengths))
            return self.page_batch(
                rng, lengths[rng.integers(longest)], partial(self.reading, dressed=dressed), stage
            )
        if zoomed and rng.random() < 0.75:
            return self.zoom_batch(rng)
        return self.picture_batch(rng, max(0.0, 1 - after / config.easy_steps), stage)

    def sight_batch(self, rng: np.random.Generator, shares: Sequence[float]) -> Batch:
        """Of the last stage, in these shares: pages, zooms, colours and shapes asked plainly,
        dressed, in a format.
        """
        choice = int(rng.choice(5, p=shares))
        if choice == 0:
            return (
                self.inquiry_batch(rng, formatted=True)
                if rng.random() < 1 / 3
                else self.plain_pages(rng)
            )
        if choice == 1:
            return self.zoom_batch(rng, sights=0.8)
        return self.picture_batch(rng, stage=choice - 2, sights=True)

    def plain_pages(self, rng: np.random.Generator) -> Batch:
        """Pages of the formatted stage that are in no format: markup, namesakes, entries."""
        kind = (self.reading.markup, self.reading.namesakes, self.reading)[
            rng.choice(3, p=[0.3, 0.3, 0.4])
        ]
        lengths = self.config.page_lengths[1:]
        return self.page_batch(rng, lengths[rng.integers(len(lengths))], kind, stage=2)

    def inquiry_batch(self, rng: np.random.Generator, formatted: bool) -> Batch:
        """Inquiries of some length."""
        lengths = self.config.inquiry_lengths
        return self.page_batch(
            rng,
            lengths[rng.integers(len(lengths))],
            partial(self.inquiries, formatted=formatted),
            stage=1 + formatted,
        )

    def page_batch(
        self,
        rng: np.random.Generator,
        length: int,
        lessons: Callable[[np.random.Generator, int], Lesson],
        stage: int = 0,
    ) -> Batch:
        """Texts as whole dialogues of `length` tokens: every question of a lesson in turn, one
        member per row.
        """
        rows, system_tokens = [], length // 2
        while len(rows) < self.config.page_tokens[stage] // length:
            lesson = lessons(rng, length)
            prompt = self.chat.prompt(
                lesson.system, [f'{lesson.text}\n{lesson.pairs[0][0]}'.lstrip()]
            )
            start = prompt.index(self.chat.im_end) + 2  # behind the system turn
            tokens, own = prompt[start:], [False] * (len(prompt) - start)
            for i, (question, answer) in enumerate(lesson.pairs):
                between = self.chat.prompt('', [question])[self.empty_system :] if i else []
                reply = self.chat.assistant(answer)
                tokens += [*between, *reply]
                own += [False] * len(between) + [True] * len(reply)
            if len(tokens) < length and start <= system_tokens:
                rows.append(Row(prompt[:start], (), [Member(tokens, own)]))
        return Batch(self._groups(rows, {}, 1, system_tokens, length), None, None)

    def picture_batch(
        self, rng: np.random.Generator, ease: float = 0.0, stage: int = 0, sights: bool = False
    ) -> Batch:
        """Pictures with their questions, one picture per row and a member per question, and the
        probes' targets.
        """
        config = self.config
        questions, prompt_tokens, answer_tokens = (
            of_stages[stage]
            for of_stages in (config.questions, config.picture_tokens, config.answer_tokens)
        )
        prompt_tokens = config.sight_tokens if sights else prompt_tokens
        lessons, rows = [], []
        while len(rows) < self.config.pictures:
            lesson = self.seeing(rng, ease, stage > 0, stage > 1, sights)
            lesson = lesson._replace(pairs=lesson.pairs[:questions])
            row = self._row(lesson, (str(len(rows)),))
            if self._has_slots(lesson.picture) and self._fits(row, prompt_tokens, answer_tokens):
                lessons.append(lesson)
                rows.append(row)
        return self._pictured(
            rows,
            lessons,
            [[lesson.picture] for lesson in lessons],
            questions,
            prompt_tokens,
            answer_tokens,
        )

    def zoom_batch(self, rng: np.random.Generator, sights: float = 0.6) -> Batch:
        """Scenes with their zooms: a row has the scene, and a member for every zoom with a picture
        of its own.
        """
        config, lessons, rows = self.config, [], []
        prompt_tokens, answer_tokens = config.zoom_tokens
        while len(rows) < config.zoom_pictures:
            lesson = self.zooms(rng, config.zooms, sights)
            pictures = [lesson.picture, *(zoom.picture for zoom in lesson.zooms)]
            row = self._zoom_row(lesson, [f'{len(rows)}/{i}' for i in range(len(pictures))])
            if all(map(self._has_slots, pictures)) and self._fits(
                row, prompt_tokens, answer_tokens
            ):
                lessons.append((lesson, pictures))
                rows.append(row)
        return self._pictured(rows, *zip(*lessons), config.zooms, prompt_tokens, answer_tokens)

    def _has_slots(self, picture: Image.Image) -> bool:
        _, high, wide = self.preprocessor.grid(*picture.size)
        return (
            window_slots(high // 2, wide // 2, self.sizes.vision.window_tokens)
            <= self.config.picture_slots
        )

    def _pictured(
        self,
        rows: Sequence[Row],
        lessons: Sequence[Lesson | ZoomLesson],
        pictures: Sequence[Sequence[Image.Image]],
        members: int,
        prompt_tokens: int,
        answer_tokens: int,
    ) -> Batch:
        """Rows with equally many pictures each, the first of them in the prompt, and the probes'
        targets of that one.
        """
        slots = self.config.picture_slots
        names = [
            [*row.images, *(name for member in row.members for name in member.images)]
            for row in rows
        ]
        pixels = [[self.preprocessor.patches(picture) for picture in some] for some in pictures]
        images = batch_images(list(itertools.chain(*pixels)), self.sizes.vision, slots=slots)
        grids = {
            name: grid for some, shown in zip(names, pixels) for name, (_, grid) in zip(some, shown)
        }
        groups = self._groups(rows, grids, members, prompt_tokens, answer_tokens)
        # The tower's output takes this place, `slots` rows for every picture, of which its first
        # ones are tokens.
        counts = np.reshape(images.counts, (len(rows), -1))
        places = [
            np.concatenate([i * slots + np.arange(n) for i, n in enumerate(some)])
            for some in counts
        ]

        def spread(index):
            return np.stack([np.where(of >= 0, place[of], -1) for of, place in zip(index, places)])

        groups = groups._replace(
            features=np.zeros((len(rows), 1, self.sizes.language.width), np.float32),
            prompt_features=spread(groups.prompt_features),
            feature_index=spread(groups.feature_index),
        )
        starts = [int(np.nonzero(row >= 0)[0][0]) for row in groups.prompt_features]
        first = [(grid[1] // 2, grid[2] // 2) for (_, grid), *_ in pixels]
        targets = visual_targets(
            [lesson.boxes for lesson in lessons],
            first,
            starts,
            groups.prompt.shape[1],
            looks=[lesson.looks for lesson in lessons],
        )
        return Batch(groups, images[:4], targets)

    def _row(self, lesson: Lesson, images: tuple[str, ...]) -> Row:
        whole, shared = self._prompts(
            lesson.system, lesson.picture, [question for question, _ in lesson.pairs]
        )
        members = []
        for prompt, (_, answer) in zip(whole, lesson.pairs):
            ids = self.chat.assistant(answer)
            members.append(
                Member(
                    [*prompt[shared:], *ids], [False] * (len(prompt) - shared) + [True] * len(ids)
                )
            )
        return Row(whole[0][:shared], images, members)

    def _zoom_row(self, lesson: ZoomLesson, names: Sequence[str]) -> Row:
        whole, shared = self._prompts(
            lesson.system, lesson.picture, [zoom.question for zoom in lesson.zooms]
        )
        members = []
        for prompt, zoom, name in zip(whole, lesson.zooms, names[1:]):
            shown = [zoom.shown] * bool(zoom.shown) + [ImageRef('', *zoom.picture.size)]
            parts = (
                (prompt[shared:], False),
                (self.chat.assistant(zoom.first), zoom.right),
                (self.chat.prompt('', shown)[self.empty_system :], False),
                (self.chat.assistant(zoom.second), True),
            )
            members.append(
                Member(
                    [i for ids, _ in parts for i in ids],
                    [own for ids, own in parts for _ in ids],
                    (name,),
                )
            )
        return Row(whole[0][:shared], tuple(names[:1]), members)

    def _prompts(
        self, system: str, picture: Image.Image, questions: Sequence[str]
    ) -> tuple[list[list[int]], int]:
        """The prompts of questions about one picture, and how many tokens they share.

        What all questions share is the row's prompt; at least the last token of each is left to its
        member.
        """
        whole = [
            self.chat.prompt(system, [ImageRef('', *picture.size), question])
            for question in questions
        ]
        shared = next(
            i
            for i, column in enumerate(zip(*(w[:-1] for w in whole), strict=False))
            if len(set(column)) > 1 or i == min(map(len, whole)) - 2
        )
        return whole, shared

    def _fits(self, row: Row, prompt_tokens: int, answer_tokens: int) -> bool:
        """Whether the row stays within the static shapes; a rare lesson with a long text does not."""
        return (
            len(row.prompt) <= prompt_tokens
            and max(len(m.tokens) for m in row.members) < answer_tokens
        )

    def _groups(
        self, rows, grids, members: int, prompt_tokens: int, suffix_tokens: int
    ) -> GroupBatch:
        features = {
            name: np.zeros((grid[1] * grid[2] // 4, 1), np.float32) for name, grid in grids.items()
        }
        batch = build_groups(
            rows,
            ImageTable(grids, features),
            image_token=self.sizes.image_token,
            merge=2,
            members=members,
            prompt_step=prompt_tokens,
            suffix_step=suffix_tokens,
        )
        return batch


class Student(nnx.Module):
    """The policy and the probes that are dropped after training."""

    def __init__(self, policy: Policy, layers: tuple[int, ...], seed: int):
        text = policy.sizes.language
        self.policy, self.layers = policy, layers
        self.probes = nnx.List(
            [
                Probes(text.kv_heads * text.head_width, 24, 24, nnx.Rngs(seed + layer))
                for layer in layers
            ]
        )

    def loss(self, batch: Batch, probe_weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the answers, plus the probes' loss where there are pictures, and some of
        the page's own.
        """
        groups = batch.groups
        if batch.images is not None:
            groups = groups._replace(features=self._features(batch))
        hidden, prompt = group_hidden(self.policy, groups)
        log_probs, _ = token_log_probs(
            hidden[:, :, :-1], self.policy.language.head, groups.tokens[:, :, 1:]
        )

        def mean(mask):
            return -jnp.where(mask, log_probs, 0).sum() / jnp.maximum(mask.sum(), 1)

        own = groups.response_mask[:, :, 1:]
        loss = mean(own)
        if batch.images is None:
            page = mean(groups.valid[:, :, 1:] & ~own)
            return loss + PAGE_WEIGHT * page, {'reading_loss': loss, 'page_loss': page}
        parts, total = {'seeing_loss': loss}, loss
        for layer, probe in zip(self.layers, self.probes):
            extra, found = probe(
                prompt.values[layer][:, 0].reshape(*groups.prompt.shape, -1), batch.targets
            )
            total += probe_weight * extra
            parts |= found
        return total, parts

    def _features(self, batch: Batch) -> jax.Array:
        """Every row's table: the tower's output of its pictures, one after another."""
        features = self.policy.vision(*batch.images)
        return features.reshape(len(batch.groups.prompt), -1, features.shape[-1])

    def correct(self, batch: Batch) -> jax.Array:
        """Which tokens 1 … S−1 are the most likely ones after the right ones before, [B, G, S−1]."""
        groups = batch.groups
        if batch.images is not None:
            groups = groups._replace(features=self._features(batch))
        hidden, _ = group_hidden(self.policy, groups)
        best = self.policy.logits(hidden[:, :, :-1]).argmax(-1)
        return best == groups.tokens[:, :, 1:]


def prefetch(batches: Iterator[Batch], ahead: int = 3) -> Iterator[Batch]:
    """Makes batches on a thread while the device works; an error of the thread is raised to the
    reader.
    """
    ready: queue.Queue = queue.Queue(ahead)

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except (
            Exception
        ) as error:  # handed over: a silent thread would leave the reader waiting for ever
            ready.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch = ready.get()
        if isinstance(batch, Exception):
            raise batch
        yield batch


def run(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    """Trains for `config.steps` and writes `workdir`/policy; goes on from the last checkpoint after
    an interruption.

    A `config.policy` has had the first `config.first_step` steps already: the rest of the
    curriculum starts from it.
    """
    folder, files = workdir / 'policy', PocketFiles()
    pages = Pages(files)
    policy = write_untrained(folder, config, pages)
    if config.policy:
        policy = load_policy(config.policy)
    lessons = Lessons(config, folder, policy.sizes, files, pages)
    graph, parameters = nnx.split(Student(policy, tuple(config.probe_layers), config.seed))
    plain_steps, schedule = config.steps - sum(later_steps(config)), learning_rate(config)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decays),
    )
    state = {
        'parameters': parameters,
        'optimizer': at_step(optimizer.init(parameters), config.first_step),
    }

    def step(state, batch, probe_weight):
        def value(p):
            return nnx.merge(graph, p).loss(batch, probe_weight)

        gradients, parts = jax.grad(value, has_aux=True)(state['parameters'])
        after, moments, norms = finite_update(
            optimizer, state['parameters'], state['optimizer'], gradients
        )
        return {'parameters': after, 'optimizer': moments}, parts, norms

    step = jax.jit(step, donate_argnums=0)
    correct = jax.jit(lambda parameters, batch: nnx.merge(graph, parameters).correct(batch))
    held_rng = np.random.default_rng(config.seed + 1_000_000)
    held = [('', lessons.picture_batch(held_rng, sights=i % 2 == 1)) for i in range(12)]
    for kind, maker, lengths in (
        ('read', lessons.reading, config.page_lengths),
        ('inquire', lessons.inquiries, config.inquiry_lengths),
    ):
        held += [
            (f'{kind} {n}', lessons.page_batch(held_rng, n, maker))
            for n in lengths
            for _ in range(2)
        ]
    held += [
        (
            'inquire in a format',
            lessons.page_batch(
                held_rng, max(config.inquiry_lengths), partial(lessons.inquiries, formatted=True)
            ),
        )
        for _ in range(2)
    ]
    held += [('picture in a format', lessons.picture_batch(held_rng, stage=2)) for _ in range(4)]
    held += [('zoom', lessons.zoom_batch(held_rng)) for _ in range(4)]
    mean: dict[str, float] = {}
    skipped = in_a_row = 0  # updates that were not finite and not made
    with (
        Checkpoints(workdir / 'checkpoints', keep=1) as checkpoints,
        MetricWriter(workdir / 'metrics.jsonl') as metrics,
    ):
        start, restored = config.first_step, checkpoints.restore(state)
        earlier = Path(config.policy).parent / 'checkpoints'
        if restored is None and config.policy and earlier.is_dir():
            with Checkpoints(
                earlier
            ) as last:  # its probes and moments; new ones would shake what is there
                restored = last.restore(state, config.first_step)
        if restored is not None:
            start, state = restored.step, restored.arrays
        metrics.resume('base', start)
        with Progress('base policy', config.steps, initial=start) as bar:
            for i, batch in zip(
                range(start, config.steps), prefetch(lessons.batches(config.seed, start))
            ):
                weight = config.probe_weight * max(0.1, 1 - i / max(0.7 * plain_steps, 1))
                if i >= config.steps - config.sight_steps:
                    weight = config.sight_probe_weight
                state, parts, norms = step(state, batch, weight)
                finite = np.isfinite(norms['grad_norm'])
                skipped, in_a_row = skipped + (not finite), 0 if finite else in_a_row + 1
                if in_a_row >= config.max_skipped_updates:
                    if (made := i + 1 - in_a_row) > max(
                        checkpoints.latest_step() or 0, config.first_step
                    ):
                        checkpoints.save(made, state)
                    raise UserError(
                        f'The gradients of the last {in_a_row} steps, up to step {i + 1}, were not finite '
                        '(max_skipped_updates); start anew with smaller learning rates. '
                        f'{checkpoints.directory} holds the state before them.'
                    )
                for name, value in parts.items() if finite else ():
                    mean[name] = 0.95 * mean.get(name, float(value)) + 0.05 * float(value)
                bar.update(**mean)
                if (i + 1) % 100 == 0:
                    metrics.write(
                        'base',
                        i + 1,
                        mean | norms | {'learning_rate': schedule(i), 'skipped_updates': skipped},
                    )
                    skipped = 0
                if (i + 1) % config.evaluate_every == 0 or i + 1 == config.steps:
                    metrics.write(
                        'base',
                        i + 1,
                        accuracy(lessons, lambda b: correct(state['parameters'], b), held),
                    )
                    checkpoints.save(i + 1, state)
                    save_policy(
                        nnx.merge(graph, state['parameters']).policy, folder, dtype=config.dtype
                    )


def later_steps(config: ml_collections.ConfigDict) -> list[int]:
    """Steps of the parts of the curriculum that come after the plain one."""
    return [config.dressed_steps, config.formatted_steps, config.zoom_steps, config.sight_steps]


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """One cosine after another, for each part of the curriculum that has any steps.

    Raises:
        UserError: no part has, or one has fewer than none.
    """
    later = later_steps(config)
    rates = [
        config.learning_rate,
        config.dressed_learning_rate,
        config.formatted_learning_rate,
        config.zoom_learning_rate,
        config.sight_learning_rate,
    ]
    stages = [
        (rate, steps)
        for rate, steps in zip(rates, [config.steps - sum(later), *later], strict=True)
        if steps
    ]
    if not stages or min(steps for _, steps in stages) < 0:
        raise UserError(
            f'steps is {config.steps}, and those of the later parts of the curriculum are {sum(later)} of them; '
            'give at least one in all, and none below 0.'
        )

    def cycle(rate, steps):
        return optax.warmup_cosine_decay_schedule(
            0, rate, min(config.warmup, steps // 2), steps, rate * 0.02
        )

    return optax.join_schedules(
        [cycle(*stage) for stage in stages],
        list(itertools.accumulate(steps for _, steps in stages[:-1])),
    )


def at_step(moments: optax.OptState, step: int) -> optax.OptState:
    """An optimiser's fresh state with its counters at `step`, where its schedules go on."""
    return jax.tree.map(lambda x: jnp.full_like(x, step) if x.dtype == jnp.int32 else x, moments)


def accuracy(lessons: Lessons, correct, held: list[tuple[str, Batch]]) -> dict[str, float]:
    """Share of answers that are right to the last token, by what is asked, on held lessons of
    training entities.

    Args:
        held: batches with their name; those without are told apart by how their questions begin. Of
            inquiries, whose answers may be worded in many ways, single tokens are counted.
    """
    found: dict[str, list[float]] = {}
    for name, batch in held:
        right = np.asarray(correct(batch))
        own = np.asarray(batch.groups.response_mask)[:, :, 1:]
        for b, g in zip(*np.nonzero(own.any(-1))):
            words = lessons.chat.decode(batch.groups.tokens[b, g][batch.groups.valid[b, g]]).split()
            label = name or ' '.join(words[:2]).lower().strip('?')
            # An answer is a run of own tokens; a dialogue has several.
            edges = np.flatnonzero(np.diff(np.concatenate([[0], own[b, g].astype(int), [0]])))
            for first, last in zip(edges[::2], edges[1::2]):
                answer = right[b, g, first:last]
                found.setdefault(f'right/{label}', []).append(
                    float(answer.mean() if name.startswith('inquire') else answer.all())
                )
    return {
        name: float(np.mean(values)) for name, values in sorted(found.items()) if len(values) >= 8
    }
