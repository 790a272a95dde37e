"""Sources: each layout gives the same questions, faults are named and counted, fields of the config
are read as they are typed."""

import io
import json

import numpy as np
import published_files
import pyarrow
import pyarrow.parquet as parquet
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from ml_collections import ConfigDict
from PIL import Image

from sensesearch_jax.data.images import read_image
from sensesearch_jax.data.published import published_set
from sensesearch_jax.data.questions import check_sources, pools_of, questions_of
from sensesearch_jax.data.sources import Source, parse_sources, read_source
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.workdir import Workdir


def picture(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(6)]


def record(number, **fields):
    return {
        'id': f'q{number}',
        'question': f'What is {number}?',
        'answers': [str(number)],
        'category': 'odd' if number % 2 else 'even',
    } | fields


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(one) + '\n' for one in records))
    return str(path)


def jsonl(folder):
    (folder / 'pictures').mkdir(parents=True)
    for number, data in enumerate(PICTURES):
        (folder / 'pictures' / f'{number}.png').write_bytes(data)
    records = [record(n, image=f'pictures/{n}.png') for n in range(6)]
    return write_lines(folder / 'my.jsonl', records)


def table(numbers=range(6)):
    rows = [record(n, images=[{'bytes': PICTURES[n], 'path': f'{n}.png'}]) for n in numbers]
    return pyarrow.Table.from_pylist([{**row, 'truth': '{"field": "x"}'} for row in rows])


def parquet_file(folder):
    parquet.write_table(table(), folder / 'a.parquet', row_group_size=4)
    return str(folder / 'a.parquet')


def shards(folder):
    parquet.write_table(table(range(4)), folder / 'part-1.parquet')
    parquet.write_table(table(range(4, 6)), folder / 'part-2.parquet')
    return str(folder)


def glob(folder):
    shards(folder)
    write_lines(folder / 'notes.jsonl', [{'text': 'no question'}])
    return str(folder / 'part-*.parquet')


def one_image_a_cell(folder):
    rows = [record(n, image=PICTURES[n]) for n in range(6)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'a.parquet')
    return str(folder)


def hub(folder):
    (folder / 'data').mkdir()
    (folder / 'README.md').write_text('# A set')
    parquet.write_table(table(range(4)), folder / 'data' / 'train-00000-of-00002.parquet')
    parquet.write_table(table(range(4, 6)), folder / 'data' / 'train-00001-of-00002.parquet')
    parquet.write_table(table([0]), folder / 'data' / 'test-00000-of-00001.parquet')
    return str(folder)


def image_folder(folder):
    for part, numbers in (('train', range(6)), ('test', [0])):
        records = [record(n, file_name=f'{n}.png') for n in numbers]
        write_lines(folder / part / 'metadata.jsonl', records)
        for number in numbers:
            (folder / part / f'{number}.png').write_bytes(PICTURES[number])
    return str(folder)


def write_arrow(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(folder / 'data-00000-of-00001.arrow'), 'wb') as sink:
        with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=4)
    state = {'_data_files': [{'filename': 'data-00000-of-00001.arrow'}]}
    (folder / 'state.json').write_text(json.dumps(state))
    (folder / 'dataset_info.json').write_text('{}')
    return str(folder)


def saved(folder):
    return write_arrow(folder, table())


def saved_splits(folder):
    write_arrow(folder / 'train', table())
    write_arrow(folder / 'test', table([0]))
    (folder / 'dataset_dict.json').write_text(json.dumps({'splits': ['train', 'test']}))
    return str(folder)


LAYOUTS = [
    jsonl, parquet_file, shards, glob, one_image_a_cell, hub, image_folder, saved, saved_splits,
]  # fmt: skip


@pytest.mark.parametrize('write', LAYOUTS)
def test_each_layout_gives_the_same_questions_and_images(tmp_path, write):
    found = read_source(write(tmp_path), '', usual='train')
    assert found.faults.kinds == {}
    assert [(q.id, q.text, q.answers, q.category) for q in found.questions] == [
        (f'q{n}', f'What is {n}?', (str(n),), 'odd' if n % 2 else 'even') for n in range(6)
    ]
    assert [read_image(*q.images) for q in found.questions] == PICTURES


@pytest.mark.parametrize('write', [hub, image_folder, saved_splits])
def test_splits_are_chosen_and_never_read_together(tmp_path, write):
    path = write(tmp_path)
    assert [q.id for q in read_source(path, 'test').questions] == ['q0']
    with pytest.raises(UserError, match=r'has the splits test, train; name one, as in .*@test'):
        read_source(path, '')
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        read_source(path, 'dev')


