"""The base policy's examples: nothing of a held-out entity, answers that the picture or page bears
out."""

import dataclasses
import json
import re

import numpy as np
import pytest

from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining import initial_policy
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.reading import ReadingQuestions
from sensesearch_jax.pocket.pretraining.visual_questions import (
    MARGIN,
    VisualQuestions,
    clip_box,
    part_of_picture,
)
from sensesearch_jax.pocket.world.colours import NAMES, dominant_colour
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.question_templates import COUNT, PLACES
from sensesearch_jax.rewards.crop_geometry import loose_box

FILES = PocketFiles()
HELD = [e for e in FILES.entities.values() if e.split != 'train']
TAUGHT = [e for e in FILES.entities.values() if e.split == 'train']


def any_name(entities):
    """Matches titles and subjects as whole words: 'Oman' is no part of 'woman'."""
    names = sorted(
        {re.escape(name) for e in entities for name in (e.title, e.subject)}, key=len, reverse=True
    )
    return re.compile(r'(?<!\w)(' + '|'.join(names) + r')(?!\w)', re.IGNORECASE)


HELD_NAMES, TAUGHT_NAMES = any_name(HELD), any_name(TAUGHT)


def held_out(text):
    """Whether a text names a held-out entity; Guinea-Bissau, which is taught, does not name Guinea."""
    return bool(HELD_NAMES.search(text)) and bool(HELD_NAMES.search(TAUGHT_NAMES.sub('…', text)))


@pytest.fixture(scope='module')
def all_pages():
    return Pages(FILES)


@pytest.fixture(scope='module')
def vqa(all_pages):
    return VisualQuestions(FILES, all_pages, 6, None)


@pytest.fixture(scope='module')
def reading(all_pages):
    return ReadingQuestions(all_pages)


@pytest.fixture(scope='module')
def views(vqa):
    """Pictures with questions, far and close, and the entities that each picture was drawn from."""
    drawn, plain, found = [], vqa.renderer.picture, []
    vqa.renderer.picture = lambda entity: (drawn.append(entity), plain(entity))[1]
    for i in range(60):
        drawn.clear()
        example = vqa(np.random.default_rng(i), ease=(i % 3) / 2)
        found.append((example, set(drawn)))
    vqa.renderer.picture = plain
    return found


@pytest.fixture(scope='module')
def pages(reading):
    return [reading(np.random.default_rng(i), (64, 128, 256, 512)[i % 4]) for i in range(600)]


def words_of(example):
    return '\n'.join(
        [example.system, example.text, *(part for pair in example.pairs for part in pair)]
    )


def test_there_are_held_out_names_to_look_for():
    assert len(HELD) > 50 and held_out(f'the {HELD[0].title.upper()}, of course')
    assert not held_out('Flag of Guinea-Bissau') and held_out('Flag of Guinea: Bissau')


def test_no_held_out_entity_in_text_or_picture(views, pages):
    for example in [*(example for example, _ in views), *pages]:
        assert not held_out(words_of(example)), words_of(example)
    shown = set().union(*(drawn for _, drawn in views))
    assert len(shown) > 40
    assert all(FILES.entities[identity.split('~')[0]].split == 'train' for identity in shown)


def test_no_passage_about_a_held_out_entity(reading):
    """None of those that state their facts, nor any that names one."""
    own = {passage for e in HELD for passage in e.passages.values()}
    kept = {p['id'] for p in reading.pages.passages}
    assert own and not own & kept
    subjects = {identity.split('/')[0] for identity in own}
    assert not subjects & {identity.split('/')[0] for identity in kept}
    assert len(kept) > 1000
    assert not any(held_out(f'{p["title"]} {p["text"]}') for p in reading.pages.passages)
    assert not any(held_out(title) for title in reading.pages.titles)


