"""Records of the benchmarks: options and their orders, groups, categories, and what is left out."""

import published_files
import pytest
from table_files import b64, picture, read_rows, write_rows

from sensesearch_jax.data.plain_format import BadRecord
from sensesearch_jax.data.published import published_set
from sensesearch_jax.data.published.fields import LeftOut
from sensesearch_jax.data.published.options import shuffled, split_options, without_marks


def records(name, folder):
    return [record for _, record in published_set(name).records(folder, 'test')]


def test_hr_mmsearch(tmp_path):
    published_files.hr_mmsearch(tmp_path)
    assert records('hr_mmsearch', tmp_path)[0] == {
        'id': 'sample_0000',
        'question': 'When was the club of player 0 founded?',
        'images': [str(tmp_path / 'images' / '0.png')],
        'answers': ['1900'],
        'category': 'Sports',
        'difficulty': 'hard',
    }


def test_hr_mmsearch_with_images_beside_its_file(tmp_path):
    file = published_files.hr_mmsearch(tmp_path)[0]
    rows = [row | {'query_image': f'{n}.png'} for n, row in enumerate(read_rows(file))]
    rows[2]['query_image'] = 'gone.png'
    write_rows(file, rows)
    first, _, last = records('hr_mmsearch', tmp_path)
    assert first['images'] == [str(tmp_path / 'images' / '0.png')]
    assert last.kind == 'missing image' and 'gone.png' in str(last)


def test_mmsearch_with_and_without_images(tmp_path):
    published_files.mmsearch_all(tmp_path)
    every = records('mmsearch_all', tmp_path)
    assert [len(r['images']) for r in every] == [1, 1, 0]
    assert every[1]['answers'] == ['2024-09-02', '2 September 2024']
    assert [r['category'] for r in every] == ['knowledge', 'news', 'news']
    *with_image, last = records('mmsearch', tmp_path)
    assert with_image == every[:2] and isinstance(last, LeftOut)


def test_infoseek(tmp_path):
    published_files.infoseek(tmp_path / 'sub')
    assert records('infoseek', tmp_path / 'sub')[0]['answers'] == ['Africa', 'the savanna']
    published_files.infoseek_val(tmp_path / 'val')
    name, number, year = records('infoseek_val', tmp_path / 'val')
    assert name['answers'] == ['Ljubljana', 'City of Ljubljana']
    assert number['answers'] == ['2864.0']
    assert number['truth'] == {'question_type': 'Numerical', 'range': [2577.6, 3150.4]}
    assert year['truth'] == {'question_type': 'Time'} and '1893' in year['answers']
    assert name['images'] == [str(tmp_path / 'val/images/00/oven_00990048.jpg')]


def test_simple_vqa_is_the_english_half(tmp_path):
    file = published_files.simple_vqa(tmp_path)[0]
    *english, chinese = records('simple_vqa', tmp_path)
    assert [r['id'] for r in english] == ['simple_vqa-0', 'simple_vqa-1']
    assert isinstance(chinese, LeftOut)
    rows = [{k: v for k, v in row.items() if k != 'language'} for row in read_rows(file)]
    write_rows(tmp_path / 'tsv' / 'SimpleVQA.tsv', rows)
    *same, chinese = records('simple_vqa', tmp_path / 'tsv')
    assert same == english and isinstance(chinese, LeftOut)


def test_livevqa_and_mat_search(tmp_path):
    published_files.livevqa(tmp_path / 'live')
    assert [r['category'] for r in records('livevqa', tmp_path / 'live')] == ['sports', '']
    published_files.mat_search(tmp_path / 'mat')
    first, second = records('mat_search', tmp_path / 'mat')
    assert (first['answers'], second['answers']) == (['Grace'], ['Ada', 'Ada King'])
    assert first['difficulty'] == 'simple' and first['id'] == 'mat_search-0'


def test_mat_search_is_hard_from_its_76th_row_on(tmp_path):
    file = published_files.mat_search(tmp_path)[0]
    rows = [row | {'id': n} for n, row in enumerate(read_rows(file) * 75)]
    write_rows(file, rows)
    difficulties = [r['difficulty'] for r in records('mat_search', tmp_path)]
    assert difficulties == ['simple'] * 75 + ['hard'] * 75


def test_vstar_shuffles_its_options_and_says_how(tmp_path):
    published_files.vstar(tmp_path)
    published = records('vstar_published_order', tmp_path)
    mixed = records('vstar', tmp_path)
    assert [r['id'] for r in mixed] == [
        'direct_attributes/0',
        'direct_attributes/1',
        'relative_position/0',
    ]
    for old, new in zip(published, mixed, strict=True):
        assert old['question'] == new['question'] and old['question'].endswith('made of?')
        order = new['truth']['option_order']
        assert new['choices'] == [old['choices'][n] for n in order]
        assert new['choices']['ABCD'.index(new['answers'][0])] == 'rubber'
        assert old['truth']['option_order'] == list(range(len(order)))
    assert records('vstar', tmp_path) == mixed  # the same in every run


