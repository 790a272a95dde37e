"""Each published set, converted from a few self-made records in its published layout, and refused otherwise."""

import sys
from pathlib import Path

import pytest
from published_files import MAKERS, read_rows, write_rows

from sensesearch_jax.data.columns import tfds_source
from sensesearch_jax.data.plain_format import BadRecord, to_question
from sensesearch_jax.data.published import NAMES, published_set
from sensesearch_jax.data.published.examples import from_example
from sensesearch_jax.data.published.fields import LeftOut
from sensesearch_jax.errors import UserError


def converted(name, source, target, **options):
    """The questions of each split of a set, read back, and their image files."""
    builder = published_set(name)(folder=str(source), data_dir=str(target), **options)
    builder.download_and_prepare()
    found = {}
    for split in builder.info.splits:
        examples = tfds_source(str(builder.data_dir), split)
        found[split] = [
            (
                to_question(from_example(example, ['x'] * len(example['images'])), '', name),
                [bytes(image) for image in example['images']],
            )
            for example in (examples[n] for n in range(len(examples)))
        ]
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
            read = to_question({**record, 'images': ['x'] * len(record['images'])}, '', name)
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