def test_a_published_set_that_was_converted_is_read_by_its_name(tmp_path):
    published_files.fvqa(tmp_path / 'files')
    with pytest.raises(UserError, match='data.convert fvqa FILES .*/data`, or say with data.dir'):
        read_source('fvqa', 'train', folder=str(tmp_path / 'data'))
    published_set('fvqa')(
        folder=str(tmp_path / 'files'), data_dir=str(tmp_path / 'data')
    ).download_and_prepare()
    by_name = read_source('fvqa', 'train', folder=str(tmp_path / 'data')).questions
    by_path = read_source(str(tmp_path / 'data' / 'fvqa'), '', usual='train').questions
    assert by_name == by_path and len(by_name) == 3 and by_name[0].source == 'fvqa'
    assert read_image(by_name[1].images[0]) == published_files.picture(1)


@pytest.fixture
def bucket(monkeypatch):
    """gs:// and s3:// in memory, by way of fsspec as the real ones."""
    for name in ('gcs', 's3'):
        kind = type(
            name, (MemoryFileSystem,), {'protocol': (name, 'gs'), 'store': {}, 'pseudo_dirs': ['']}
        )
        kind.__init__ = lambda self, *_, **options: MemoryFileSystem.__init__(self)
        monkeypatch.setitem(_registry, name, kind)  # the real one comes back
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    yield
    epath.backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.mark.parametrize('scheme', ['gs', 's3'])
@pytest.mark.parametrize('write', [jsonl, hub, saved])
def test_buckets_are_read_like_folders(tmp_path, bucket, scheme, write):
    local = write(tmp_path)
    for file in tmp_path.rglob('*'):
        if file.is_file():
            target = epath.Path(f'{scheme}://bucket/set') / str(file.relative_to(tmp_path))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    there = f'{scheme}://bucket/set' + local.removeprefix(str(tmp_path))
    found = read_source(there, '', usual='train')
    assert [read_image(*q.images) for q in found.questions] == PICTURES and found.faults.count == 0
    assert all(image.startswith(f'{scheme}://') for q in found.questions for image in q.images)


def test_each_fault_is_counted_and_named_and_the_others_are_read(tmp_path):
    path = tmp_path / 'my.jsonl'
    jsonl(tmp_path)
    (tmp_path / 'broken.png').write_text('no picture')
    bad = [
        record(0),
        record(7, image='lost.png'),
        record(8, image='broken.png'),
        record(9, answers=[]),
        record(10, choices=['a', 'b'], answers=['C']),
        record(11, reward='bleu'),
    ]
    with open(path, 'a') as file:
        file.write(''.join(json.dumps(one) + '\n' for one in bad) + '{"id": \n[]\n\n')
    found = read_source(str(path), '')
    assert len(found.questions) == 6 and found.faults.count == 8
    assert {kind: (e['count'], e['ids']) for kind, e in found.faults.kinds.items()} == {
        'duplicate id': (1, ['q0']),
        'missing image': (1, ['q7']),
        'corrupt image': (1, ['q8']),
        'no right answer': (2, ['q9', 'q10']),
        'unknown reward': (1, ['q11']),
        'no JSON': (1, ['my.jsonl:13']),
        'no object': (1, ['my.jsonl:14']),
    }
    assert found.faults.lines()[0].startswith('no right answer: 2 (q9, q10); the first: q9: ')


def test_what_is_wrong_as_a_whole_is_one_sentence(tmp_path):
    (tmp_path / 'a.parquet').write_bytes(b'PAR1 no')
    (tmp_path / 'b.txt').write_text('x')
    parquet.write_table(pyarrow.Table.from_pylist([{'prompt': 'x'}]), tmp_path / 'c.parquet')
    (tmp_path / 'empty').mkdir()
    for name, said in (
        ('a.parquet', 'is no whole Parquet file'),
        ('b.txt', 'is none of .jsonl'),
        ('c.parquet', r"has the columns \['prompt'\], which no question has"),
        ('empty', 'holds no .jsonl'),
        ('lost.jsonl', 'There is no file or directory'),
        ('lost-*.jsonl', 'No file matches'),
    ):
        with pytest.raises(UserError, match=said):
            read_source(str(tmp_path / name), '')
    with pytest.raises(UserError, match='has no splits; leave out'):
        read_source(jsonl(tmp_path / 'x'), 'test')