def test_orders_of_options_have_the_right_one_at_every_place():
    places = [shuffled(['a', 'b', 'c', 'd'], 'A', f'vstar {n}')[1] for n in range(400)]
    assert all(80 < places.count(letter) < 120 for letter in 'ABCD')


def test_vstar_needs_options_and_a_label_among_them(tmp_path):
    file = published_files.vstar(tmp_path)[0]
    rows = read_rows(file)
    rows[0]['text'], rows[1]['label'], rows[2]['category'] = 'What is it?', 'E', 'OCR'
    write_rows(file, rows)
    kinds = [r.kind for r in records('vstar', tmp_path)]
    assert kinds == ['wrong options', 'no right answer', 'unknown category']


def test_vstar_has_the_box_of_a_single_object(tmp_path):
    published_files.vstar(tmp_path)
    first, _, position = records('vstar', tmp_path)
    assert first['truth']['box'] == [0.25, 0.25, 0.375, 0.375]
    assert 'box' not in position['truth']  # of two objects
    side = tmp_path / 'direct_attributes/sa_0.json'
    for text in ['{', '{}', '{"bbox": [[1, 2, 3]]}', '{"bbox": [[90, 12, 8, 6]]}', '[]']:
        side.write_text(text)
        assert [r.kind for r in records('vstar', tmp_path)[:1]] == ['wrong box'], text
    side.unlink()
    assert 'box' not in records('vstar', tmp_path)[0]['truth']
    (tmp_path / 'relative_position/sa_0.jpg').write_bytes(b'no picture')
    (tmp_path / 'direct_attributes/sa_1.jpg').write_bytes(b'no picture')
    kinds = [getattr(r, 'kind', 'sound') for r in records('vstar', tmp_path)]
    assert kinds == ['sound', 'corrupt image', 'sound']  # the third is looked at when it is written


@pytest.mark.parametrize('name', ['hr_bench_4k', 'hr_bench_8k'])
def test_hr_bench_groups_the_orders_of_a_question(name, tmp_path):
    published_files.MAKERS[name](tmp_path)
    found = records(name, tmp_path)
    groups = [r['truth']['group'] for r in found]
    assert len(set(groups)) == 2 and groups[:4] == groups[:1] * 4
    assert [r['truth']['cycle'] for r in found[:4]] == ['0', '1', '2', '3']
    assert all(r['choices']['ABCD'.index(r['answers'][0])] == 'blue' for r in found)
    assert [r['category'] for r in found] == ['single'] * 4 + ['cross'] * 4


def test_mme_realworld_in_both_layouts(tmp_path):
    published_files.mme_realworld(tmp_path / 'json')
    first, second = records('mme_realworld', tmp_path / 'json')
    assert first['choices'][-1] == 'The image does not feature the content.'
    assert (first['answers'], second['answers']) == (['B'], ['E'])
    assert first['category'] == 'Perception/Remote Sensing'
    assert first['images'] == [str(tmp_path / 'json/remote_sensing/remote_sensing/0.png')]
    row = {
        'index': 7,
        'bytes': b64(picture(0)),
        'path': '0.png',
        'question': 'How many planes are there?',
        'multi-choice options': published_files.OPTIONS,
        'answer': 'B',
        'category': 'Perception/Remote Sensing',
        'l2-category': 'count',
    }
    write_rows(tmp_path / 'hub' / 'data' / 'train-00000-of-00070.parquet', [row])
    (other,) = records('mme_realworld', tmp_path / 'hub')
    assert other | {'id': first['id'], 'images': first['images']} == first


@pytest.mark.parametrize(
    'text, question, options',
    [
        ('What?\n(A) one\n(B) two\nAnswer with a letter.', 'What?', ['one', 'two']),
        ('What? (A) one (B) two (C) three', 'What?', ['one', 'two', 'three']),
        ('What?\nA. one\nB. two', 'What?', ['one', 'two']),
        ('What?\nA: one, or more\nB: two', 'What?', ['one, or more', 'two']),
        ('Does vitamin A. help?', 'Does vitamin A. help?', []),
        ('Is it (A) alone?', 'Is it (A) alone?', []),
        ('', '', []),
    ],
)
def test_options_in_a_text(text, question, options):
    assert split_options(text) == (question, options)


def test_options_with_marks_of_their_own():
    assert without_marks(['(A) x', 'B. y', 'z']) == ['x', 'y', 'z']
    with pytest.raises(BadRecord, match='option B begins with'):
        without_marks(['(A) x', '(C) y'])
