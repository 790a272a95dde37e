"""One picture by reference, from every container that may hold it."""

import io

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sensesearch_jax.data.images import NoImage, place, read_image


def picture(colour):
    file = io.BytesIO()
    Image.new('RGB', (40, 30), colour).save(file, 'JPEG')
    return file.getvalue()


RED, BLUE = picture('red'), picture('blue')


class TwoImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose examples have several images."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        images = tfds.features.Sequence(tfds.features.Image(encoding_format='jpeg'))
        features = tfds.features.FeaturesDict({'images': images})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'some': self._generate_examples()}

    def _generate_examples(self):
        yield 0, {'images': [io.BytesIO(RED), io.BytesIO(BLUE)]}


def alone(folder):
    (folder / 'blue.jpg').write_bytes(BLUE)
    return str(folder / 'blue.jpg')


def in_parquet(folder):
    rows = [[{'bytes': RED}], [{'bytes': RED}, {'bytes': BLUE}]]
    parquet.write_table(arrow.table({'images': rows}), folder / 'x.parquet', row_group_size=1)
    return place(folder / 'x.parquet', column='images', row=1, item=1)


def in_array_record(folder):
    builder = TwoImages(data_dir=str(folder), file_format='array_record')
    builder.download_and_prepare()
    return place(builder.data_path, split='some', row=0, item=1)


@pytest.mark.parametrize('container', [alone, in_parquet, in_array_record])
def test_the_file_comes_back_as_it_is(tmp_path, container):
    reference = container(tmp_path)
    assert read_image(reference) == BLUE


@pytest.mark.parametrize('container', [in_parquet, in_array_record])
def test_a_place_that_is_not_there_is_named(tmp_path, container):
    wrong = container(tmp_path).replace('item=1', 'item=7')
    with pytest.raises(NoImage, match='item=7 cannot be read'):
        read_image(wrong)
