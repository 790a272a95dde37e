"""References of images: each place that an image may lie in gives the same bytes."""

import base64
import io

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scripted_tools import ScriptedTools

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.data import columns
from sensesearch_jax.data.images import NoImage, image_bytes, place, read_image, upload_all


def picture(seed, size=40):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(12)]


@pytest.fixture
def table():
    return pyarrow.table(
        {
            'id': [str(i) for i in range(12)],
            'image': [{'bytes': data, 'path': None} for data in PICTURES],
            'images': [[PICTURES[i], PICTURES[i - 1]] for i in range(12)],
        }
    )


@pytest.mark.parametrize('kept', [0, 1 << 20])
def test_cells_of_parquet_in_row_groups_that_are_kept_and_that_are_not(
    tmp_path, table, kept, monkeypatch
):
    monkeypatch.setattr(columns, 'KEPT_BYTES', kept)
    columns._kept.cache_clear()
    file = str(tmp_path / 'a.parquet')
    parquet.write_table(table, file, row_group_size=5)
    for row in (0, 11, 4, 5, 9):
        assert read_image(place(file, column='image', row=row, item=0)) == PICTURES[row]
        assert read_image(place(file, column='images', row=row, item=1)) == PICTURES[row - 1]
    for where in ({'column': 'image', 'row': 12}, {'column': 'none', 'row': 0}):
        with pytest.raises(NoImage, match='cannot be read'):
            read_image(place(file, item=0, **where))


@pytest.mark.parametrize('layout', [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_cells_of_arrow_files_in_both_layouts(tmp_path, table, layout):
    file = str(tmp_path / 'a.arrow')
    with pyarrow.OSFile(file, 'wb') as sink, layout(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    assert read_image(place(file, column='image', row=7, item=0)) == PICTURES[7]
    assert read_image(place(file, column='images', row=7, item=1)) == PICTURES[6]


def test_the_forms_of_a_cell(tmp_path):
    (tmp_path / 'a.png').write_bytes(PICTURES[0])
    text = base64.b64encode(PICTURES[0]).decode()
    for value in (
        PICTURES[0],
        {'bytes': PICTURES[0], 'path': 'lost.png'},
        {'bytes': None, 'path': 'a.png'},
        'a.png',
        text,
        f'data:image/png;base64,{text}',
        [PICTURES[1], PICTURES[0]],
        [{'path': 'a.png'}] * 2,
    ):
        assert image_bytes(value, 1, tmp_path) == PICTURES[0]
    for value in (None, '', {'bytes': None, 'path': None}, 'lost.png'):
        with pytest.raises(ValueError):
            image_bytes(value, 0, tmp_path)


def test_a_path_may_have_the_sign_of_a_place(tmp_path):
    (tmp_path / 'a#1.png').write_bytes(PICTURES[0])
    assert read_image(str(tmp_path / 'a#1.png')) == PICTURES[0]


def test_all_images_of_a_question_or_a_failure(tmp_path, table):
    tools = ScriptedTools()
    (tmp_path / 'a.png').write_bytes(PICTURES[0])
    parquet.write_table(table, tmp_path / 'a.parquet')
    path = str(tmp_path / 'a.png')
    first, again = upload_all(tools, [path, path])
    assert first == again and upload_all(tools, []) == []
    inside = place(tmp_path / 'a.parquet', column='image', row=0, item=0)
    known = 'sha256:' + first.sha256
    assert upload_all(tools, [inside, known, path]) == [first] * 3
    lost = place(tmp_path / 'a.parquet', column='image', row=99, item=0)
    failure = upload_all(tools, [path, lost])
    assert isinstance(failure, ToolFailure) and 'row 99 of 12' in failure.message
