"""A folder of questions as a TensorFlow Datasets data set: array_record files, and no need of
TensorFlow.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import grain.python as grain
import tensorflow_datasets as tfds

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.pocket.world.question_folder import read_questions


class PocketQuestions(tfds.core.GeneratorBasedBuilder):
    """One example per question: 'image' (the encoded picture file) and 'question' (the Question as
    JSON text).

    Args:
      folders: of each split one made by `write_questions`. Only needed to write.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}

    def __init__(self, *, folders: Mapping[str, Path | str] | None = None, **arguments):
        self._folders = folders
        super().__init__(file_format='array_record', **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {'image': tfds.features.Image(encoding_format='jpeg'), 'question': tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _split_generators(self, dl_manager) -> dict:
        if not self._folders:
            raise ValueError('no question folders given: pass folders=, as made by write_questions')
        return {
            split: self._generate_examples(read_questions(folder))
            for split, folder in sorted(self._folders.items())
        }

    def _generate_examples(self, questions: list[Question]):
        for question in questions:
            # The file's own bytes: TFDS stores encoded images as they are, and needs no TensorFlow
            # for it.
            with open(question.images[0], 'rb') as file:
                yield (
                    question.id,
                    {'image': file, 'question': json.dumps(question.to_json(), ensure_ascii=False)},
                )


def write_dataset(folders: Mapping[str, Path | str], data_dir: Path | str) -> PocketQuestions:
    """Writes the questions of folders, one a split, as a data set under `data_dir`; its builder.

    A data set that is there already is kept if it was made of the same questions.

    Raises:
      ValueError: `data_dir` holds a data set of other questions.
    """
    files = [(Path(folders[split]) / 'questions.jsonl').read_bytes() for split in sorted(folders)]
    digest = hashlib.sha256(b'\n'.join([json.dumps(sorted(folders)).encode(), *files])).hexdigest()
    mark = Path(data_dir) / 'questions.sha256'
    if mark.is_file() and mark.read_text() != digest:
        raise ValueError(f'{data_dir} holds a data set of other questions: choose an empty folder')
    builder = PocketQuestions(folders=folders, data_dir=str(data_dir))
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)
    builder.download_and_prepare()
    return builder


def read_dataset(data_dir: Path | str, split: str) -> grain.MapDataset:
    """The examples of a split in random access, to shuffle, batch and shard with grain.

    Returns:
      A data set of (Question, encoded picture as bytes).
    """
    builder = PocketQuestions(data_dir=str(data_dir))
    source = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    return grain.MapDataset.source(source).map(_parse)


def _parse(example: dict) -> tuple[Question, bytes]:
    text = example['question']
    return Question.from_json(
        json.loads(text if isinstance(text, str) else bytes(text).decode())
    ), bytes(example['image'])
