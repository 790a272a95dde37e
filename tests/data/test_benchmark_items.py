"""Items of a benchmark in the making: every fault is found, and named for its item."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scripted_tools import noise_file

from sensesearch_jax.data.benchmark import checks
from sensesearch_jax.data.benchmark.checks import fault_lines, read_items, shares
from sensesearch_jax.data.benchmark.items import Rules
from sensesearch_jax.errors import UserError

RULES = Rules(min_width=320, min_height=180, max_area=0.05, max_likeness=0.9)
BOX = [100, 60, 140, 80]


@pytest.fixture
def written(tmp_path):
    """Writes items with a sound picture each, unless they have their own, and reads them."""

    def written(*items, rules=RULES):
        lines = []
        for number, item in enumerate(items):
            file = tmp_path / f'{number}.png'
            if not file.exists():
                noise_file(file, 320, 180, number)
            whole = {
                'id': f'i{number}',
                'image': file.name,
                'box': BOX,
                'question': 'Which town does the sign name?',
                'answer': 'Orsa',
                **item,
            }
            lines.append(json.dumps({k: v for k, v in whole.items() if v is not None}))
        (tmp_path / 'items.jsonl').write_text('\n'.join(lines))
        return read_items(tmp_path / 'items.jsonl', rules)

    return written


def kinds(item):
    return [kind for kind, _ in item.faults]


def test_a_sound_item_is_a_question_with_its_box_as_fractions(written):
    (item,) = written({'aliases': ['Orsa kyrkby'], 'category': 'sports'})
    assert not item.faults and item.size == (320, 180)
    assert item.question.answers == ('Orsa', 'Orsa kyrkby')
    assert item.question.category == 'sports' and item.question.source == 'items'
    np.testing.assert_allclose(item.question.truth['box'], [0.3125, 1 / 3, 0.4375, 4 / 9])
    assert item.area == pytest.approx(40 * 20 / (320 * 180))


@pytest.mark.parametrize(
    ('item', 'fault'),
    [
        ({'box': None}, 'no box'),
        ({'box': [1, 2, 3]}, 'no box'),
        ({'box': [1, 2, True, 4]}, 'no box'),
        ({'box': [0.3, 0.3, 0.4, 0.4]}, 'empty box'),
        ({'box': [140, 60, 100, 80]}, 'empty box'),
        ({'box': [300, 60, 321, 80]}, 'box outside'),
        ({'box': [0, 0, 160, 90]}, 'large box'),
        ({'answer': None, 'answers': ['Orsa', 'Mora']}, 'several answers'),
        ({'answer': 'Orsa or Mora'}, 'several answers'),
        ({'answer': 'Orsa; Mora'}, 'several answers'),
        ({'aliases': 'Mora'}, 'wrong type'),
        ({'answer': 'THE sign'}, 'answer in question'),
        ({'answer': None}, 'no right answer'),
        ({'image': None}, 'not one picture'),
        ({'image': 'absent.png'}, 'missing image'),
        ({'nonsense': 1}, 'unknown field'),
    ],
)
def test_a_fault_is_named(written, item, fault):
    (found,) = written(item)
    assert kinds(found) == [fault]


@pytest.mark.parametrize('answer', ['the', 'sig', 'town names'])
def test_an_answer_is_in_the_question_by_whole_words_alone(written, answer):
    (found,) = written({'answer': answer})
    assert kinds(found) == (['answer in question'] if answer == 'the' else [])


def test_options_may_share_words_with_their_question(written):
    (found,) = written({'choices': ['town', 'village'], 'answer': 'A'})
    assert not found.faults


def test_all_faults_of_an_item_are_named_at_once(written):
    (found,) = written(
        {'box': [0, 0, 320, 180], 'answer': 'town'}, rules=dataclasses.replace(RULES, min_width=640)
    )
    assert kinds(found) == ['low resolution', 'large box', 'answer in question']


def test_a_picture_on_end_is_as_large(written, tmp_path):
    noise_file(tmp_path / '0.png', 180, 320, 0)
    (found,) = written({})
    assert not found.faults


def test_of_two_pictures_nearly_the_same_the_later_is_named(written, tmp_path):
    """The same again, mirrored, cropped a little, and as a JPEG of half the size."""
    noise_file(tmp_path / '0.png', 640, 360, 7)
    first = Image.open(tmp_path / '0.png')
    first.save(tmp_path / '1.png')
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / '2.png')
    first.crop((30, 20, 610, 346)).save(tmp_path / '3.png')
    first.convert('L').convert('RGB').resize((320, 180)).save(tmp_path / 'small.jpg', quality=60)
    found = written({}, {}, {}, {}, {})
    assert [kinds(item) for item in found] == [[], *[['near-duplicate picture']] * 3, []]
    assert all('like that of i0' in item.faults[0][1] for item in found[1:4])


def test_a_picture_that_is_nearly_too_near_hides_no_nearer_one(written, monkeypatch):
    near = {1: [0.1], 2: [0.899, 0.901], 3: [0.1, 0.902, 0.901]}
    monkeypatch.setattr(checks, 'alike', lambda one, others: np.array(near[len(others)]))
    found = written({}, {}, {}, {})
    assert [kinds(item) for item in found] == [[], [], *[['near-duplicate picture']] * 2]
    assert all('0.90 like that of i1' in item.faults[0][1] for item in found[2:])


def test_a_cut_off_picture_is_named(written, tmp_path):
    noise_file(tmp_path / '0.png', 320, 180, 0)
    (tmp_path / '0.png').write_bytes((tmp_path / '0.png').read_bytes()[:-200])
    (found,) = written({})
    assert kinds(found) == ['corrupt image']


def test_ids_come_once_and_lines_are_objects(written, tmp_path):
    assert [kinds(item) for item in written({}, {'id': 'i0'})] == [[], ['duplicate id']]
    with open(tmp_path / 'items.jsonl', 'a') as file:
        file.write('\n[1]\n{"id"\n')
    found = read_items(tmp_path / 'items.jsonl', RULES)
    assert [(item.id, *kinds(item)) for item in found[2:]] == [
        ('line 3', 'no object'),
        ('line 4', 'no JSON'),
    ]
    assert [line.split(':')[0].strip() for line in fault_lines(found)] == [
        'duplicate id',
        'no object',
        'no JSON',
    ]


def test_a_file_without_items_is_refused(tmp_path):
    (tmp_path / 'empty.jsonl').write_text('\n')
    for name, complaint in (('empty.jsonl', 'is empty'), ('absent.jsonl', 'cannot be read')):
        with pytest.raises(UserError, match=complaint):
            read_items(tmp_path / name, RULES)


def test_shares_add_up():
    assert shares(['a', 'b', 'a', '']) == {
        'a': {'items': 2, 'share': 0.5},
        'b': {'items': 1, 'share': 0.25},
        '(none)': {'items': 1, 'share': 0.25},
    }