def test_a_picture_within_the_line_is_read_from_its_place(tmp_path):
    import base64

    records = [record(n, image=base64.b64encode(PICTURES[n]).decode() + '=' * 0) for n in range(3)]
    for one in records:
        one['image'] = 'data:image/png;base64,' + one['image']
    found = read_source(write_lines(tmp_path / 'a.jsonl', records), '')
    assert [read_image(*q.images) for q in found.questions] == PICTURES[:3]
    assert all(len(q.images[0]) < 300 for q in found.questions)


def test_sources_as_they_are_typed(tmp_path):
    path = jsonl(tmp_path)
    assert parse_sources('data.eval', f'pocket@test, {path},hr_mmsearch') == [
        Source(name='pocket', split='test'),
        Source(path=path),
        Source(name='hr_mmsearch'),
    ]
    (tmp_path / 'a,b.jsonl').write_text('')
    assert parse_sources('data.rl', str(tmp_path / 'a,b.jsonl')) == [
        Source(path=str(tmp_path / 'a,b.jsonl'))
    ]
    given = {'name': 'mine', 'path': path, 'weight': 2, 'limit': 3, 'seed': 1, 'category': 'odd'}
    assert parse_sources('data.rl', [given]) == [Source(**given)]
    for value, said in (
        ('', 'name a source'),
        ([], 'name a source'),
        (7, 'name a source'),
        ([{'name': 'pokcet'}], "there is no source 'pokcet'"),
        ([{'nmae': 'pocket'}], r"a source with \['nmae'\]"),
        ([{'path': path, 'weight': -1}], 'the weight of .* is -1'),
        ([{'path': path, 'limit': '3'}], "whose limit is '3'"),
        ([{'path': path, 'weight': 1}, {'name': 'pocket'}], 'give all or none'),
    ):
        with pytest.raises(UserError, match=said):
            parse_sources('data.rl', value)


def data(**stages):
    return ConfigDict({'seed': 0, 'dir': '', 'max_bad_share': 0.2, **stages})


def test_questions_are_drawn_once_into_the_workdir(tmp_path, capsys):
    path = jsonl(tmp_path)
    settings = data(rl=[{'path': path, 'category': 'odd', 'limit': 2, 'seed': 3}, {'path': path}])
    with Workdir.open(tmp_path / 'run', settings) as workdir:
        first, second = pools_of(workdir, settings, 'rl')
        assert [q.category for q in first.questions] == ['odd', 'odd']
        assert len(second.questions) == 6
        ids = [q.id for pool in (first, second) for q in pool.questions]
        assert len(set(ids)) == 8  # the two that both have are told apart
        (tmp_path / 'my.jsonl').unlink()
        assert pools_of(workdir, settings, 'rl') == [first, second]


def test_too_many_faults_are_fatal_and_a_few_are_said(tmp_path, capsys):
    path = jsonl(tmp_path)
    with open(path, 'a') as file:
        file.write(json.dumps(record(9, answers=[])) + '\n')
    settings = data(eval=path)
    with Workdir.open(tmp_path / 'a', settings) as workdir:
        assert len(questions_of(workdir, settings, 'eval')) == 6
    assert '1 of 7 records' in capsys.readouterr().err
    settings.max_bad_share = 0.1
    with Workdir.open(tmp_path / 'b', settings) as workdir:
        with pytest.raises(
            UserError, match=r'(?s)^data.eval: 1 of 7 .* 0.1 allows.*no right answer: 1'
        ):
            questions_of(workdir, settings, 'eval')


def test_checks_before_anything_is_read(tmp_path):
    path = jsonl(tmp_path)
    check_sources(data(eval=path), 'eval')
    for stage, value, said in (
        (
            'eval',
            [{'path': path, 'weight': 1.0}],
            'data.eval: .* each of its questions is asked once',
        ),
        ('rl', str(tmp_path / 'lost.jsonl'), 'data.rl: There is no file'),
        ('rl', 'pocket@dev', "data.rl: The pocket world has no split 'dev'"),
        ('train', [{'name': 'pocket', 'category': 'x'}], "no category 'x'"),
    ):
        with pytest.raises(UserError, match=said):
            check_sources(data(**{stage: value}), stage)


def test_references_hold_from_any_folder(tmp_path, monkeypatch):
    jsonl(tmp_path)
    monkeypatch.chdir(tmp_path)
    question = read_source('my.jsonl', '').questions[0]
    assert question.images == (str(tmp_path / 'pictures' / '0.png'),) and question.source == 'my'
