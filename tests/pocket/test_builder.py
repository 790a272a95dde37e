"""The question folder as a TensorFlow Datasets data set, without TensorFlow, read back through
grain."""

import sys
from pathlib import Path

import pytest

pytest.importorskip('tensorflow_datasets')

from sensesearch_jax.pocket.world.builder import read_dataset, write_dataset
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.question_folder import read_questions, write_questions
from sensesearch_jax.pocket.world.questions import make_questions


def test_round_trip(tmp_path):
    files = PocketFiles()
    pairs = {
        'test': make_questions(files, 'test', 'search_only', 5, 0),
        'train': make_questions(files, 'train', 'search', 2, 0),
    }
    folders = {split: tmp_path / split for split in pairs}
    for split, folder in folders.items():
        write_questions(pairs[split], folder, files)
    builder = write_dataset(folders, tmp_path / 'data')
    assert (
        builder.info.splits['test'].num_examples == 5
        and builder.info.splits['train'].num_examples == 2
    )
    for split, count in (('test', 5), ('train', 2)):
        dataset = read_dataset(tmp_path / 'data', split)
        assert len(dataset) == count
        written = {question.id: question for question in read_questions(folders[split])}
        for question, picture in dataset.shuffle(seed=1):
            assert question == written[question.id]
            assert picture == Path(question.images[0]).read_bytes()
    assert 'tensorflow' not in sys.modules
    write_dataset(folders, tmp_path / 'data')
    write_questions(pairs['test'][:3], folders['test'], files)
    with pytest.raises(ValueError, match='other questions'):
        write_dataset(folders, tmp_path / 'data')
