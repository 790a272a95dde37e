"""Question sets: disjoint by entity, unambiguous, answerable, reproducible, and readable after
writing."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.colours import colour_shares
from sensesearch_jax.pocket.world.files import SPLITS, PocketFiles
from sensesearch_jax.pocket.world.question_folder import read_questions, write_questions
from sensesearch_jax.pocket.world.question_templates import ONLY, PLACES
from sensesearch_jax.pocket.world.questions import KINDS, MARGIN, make_questions
from sensesearch_jax.pocket.world.scenes import Renderer
from tools_server.answer_matching.gold import gold_fault
from tools_server.answer_matching.verdict import is_right

FILES = PocketFiles()
SIZES = {'train': 400, 'validation': 45, 'test': 240}
SETS = {
    (split, kind): make_questions(FILES, split, kind, SIZES[split], 0)
    for split in SPLITS
    for kind in KINDS
}
ALL = [pair for pairs in SETS.values() for pair in pairs]


def split_of(question):
    return question.id.split('-')[0]


def shown(question, spec):
    """Ids of the entities that a question's picture shows."""
    return (
        {placement.entity for placement in spec.placements} if spec else {question.truth['entity']}
    )


def test_sizes_ids_and_kinds():
    assert len({question.id for question, _ in ALL}) == len(ALL)
    for (split, kind), pairs in SETS.items():
        assert len(pairs) == SIZES[split]
        assert all(
            q.category == kind and q.id.startswith(split) and (s is None) == (kind == 'search_only')
            for q, s in pairs
        )


def test_splits_are_disjoint_in_entities_pictures_and_passages():
    used = {
        split: {'entity': set(), 'file': set(), 'passage': set(), 'image': set()}
        for split in SPLITS
    }
    for question, spec in ALL:
        for identity in shown(question, spec):
            assert FILES.entities[identity].split == split_of(question)
            used[split_of(question)]['entity'].add(identity)
            used[split_of(question)]['file'].add(FILES.entities[identity].file)
        used[split_of(question)]['image'].add(question.images[0])
        used[split_of(question)]['passage'].add(question.truth.get('passage', split_of(question)))
    for a, b in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
        for kind in used[a]:
            assert not used[a][kind] & used[b][kind]
    # The test questions ask for most of the test entities.
    assert len(used['test']['entity']) >= 0.95 * sum(
        len(FILES.select(kind, 'test')) for kind in ('flag', 'painting')
    )


def test_scenes_are_4k_and_the_object_asked_for_below_five_percent():
    for question, spec in ALL:
        if spec is None:
            assert question.truth['box'] == [0, 0, 1, 1]
            continue
        assert spec.size[0] >= 3840 and spec.size[1] >= 2160
        assert all(spec.area(placement) < 0.05 for placement in spec.placements)
        if question.truth['entity']:
            placement = next(p for p in spec.placements if p.entity == question.truth['entity'])
            assert question.truth['box'] == pytest.approx(spec.fractions(placement))


def test_facts_are_stated_in_the_passage_and_found_by_their_entity():
    for question, _ in ALL:
        if question.category != 'perception':
            entity = FILES.entities[question.truth['entity']]
            assert question.answers[0] == entity.facts[question.truth['field']]
            assert question.answers[0] in FILES.passages[question.truth['passage']]['text']
            assert question.truth['title'] == entity.title
            assert question.truth['query'].endswith(f' of {entity.short_name}')
            # The words of the question do not give away what the picture has to tell.
            assert entity.subject.lower() not in question.text.lower()


def test_place_words_point_at_one_object_by_a_clear_margin():
    for question, spec in ALL:
        if spec is None or question.truth['field'] == 'count':
            continue
        words = [place for place in (*PLACES, ONLY) if question.text.rstrip('?.').find(place) >= 0]
        assert len(words) == 1
        if words[0] == ONLY:
            assert len(spec.placements) == 1
            continue
        axis, sign = PLACES[words[0]]
        centres = {p.entity: sign * (p.box[axis] + p.box[axis + 2]) / 2 for p in spec.placements}
        mine = centres.pop(question.truth['entity'])
        assert min(centres.values()) - mine >= MARGIN * spec.size[axis]


def test_what_can_be_seen_is_true():
    renderer = Renderer(FILES)
    for question, spec in SETS['test', 'perception']:
        field, answer = question.truth['field'], question.answers[0]
        if field == 'count':
            assert int(answer) == len(spec.placements) == len(question.truth['boxes'])
            noun = FILES.entities[spec.placements[0].entity].kind
            assert f'{noun}s' in question.text
            continue
        entity = FILES.entities[question.truth['entity']]
        if field == 'taller than wide':
            assert answer == ('yes' if entity.size[1] > 1.2 * entity.size[0] else 'no')
            assert not 0.8 < entity.aspect < 1.25
            continue
        if field == 'colour choice':
            assert len(set(question.choices)) == 4 and answer in 'ABCD'
            answer = question.choices['ABCD'.index(answer)]
        assert colour_shares(renderer.picture(entity.id)[1])[answer] >= 0.5


