"""The command that converts published sets: its summary, its refusals, and a set that stands there already."""

import json
import shutil
from pathlib import Path

import pytest
from published_files import fvqa, hr_mmsearch, pixel_reasoner
from table_files import read_rows, write_rows

from sensesearch_jax.data.columns import tfds_source
from sensesearch_jax.data.convert import main


def test_a_set_is_converted_and_summed_up(tmp_path, capsys):
    pixel_reasoner(tmp_path / 'src')
    assert main(['pixel_reasoner', str(tmp_path / 'src'), str(tmp_path / 'dst')]) == 0
    shown = capsys.readouterr()
    directory = tmp_path / 'dst' / 'pixel_reasoner' / '1.0.0'
    assert f'written to {directory}' in shown.out and 'train: 2 questions' in shown.out
    assert 'video: 1 (' in shown.out and 'refused' not in shown.out
    assert 'pixel_reasoner train: 3/7850' in shown.err  # progress against the published size
    assert {p.name for p in (tmp_path / 'dst').iterdir()} == {'pixel_reasoner'}


def test_what_is_refused_is_counted_and_named(tmp_path, capsys):
    file = fvqa(tmp_path / 'src')[0]
    rows = read_rows(file)
    rows[1]['images'][0]['bytes'] = rows[1]['images'][0]['bytes'][:-100]  # cut off
    rows[2]['images'][0]['bytes'] = b'no image'
    rows.append(rows[0])
    write_rows(file, rows)
    arguments = ['fvqa', str(tmp_path / 'src'), str(tmp_path / 'dst')]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert 'fvqa, split train: 3 of its 4 records cannot be read, more than 1.0%' in message
    assert 'corrupt image: 2 (fvqa_train_1, fvqa_train_2)' in message
    assert 'duplicate id: 1 (fvqa_train_0)' in message
    assert not list((tmp_path / 'dst').rglob('*.array_record*'))
    assert main([*arguments, '--max_bad_share=0.8']) == 0
    assert 'refused (refused.json beside the set names them): 3' in capsys.readouterr().out
    named = json.loads((tmp_path / 'dst/fvqa/1.0.0/refused.json').read_text())
    assert named['corrupt image']['count'] == 2
    assert len(tfds_source(str(tmp_path / 'dst/fvqa/1.0.0'), 'train')) == 1


def test_a_set_that_is_there_is_replaced_only_by_a_whole_one(tmp_path, capsys):
    (file,) = hr_mmsearch(tmp_path / 'src')
    arguments = ['hr_mmsearch', str(tmp_path / 'src'), str(tmp_path / 'dst')]
    directory = tmp_path / 'dst' / 'hr_mmsearch' / '1.0.0'
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert f'{directory} is there already; --overwrite replaces it' in capsys.readouterr().err
    rows = read_rows(file)
    for path in (tmp_path / 'src' / 'images').iterdir():
        path.unlink()
    assert main([*arguments, '--overwrite']) == 2
    assert 'none of its 3 records can be read' in capsys.readouterr().err
    assert len(tfds_source(str(directory), 'test')) == 3  # the old one came back
    tfds_source.cache_clear()
    hr_mmsearch(tmp_path / 'src')
    write_rows(file, rows[:2])
    assert main([*arguments, '--overwrite']) == 0
    assert len(tfds_source(str(directory), 'test')) == 2
    directory.rename(f'{directory}.old')  # killed while it replaced the set
    assert main(arguments) == 2 and 'is there already' in capsys.readouterr().err
    assert [p.name for p in directory.parent.iterdir()] == ['1.0.0']


def test_archives_that_were_not_unpacked_are_named(tmp_path, capsys):
    pixel_reasoner(tmp_path / 'src')
    shutil.rmtree(tmp_path / 'src' / 'images')
    for name in ('images.zip', 'videos.tar.gz.part_aa'):
        (tmp_path / 'src' / name).write_bytes(b'PK')
    assert main(['pixel_reasoner', str(tmp_path / 'src'), str(tmp_path / 'dst')]) == 2
    assert 'holds images.zip, videos.tar.gz.part_aa: unpack' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nothing', 'a', 'b'], "no published set 'nothing'; choose from fvqa"),
        (['fvqa', '/nowhere', 'b'], 'there is no folder /nowhere'),
    ],
)
def test_one_sentence_for_what_cannot_be(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    fvqa(tmp_path / 'src')
    (tmp_path / 'file').write_text('')
    assert main(['fvqa', str(tmp_path / 'src'), str(tmp_path / 'file')]) == 2
    assert 'cannot be written' in capsys.readouterr().err


def test_its_list_and_its_help(capsys):
    assert main(['--list']) == 0
    assert 'hr_mmsearch              test 305' in capsys.readouterr().out
    for wrong in ([], ['fvqa'], ['fvqa', 'a', 'b', '--max_bad_share=2']):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        main(['--help'])
    assert 'DST/NAME/VERSION' in capsys.readouterr().out


def test_every_set_stands_on_the_page():
    from sensesearch_jax.data.published import NAMES, published_set

    page = (Path(__file__).parents[2] / 'docs' / 'published_sets.md').read_text()
    for name in NAMES:
        assert f'`{name}`' in page and published_set(name).home in page, name
