"""Each published set, converted from a few self-made records in its published layout, and refused otherwise."""

import sys
from pathlib import Path

import pytest
from published_files import MAKERS
from table_files import b64, picture, read_rows, write_rows

from sensesearch_jax.data.columns import tfds_source
from sensesearch_jax.data.images import read_image
from sensesearch_jax.data.plain_format import BadRecord, to_question
from sensesearch_jax.data.published import NAMES, published_set, set_base
from sensesearch_jax.data.published.examples import RECORDS, read_records
from sensesearch_jax.data.published.fields import LeftOut
from sensesearch_jax.errors import UserError


def converted(name, source, target, **options):
    """The questions of each split of a set, read back, and their image files; and the faults."""
    builder = published_set(name)(folder=str(source), data_dir=str(target), **options)
    builder.download_and_prepare()
    found = {}
    for split in builder.info.splits:
        questions = [to_question(r, '', name) for r in read_records(builder.data_dir, split)]
        found[split] = [(q, [read_image(image) for image in q.images]) for q in questions]
    return found, builder.faults


def test_every_set_has_files_of_its_own_here():
    assert set(MAKERS) == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_it_is_read_and_converted_without_tensorflow(name, tmp_path):
    MAKERS[name](tmp_path)
    kind = published_set(name)
    found, faults = converted(name, tmp_path, tmp_path / 'out')
    assert not faults.count and 'tensorflow' not in sys.modules
    for split, pairs in found.items():
        records = [r for r in kind.records(tmp_path, split) if not isinstance(r[1], LeftOut)]
        assert [question.id for question, _ in pairs] == [name for name, _ in records]
        for (question, images), (_, record) in zip(pairs, records, strict=True):
            read = to_question({**record, 'images': list(question.images)}, '', name)
            assert question == read and question.text and question.answers
            for image, data in zip(record['images'], images, strict=True):
                assert data == (image if isinstance(image, bytes) else Path(image).read_bytes())


@pytest.mark.parametrize('name', NAMES)
def test_a_set_without_one_of_its_columns_is_refused(name, tmp_path):
    kind = published_set(name)
    for column in kind.columns_of(MAKERS[name](tmp_path)[0]):
        for file in MAKERS[name](tmp_path):
            rows = [{k: v for k, v in row.items() if k != column} for row in read_rows(file)]
            write_rows(file, rows)
        with pytest.raises(UserError, match=f'{column}.*published layout of {name}'):
            [list(kind.records(tmp_path, split)) for split in kind.files(tmp_path)]


@pytest.mark.parametrize('name', NAMES)
def test_a_file_that_is_cut_off_is_refused(name, tmp_path):
    kind = published_set(name)
    for number, file in enumerate(MAKERS[name](tmp_path)):
        split = list(kind.files(tmp_path))[min(number, len(kind.splits) - 1)]
        if file.suffix in ('.parquet', '.json'):
            file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
            with pytest.raises(UserError, match=f'{file.name} is not .*; download it again'):
                list(kind.records(tmp_path, split))
        else:  # its last row is what cannot be read
            file.write_bytes(file.read_bytes()[:-20])
            found = [r for s in kind.files(tmp_path) for _, r in kind.records(tmp_path, s)]
            assert sum(isinstance(record, BadRecord) for record in found) == 1
        MAKERS[name](tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_a_folder_of_something_else_is_refused(name, tmp_path):
    kind = published_set(name)
    with pytest.raises(UserError, match=f'these are the files of {name}'):
        kind.files(tmp_path)
    with pytest.raises(UserError, match='there is no folder'):
        kind.files(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'sensenova_mars'])
def test_a_second_record_of_an_id_is_left_out_or_fatal(name, tmp_path):
    file = MAKERS[name](tmp_path)[0]
    rows = read_rows(file)
    write_rows(file, [*rows, rows[0]])
    with pytest.raises(UserError, match='duplicate id'):
        converted(name, tmp_path, tmp_path / 'out')
    found, faults = converted(name, tmp_path, tmp_path / 'out', max_bad_share=0.5)
    first = next(iter(found.values()))
    assert faults.kinds['duplicate id']['count'] >= 1 and len(first) == len(
        {q.id for q, _ in first}
    )


def test_questions_about_one_picture_share_its_reference(tmp_path):
    MAKERS['hr_bench_4k'](tmp_path / 'src')
    found, _ = converted('hr_bench_4k', tmp_path / 'src', tmp_path / 'out')
    images = [question.images for question, _ in found['test']]
    assert images[:4] == images[:1] * 4 and images[4:] == images[4:5] * 4
    assert images[0] != images[4]


def test_rows_are_those_of_the_examples_over_several_files(tmp_path, monkeypatch):
    """Also where there are no records beside the examples, as tensorflow-datasets alone writes them."""
    monkeypatch.setattr(set_base, 'SHARD', 3)
    file = MAKERS['hr_bench_4k'](tmp_path / 'src')[0]
    rows = read_rows(file)
    for number, row in enumerate(rows):
        row['image'] = b64(picture(number))
    write_rows(file, rows)
    builder = published_set('hr_bench_4k')(folder=str(tmp_path / 'src'), data_dir=str(tmp_path))
    builder.download_and_prepare()
    directory = Path(builder.data_dir)
    assert len(list(directory.glob('*.array_record*'))) == 3
    records = list(read_records(directory, 'test'))
    assert [r['id'] for r in records] == [f'hr_bench_4k-{n}' for n in range(8)]
    assert [read_image(r['images'][0]) for r in records] == [picture(n) for n in range(8)]
    (directory / RECORDS).unlink()
    assert list(read_records(directory, 'test')) == records
    ids = [example['id'].decode() for example in tfds_source(str(directory), 'test')]
    assert ids == [r['id'] for r in records]
