"""Records of the training sets: what of the published rows becomes question, options, answers and weight."""

import json

import published_files
import pytest
from table_files import picture, read_rows, write_rows

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published import published_set
from sensesearch_jax.data.published.fields import LeftOut
from sensesearch_jax.data.published.pixel_reasoner import boxed
from sensesearch_jax.errors import UserError


def records(name, folder, split='train'):
    return [record for _, record in published_set(name).records(folder, split)]


def test_fvqa(tmp_path):
    published_files.fvqa(tmp_path)
    first, second, _ = records('fvqa', tmp_path)
    assert first == {
        'id': 'fvqa_train_0',
        'question': 'Which county is building 0 in?',
        'images': [picture(0)],
        'answers': ['Cheshire', 'County of 0'],
        'category': 'search_free',
    }
    assert second['category'] == 'search_required'
    assert [r['category'] for r in records('fvqa', tmp_path, 'test')] == ['', '']


def test_one_split_alone_is_enough(tmp_path):
    published_files.fvqa(tmp_path)[1].unlink()
    assert list(published_set('fvqa').files(tmp_path)) == ['train']
    with pytest.raises(UserError, match=r"no files of the split 'test', only of \['train'\]"):
        records('fvqa', tmp_path, 'test')


@pytest.mark.parametrize(
    'changes, kind',
    [
        ({'images': []}, 'missing image'),
        ({'images': None}, 'missing image'),
        ({'images': [{'bytes': None, 'path': 'gone.jpg'}]}, 'missing image'),
        ({'prompt': [{'role': 'system', 'content': 'x'}]}, 'no question'),
    ],
)
def test_a_record_that_is_none(changes, kind, tmp_path):
    file = published_files.fvqa(tmp_path)[0]
    rows = read_rows(file)
    rows[1] |= changes
    write_rows(file, rows)
    good, bad, _ = records('fvqa', tmp_path)
    assert isinstance(bad, BadRecord) and bad.kind == kind and isinstance(good, dict)


def test_pixel_reasoner(tmp_path):
    published_files.pixel_reasoner(tmp_path)
    sign, cup, video = records('pixel_reasoner', tmp_path)
    assert sign == {
        'id': 'q-0',
        'question': 'What is written on the sign?',
        'images': [str(tmp_path / 'images' / '0.jpg')],
        'answers': ['MAIN {ST}'],
    }
    assert cup['question'] == 'Which colour has the cup?' and cup['choices'] == ['red', 'blue']
    assert (cup['answers'], cup['reward']) == (['B'], 'letter')
    assert isinstance(video, LeftOut) and video.kind == 'video'


def test_a_trajectory_without_an_answer(tmp_path):
    file = published_files.pixel_reasoner(tmp_path)[0]
    rows = read_rows(file)
    rows[0]['message_list'][-1]['content'] = [{'type': 'text', 'text': 'I do not know.'}]
    write_rows(file, rows)
    assert records('pixel_reasoner', tmp_path)[0].kind == 'no right answer'


@pytest.mark.parametrize(
    'text, content',
    [
        (r'so \boxed{42}.', '42'),
        (r'\boxed{1} then \boxed{\frac{1}{2}}', r'\frac{1}{2}'),
        (r'\boxed{open', ''),
        ('none', ''),
    ],
)
def test_boxed(text, content):
    assert boxed(text) == content


def test_deepeyes_and_visual_probe(tmp_path):
    published_files.deepeyes_4k(tmp_path / 'a')
    published_files.visual_probe(tmp_path / 'b')
    assert records('deepeyes_4k', tmp_path / 'a')[1] == {
        'id': 'deepeyes_4k-train-1',
        'question': 'What number is on bus 1?',
        'images': [str(tmp_path / 'a' / 'data' / 'train1.jpg')],
        'answers': ['112'],
    }
    ids = [r['id'] for s in ('train', 'test') for r in records('visual_probe', tmp_path / 'b', s)]
    assert ids[0] == 'visual_probe-train-0' and len(set(ids)) == 6


def test_sensenova_mars(tmp_path):
    published_files.sensenova_mars(tmp_path)
    search, _, fine, _ = records('sensenova_mars', tmp_path)
    assert search == {
        'id': 'fvqa_train-0',
        'question': 'Who is this?',
        'images': [str(tmp_path / 'data/fvqa_train/images/0.jpg')],
        'answers': ['Ada', 'Ada Lovelace'],
        'category': 'fvqa_train',
        'weight': 1.0,
    }
    assert fine['question'] == 'What colour is the kite?' and fine['choices'] == ['red', 'green']
    assert (fine['answers'], fine['reward']) == (['B'], 'letter')
    assert {r['category'] for r in records('sensenova_mars', tmp_path, 'test')} == {'hr_mmsearch'}


def test_a_manifest_that_says_another_length(tmp_path):
    file = published_files.sensenova_mars(tmp_path)[0]
    write_rows(file, read_rows(file)[:1])
    with pytest.raises(UserError, match='has 1 records, but .*train_small.json says 2'):
        records('sensenova_mars', tmp_path)


def test_a_manifest_that_is_none(tmp_path):
    (tmp_path / 'train.json').write_text(json.dumps({'fvqa': {'root': 'x'}}))
    with pytest.raises(UserError, match='no manifest of SenseNova-MARS: fvqa has no root'):
        records('sensenova_mars', tmp_path)
    (tmp_path / 'train.json').write_text('{"fvqa": ')
    with pytest.raises(UserError, match='not whole JSON'):
        records('sensenova_mars', tmp_path)