def test_no_held_out_entity_in_the_tokenizers_texts(all_pages, monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(
        initial_policy,
        'train_tokenizer',
        lambda texts, folder, size: found.update(texts=list(texts), size=size),
    )
    initial_policy.write_tokenizer(tmp_path, all_pages, InventedWorld(FILES, 'train', 0), 512)
    texts = set(found['texts'])
    assert found['size'] == 512 and len(texts) > 1000
    named = [text for text in texts if held_out(text)]
    assert not named, named[:3]


def test_counts_and_boxes(views):
    counted = located = 0
    for example, _ in views:
        assert example.pairs and len(example.pairs) == len(set(example.pairs)) <= 6
        boxes = example.boxes
        assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= 1).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        for question, answer in example.pairs:
            if any(
                question == phrase.format(noun)
                for phrase in COUNT.phrasings
                for noun in ('flag', 'painting')
            ):
                assert answer == str(len(boxes))
                counted += 1
                continue
            place = next((words for words in PLACES if words in question), None)
            if place is None:
                assert 'in the picture' in question and len(boxes) == 1
                target = 0
            else:
                axis, sign = PLACES[place]
                order = np.argsort(sign * centres[:, axis])
                target = int(order[0])
                if len(boxes) > 1:  # beyond doubt
                    assert abs(centres[order[0], axis] - centres[order[1], axis]) >= MARGIN
            if question.startswith('Where is'):
                box = json.loads(answer)
                assert box == pytest.approx(loose_box(boxes[target]))
                x, y = centres[target]
                assert box[0] <= x <= box[2] and box[1] <= y <= box[3]
                located += 1
            elif question.startswith('In which part'):
                assert answer == part_of_picture(*centres[target])
            else:
                assert answer in ('yes', 'no') or answer.isalpha()
    assert counted > 10 and located > 60


def test_objects_are_where_the_boxes_say(vqa, monkeypatch):
    """Drawn without its objects, a picture differs inside the boxes (and their rims) only."""
    rng, made = np.random.default_rng(5), []
    plain = vqa.renderer.render
    monkeypatch.setattr(vqa.renderer, 'render', lambda *view: (made.append(view), plain(*view))[1])
    found = [vqa(rng) for _ in range(6)]
    for example, (spec, view, size) in zip(found, made, strict=True):
        bare = dataclasses.replace(spec, placements=())
        change = (
            np.abs(np.asarray(example.picture, int) - np.asarray(plain(bare, view, size), int)).max(
                -1
            )
            > 30
        )
        high, wide = change.shape
        for x0, y0, x1, y1 in example.boxes:
            box = change[round(y0 * high) : round(y1 * high), round(x0 * wide) : round(x1 * wide)]
            assert box.size and box.mean() > 0.3
        assert example.picture.size == size and 120 <= min(size) and max(size) <= 400


def test_pages_grow_with_their_budget(pages):
    """The shortest are a line with one question; longer ones hold more of both."""
    short, long = pages[::4], pages[3::4]
    assert all('\n' not in example.text and len(example.pairs) == 1 for example in short)

    def size(examples):
        return np.mean([len(example.text) for example in examples])

    assert size(long) > 4 * size(short) and max(len(example.pairs) for example in long) == 10


def test_parts_of_the_picture():
    assert (
        part_of_picture(0.1, 0.1) == 'upper left' and part_of_picture(0.5, 0.5) == 'middle centre'
    )
    assert part_of_picture(1.0, 1.0) == 'lower right' and part_of_picture(0.9, 0.2) == 'upper right'


def test_clip_box():
    assert clip_box((0.2, 0.2, 0.4, 0.4), (0, 0, 1, 1)) == (0.2, 0.2, 0.4, 0.4)
    assert clip_box((0.2, 0.2, 0.4, 0.4), (0.2, 0.0, 0.6, 0.8)) == pytest.approx(
        (0, 0.25, 0.5, 0.5)
    )
    assert clip_box((0.2, 0.2, 0.4, 0.4), (0.25, 0, 1, 1)) == pytest.approx((0, 0.2, 0.2, 0.4))
    assert clip_box((0.2, 0.2, 0.4, 0.4), (0.31, 0, 1, 1)) is None  # less than half of it
    assert clip_box((0.2, 0.2, 0.4, 0.4), (0.5, 0.5, 1, 1)) is None


def test_answers_stand_on_the_page(pages):
    """Every field asked for is found on the page, in the entry that the question names."""
    kinds = set()
    for example in pages:
        assert example.picture is None and example.pairs and not len(example.boxes)
        lines = example.text.split('\n')
        for question, answer in example.pairs:
            assert answer.strip() == answer and answer
            if question == 'Say that again.':
                assert answer == example.text
                kinds.add('echo')
            elif match := re.fullmatch(r'Title of result (\d+)\?', question):
                assert lines[int(match[1]) - 1].startswith(f'{match[1]}. {answer}')
                kinds.add('title')
            elif match := re.fullmatch(r'What does result (\d+) show\?', question):
                line = (
                    lines[int(match[1]) - 1].removeprefix(f'{match[1]}. ').removeprefix('Flag of ')
                )
                assert line.replace(', by ', ' ') == answer
                kinds.add('subject')
            elif match := re.fullmatch(r'Say "(.*)" again\.', question):
                assert answer == match[1]
                kinds.add('say')
            else:
                match = (
                    re.fullmatch(r'What is the (?P<key>.+?) of (?P<name>.*)\?', question)
                    or re.fullmatch(r'(?P<key>.+?) of (?P<name>.*)\?', question)
                    or re.fullmatch(r'(?P<name>.*): (?P<key>.+)', question)
                    or re.fullmatch(r'(?P<key>.+)\?', question)
                )
                assert match, question
                assert any(answer in line for line in lines), (question, answer, example.text)
                kinds.add('field')
    assert kinds == {'echo', 'title', 'subject', 'say', 'field'}