def test_guessing_does_not_pay():
    for (split, _), pairs in SETS.items():
        if split == 'validation':
            continue
        by_field = {}
        for question, _ in pairs:
            by_field.setdefault(question.truth['field'], Counter())[question.answers[0]] += 1
        for field, counts in by_field.items():
            share = counts.most_common(1)[0][1] / counts.total()
            assert counts.total() < 10 or share <= (0.62 if field == 'taller than wide' else 0.5), (
                field,
                counts,
            )


def test_same_arguments_same_questions():
    again = make_questions(FILES, 'test', 'search', SIZES['test'], 0)
    assert again == SETS['test', 'search']
    other = make_questions(FILES, 'test', 'search', 30, 1)
    assert [q.text for q, _ in other] != [q.text for q, _ in again[:30]]


def test_levels_are_kept():
    pairs = make_questions(FILES, 'train', 'search', 20, 3, levels=(2,))
    assert {question.difficulty for question, _ in pairs} == {'2'}
    assert all(2 <= len(spec.placements) <= 4 for _, spec in pairs)


def test_unknown_kind_and_too_many_are_refused():
    with pytest.raises(ValueError, match='search, perception, search_only'):
        make_questions(FILES, 'test', 'riddle', 1, 0)


def test_written_questions_come_back_and_interrupted_writing_goes_on(tmp_path):
    pairs = make_questions(FILES, 'test', 'search', 4, 5) + make_questions(
        FILES, 'test', 'search_only', 3, 5
    )
    seen = []
    write_questions(pairs, tmp_path, FILES, progress=lambda done, total: seen.append((done, total)))
    images = sorted((tmp_path / 'images').iterdir())
    assert seen[-1] == (len(images), len(images))
    read = read_questions(tmp_path)
    for (question, spec), back in zip(pairs, read, strict=True):
        assert back.images[0] == str(tmp_path / question.images[0])
        assert (back.id, back.text, back.answers, back.truth) == (
            question.id,
            question.text,
            question.answers,
            question.truth,
        )
        with Image.open(back.images[0]) as picture:
            picture.load()
            assert (
                picture.size == (spec.size if spec else picture.size) and max(picture.size) >= 336
            )
    before = {image: (image.read_bytes(), image.stat().st_mtime_ns) for image in images}
    images[0].unlink()
    write_questions(pairs, tmp_path, FILES)
    assert images[0].read_bytes() == before[images[0]][0]
    assert all(image.stat().st_mtime_ns == before[image][1] for image in images[1:])


def test_reader_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r'no questions\.jsonl'):
        read_questions(tmp_path)
    (tmp_path / 'questions.jsonl').write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match='line 1'):
        read_questions(tmp_path)


def test_every_reference_of_the_world_is_right_by_itself():
    for question, _ in ALL:
        assert gold_fault(question.answers, question.choices) is None, question
        for reference in question.answers:
            assert is_right(question.text, question.answers, reference, question.choices), question


@pytest.mark.parametrize(
    'answers, choices, complaint',
    [
        (
            ['E'],
            ['red', 'blue'],
            "question q7 in line 1 .* 'E' names none of the 2 choices; give a letter A to B",
        ),
        ([], [], 'question q7 .* has no reference answer'),
        ([''], [], 'question q7 .* empty'),
        ([7], [], 'question q7 .* list of texts'),
        ('Paris', [], 'answers of question q7 are a text'),
    ],
)
def test_a_question_that_nothing_answers_is_refused_when_it_is_read(
    tmp_path, answers, choices, complaint
):
    line = {'id': 'q7', 'text': 'Which?', 'images': ['a.png']}
    (tmp_path / 'questions.jsonl').write_text(
        json.dumps(line | {'answers': answers, 'choices': choices})
    )
    with pytest.raises(UserError, match=complaint):
        read_questions(tmp_path)


def test_pictures_of_one_name_must_be_one_scene(tmp_path):
    first, second = (
        make_questions(FILES, 'test', 'search', 20, 6),
        make_questions(FILES, 'test', 'search', 20, 7),
    )
    clash = [
        (
            second[0][0].__class__.from_json(
                {**second[0][0].to_json(), 'images': first[0][0].images}
            ),
            second[0][1],
        )
    ]
    with pytest.raises(ValueError, match='different seeds'):
        write_questions(first[:1] + clash, tmp_path, FILES)


def test_colour_shares_of_plain_pictures():
    for name, colour in {
        'red': (206, 17, 38),
        'blue': (0, 40, 104),
        'green': (0, 122, 61),
        'white': (255, 255, 255),
    }.items():
        plain = np.full((8, 8, 3), colour, np.uint8)
        assert colour_shares(plain)[name] == 1 and sum(colour_shares(plain).values()) == 1
