"""The plain format: what is a question, what is none and why, and there and back."""

import json

import pytest

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.plain_format import BadRecord, to_question, to_record

RECORD = {'id': 'q', 'question': 'Which?', 'image': 'a.png', 'answers': ['Paris']}


def fault(**changes):
    record = {k: v for k, v in (RECORD | changes).items() if v is not None}
    with pytest.raises(BadRecord) as caught:
        to_question(record, '/data', 'mine')
    return caught.value.kind, str(caught.value)


def test_the_least_record_and_the_whole_one():
    assert to_question({'id': 7, 'question': 'Which?', 'answer': 42}, '', 'mine') == Question(
        '7', 'Which?', answers=('42',), source='mine'
    )
    whole = to_question(
        {
            'id': 'q',
            'question': 'Which?',
            'images': ['a/1.png', '/b.png', 'gs://c/2.png', 'sha256:' + 'f' * 64],
            'answers': ['B'],
            'choices': ['red', 'blue'],
            'category': 'colour',
            'difficulty': 3,
            'source': 'theirs',
            'weight': 2,
            'truth': {'box': [0, 0, 1, 1]},
        },
        'gs://bucket/set',
        'mine',
    )
    assert whole.images == (
        'gs://bucket/set/a/1.png',
        '/b.png',
        'gs://c/2.png',
        'sha256:' + 'f' * 64,
    )
    assert (whole.reward, whole.difficulty, whole.weight, whole.source) == (
        'letter',
        '3',
        2.0,
        'theirs',
    )
    for reward in ('letter', 'judge'):
        question = to_question(to_record(whole) | {'reward': reward}, '', 'other')
        assert to_question(json.loads(json.dumps(to_record(question))), '', 'other') == question
    assert Question.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize(
    'changes, kind, said',
    [
        ({'id': ''}, 'no id', "its 'id' is ''"),
        ({'id': True}, 'no id', "its 'id' is True"),
        ({'question': None}, 'no question', "its 'question' is None"),
        ({'imgae': 'a'}, 'unknown field', "['imgae']"),
        ({'images': ['b.png']}, 'two fields', "both 'images' and 'image'"),
        ({'image': ''}, 'no image', 'is empty'),
        ({'image': 'x' * 5000}, 'no image', 'too long for a path'),
        ({'image': {'bytes': 'x'}}, 'wrong type', "its 'image'"),
        ({'answers': []}, 'no right answer', 'no reference answer'),
        ({'answers': None}, 'no right answer', 'no reference answer'),
        ({'answers': [' ']}, 'no right answer', 'empty'),
        ({'answers': ['C'], 'choices': ['a', 'b']}, 'no right answer', 'none of the 2 choices'),
        ({'answers': [True]}, 'wrong type', "its 'answers'"),
        ({'reward': 'bleu'}, 'unknown reward', "'bleu'"),
        ({'reward': 'letter'}, 'no choices', "no 'choices'"),
        ({'reward': 'number'}, 'no right answer', 'is a number'),
        ({'weight': 0}, 'wrong weight', '0.001 to 1000'),
        ({'weight': float('nan')}, 'wrong weight', '0.001 to 1000'),
        ({'category': ['a']}, 'wrong type', "its 'category'"),
        ({'truth': 'a'}, 'wrong type', "its 'truth'"),
    ],
)
def test_each_fault_has_its_kind_and_names_the_field(changes, kind, said):
    found, message = fault(**changes)
    assert found == kind and said in message and len(message) < 250


def test_a_line_that_is_no_object_is_none():
    with pytest.raises(BadRecord, match='list, not a JSON object'):
        to_question(['q'], '', 'mine')