def test_the_same_seed_gives_the_same_example(vqa, reading):
    for ease in (0.0, 1.0):
        one, other = (vqa(np.random.default_rng(11), ease) for _ in range(2))
        assert np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
        assert (
            np.array_equal(one.boxes, other.boxes)
            and one.pairs == other.pairs
            and one.system == other.system
        )
    for tokens in (64, 512):
        one, other = (reading(np.random.default_rng(11), tokens) for _ in range(2))
        assert one[:4] == other[:4]
    assert vqa(np.random.default_rng(12)).pairs != vqa(np.random.default_rng(13)).pairs


def test_names_are_invented_without_end(reading):
    pages = reading.pages
    rng = np.random.default_rng(0)
    names = {pages.name(rng) for _ in range(300)}
    assert len(names) > 250 and all(re.fullmatch(r'[A-Za-z ]+', name) for name in names)
    assert not any(held_out(name) for name in names)


def test_cloze_answers_fill_the_blank(vqa, reading):
    """The answer stands where the blank was, the rest of the sentence around it, and nothing held
    out comes in."""
    filled = 0
    made = [
        example
        for i in range(40)
        for example in (
            vqa(np.random.default_rng(i), cloze=True),
            reading(np.random.default_rng(i), 256, cloze=True),
        )
    ]
    for example in made:
        assert not held_out(words_of(example))
        for question, answer in example.pairs:
            _, found, sentence = question.rpartition(' Fill in: ')
            if found and '_' in sentence:
                before, after = sentence.rsplit('_', 1)
                assert answer.startswith(before) and answer.endswith(after)
                assert len(answer) > len(before) + len(after)
                filled += 1
    assert filled > 60
    assert any('Where is it?' in question for example in made for question, _ in example.pairs)


def test_markup_is_said_again(reading):
    for seed in range(40):
        example = reading.markup(np.random.default_rng(seed), 256)
        assert (
            example.pairs == [('Say that again.', example.text)]
            and example.text.strip() == example.text
        )
        assert not held_out(words_of(example))


def test_namesakes_share_their_words_and_are_said_again(reading):
    for seed in range(40):
        example = reading.namesakes(np.random.default_rng(seed), 256)
        names = [line.split('. ', 1)[1].rsplit(': ', 1)[0] for line in example.text.split('\n')]
        assert len({word for name in names for word in name.split()}) <= 8
        assert all(answer in example.text for _, answer in example.pairs) and not held_out(
            words_of(example)
        )


def test_attribute_questions_ask_for_what_single_objects_look_like(vqa):
    """More than a third of their questions is of colour and shape, and an option's letter or a
    thought names the same colour."""
    asked = attribute_focus = 0
    for seed in range(60):
        example = vqa(np.random.default_rng(seed), cloze=seed % 2 == 1, attribute_focus=True)
        assert example.pairs and not held_out(words_of(example))
        for question, answer in example.pairs:
            asked += 1
            words = question.split('\n')[0].split(' Fill in')[0]
            if seed % 2 == 0 and 'colour' in words:
                assert answer in NAMES
            attribute_focus += any(word in words for word in ('colour', 'taller', 'height'))
    # the rest are places, numbers and what single objects do not show
    assert 3 * attribute_focus > asked


def test_a_sight_is_the_objects_own(vqa):
    rng = np.random.default_rng(0)
    found = {}
    for entity in TAUGHT:
        attribute = vqa.attribute_question(rng, entity, 'farthest left', options=0.5)
        if attribute is None:
            continue
        found.setdefault(attribute.name, []).append(attribute)
        if attribute.name == 'shape':
            assert attribute.answer == attribute.seen == ('yes' if entity.aspect < 1 else 'no')
        else:
            assert attribute.seen == dominant_colour(vqa.renderer.picture(entity.id)[1])
            assert (
                attribute.answer == attribute.seen
                or f'\n{attribute.answer}. {attribute.seen}' in attribute.question
            )
    assert min(map(len, found.values())) > 20 and len(found) == 2
