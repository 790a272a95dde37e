"""Converted sets as sources by name, and other tensorflow-datasets directories by path."""

import numpy as np
import published_files
import pytest
import tensorflow_datasets as tfds
from table_files import picture

from sensesearch_jax.data import published
from sensesearch_jax.data.convert import main
from sensesearch_jax.data.images import read_image
from sensesearch_jax.data.sources import read_source
from sensesearch_jax.errors import UserError

TEXT = tfds.features.Text()


@pytest.mark.parametrize('name', published.NAMES)
def test_a_converted_set_is_a_source_by_name(name, tmp_path):
    published_files.MAKERS[name](tmp_path / 'src')
    assert main([name, str(tmp_path / 'src'), str(tmp_path / 'dst')]) == 0
    for split in published.published_set(name).splits:
        found = read_source(name, split, folder=str(tmp_path / 'dst'))
        assert found.questions and not found.faults.count
        for question in found.questions:
            assert question.answers and all(map(read_image, question.images))


def write_set(folder, features, examples):
    """A tensorflow-datasets directory that this project did not write."""

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A set of one's own."""

        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    builder = Own(data_dir=str(folder), file_format='array_record')
    builder.download_and_prepare()
    return str(builder.data_path)


def test_a_directory_of_ones_own_may_have_some_of_the_features(tmp_path):
    images = tfds.features.Sequence(tfds.features.Image())
    features = {'id': TEXT, 'question': TEXT, 'answers': tfds.features.Sequence(TEXT)}
    example = {'id': 'a', 'question': 'What?', 'answers': ['red']}
    for number, (more, value) in enumerate(
        [({}, {}), ({'images': images}, {'images': [picture(3)]})]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = read_source(write_set(folder, features | more, [example | value]), '')
        assert not found.faults.count and found.questions[0].answers == ('red',)
        assert [read_image(image) for image in found.questions[0].images] == value.get('images', [])


@pytest.mark.parametrize(
    'name, feature, value', [('label', np.int64, 1), ('images', tfds.features.Image(), picture(3))]
)
def test_features_that_no_question_has_are_a_sentence(name, feature, value, tmp_path):
    folder = write_set(
        tmp_path, {'question': TEXT, name: feature}, [{'question': 'W', name: value}]
    )
    with pytest.raises(UserError, match=f'has the feature {name}: .*Known are id: '):
        read_source(folder, '')


def test_both_sides_agree_on_the_folder_of_converted_sets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'sets'))
    with pytest.raises(UserError, match=r'data.convert vstar FILES') as missing:
        read_source('vstar', '')
    assert str(tmp_path / 'sets') in str(missing.value)
    published_files.vstar(tmp_path / 'src')
    assert main(['vstar', str(tmp_path / 'src')]) == 0
    assert 'test: 3 questions' in capsys.readouterr().out
    assert len(read_source('vstar', '').questions) == 3
