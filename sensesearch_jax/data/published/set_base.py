"""The base of all published sets: from files in their published layout to a tensorflow-datasets directory."""

from __future__ import annotations

import abc
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from sensesearch_jax.data.faults import Faults
from sensesearch_jax.data.plain_format import BadRecord, to_question
from sensesearch_jax.data.published.examples import RECORDS, features, to_example, to_line
from sensesearch_jax.data.published.fields import LeftOut, image_file
from sensesearch_jax.data.published.tables import Row, rows
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.progress import Progress

SHARD = 1024  # examples of a file
BATCH_BYTES = 64 << 20
_ARCHIVE = re.compile(r'\.(zip|tar|tgz|tar\.\w+|gz)(\.part\w*)?$')
REFUSED = 'refused.json'  # beside the examples: the faults of records that were left out


@dataclass(frozen=True)
class Split:
    """A split as it is published.

    Args:
        files: patterns of its files within the folder; the first of them that matches any counts.
        size: its records; 0 where nothing public says so.
    """

    files: tuple[str, ...]
    size: int = 0


class PublishedSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A published set. Subclasses give its attributes and `record`.

    Attributes:
        name: under which configs and the command line know it.
        home: where it is published.
        licence: as its authors state it; '' where we know of none.
        splits: by name.
        columns: that every row of its files has.
        optional: columns that rows may have.
    """

    VERSION = tfds.core.Version('1.0.0')
    home: ClassVar[str]
    licence: ClassVar[str] = ''
    splits: ClassVar[Mapping[str, Split]]
    columns: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, folder: str = '', max_bad_share: float = 0.0, **arguments: Any):
        """Prepares to read or to write the set.

        Args:
            folder: of the published files. Only needed to write.
            max_bad_share: of the records that may be refused before all of it is.
            **arguments: of tensorflow-datasets, such as `data_dir`.
        """
        self._folder = folder
        self._max_bad_share = max_bad_share
        self.faults, self.left_out = Faults(), Faults()
        self._seen: set[str] = set()
        super().__init__(file_format='array_record', **arguments)

    @classmethod
    def files(cls, folder: epath.PathLike) -> dict[str, list[epath.Path]]:
        """The files of each split that is there.

        Raises:
            UserError: none is.
        """
        folder = epath.Path(folder)
        if not folder.is_dir():
            raise UserError(
                f'there is no folder {folder}; give the one with the files of {cls.name}'
            )
        found = {}
        for split, published in cls.splits.items():
            matches = (sorted(folder.glob(pattern)) for pattern in published.files)
            if files := next(filter(None, matches), None):
                found[split] = files
        if not found:
            wanted = ' or '.join(p for split in cls.splits.values() for p in split.files)
            raise UserError(
                f'{folder} has no {wanted}: these are the files of {cls.name} ({cls.home})'
            )
        return found

    @classmethod
    def split_files(cls, folder: epath.PathLike, split: str) -> list[epath.Path]:
        """The files of one split.

        Raises:
            UserError: they are not there.
        """
        files = cls.files(folder)
        if split not in files:
            raise UserError(
                f'{folder} has no files of the split {split!r}, only of {sorted(files)}'
            )
        return files[split]

    @classmethod
    def records(
        cls, folder: epath.PathLike, split: str
    ) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        """The plain records of a split, each with its id; a BadRecord in the place of one that is none.

        An image is a path or, where it lies within a table, its bytes.

        Raises:
            UserError: there is no such split, or a file is not in the published layout.
        """
        for file in cls.split_files(folder, split):
            for place, row in rows(file, cls.columns_of(file), cls.optional, cls.name):
                yield from cls._of_row(row, place, file)

    @classmethod
    def columns_of(cls, file: epath.Path) -> tuple[str, ...]:
        """The columns that every row of a file has: `columns`, unless a set has several layouts."""
        return cls.columns

    @classmethod
    def _of_row(
        cls, row: Row | BadRecord, place: str, file: epath.Path
    ) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        if isinstance(row, BadRecord):
            yield place, row
            return
        try:
            record = cls.record(row, place, file)
        except BadRecord as error:
            yield place, error
            return
        name = str(record['id'])
        if name.isdecimal():  # other sets count as well
            name = f'{cls.name}-{name}'
        yield name, record | {'id': name}

    @classmethod
    @abc.abstractmethod
    def record(cls, row: Row, place: str, file: epath.Path) -> dict[str, Any]:
        """The plain record of a row.

        Args:
            row: with all of `columns`, and those of `optional` that the file has.
            place: of the row in its file.
            file: that the row is from; paths of images are relative to its folder.

        Raises:
            BadRecord: the row is no question.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features(),
            homepage=self.home,
            license=self.licence or None,
            disable_shuffling=True,  # the order is the published one
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if not self._folder:
            raise UserError(f'no folder given: pass folder=, with the files of {self.name}')
        return {split: self._generate_examples(split) for split in self.files(self._folder)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        total, size = 0, self.splits[split].size
        before, left_out = self.faults.count, self.left_out.count
        with Progress(f'{self.name} {split}', total=size or None, unit='record') as progress:
            for name, record in self.records(self._folder, split):
                total += 1
                example = self._example(name, record)
                if example is not None:
                    yield total, example
                progress.update(refused=str(self.faults.count - before))
        asked = total - (self.left_out.count - left_out)
        self._judge(split, asked, self.faults.count - before)

    def _example(self, name: str, record: Mapping[str, Any] | BadRecord) -> dict[str, Any] | None:
        try:
            if isinstance(record, LeftOut):
                self.left_out.add(record.kind, name, str(record))
                return None
            if isinstance(record, BadRecord):
                raise record
            question = to_question({**record, 'images': []}, '', self.name)
            if question.id in self._seen:
                raise BadRecord('duplicate id', f'another record has the id {question.id}')
            images = [image_file(image) for image in record['images']]
        except BadRecord as error:
            self.faults.add(error.kind, name, str(error))
            return None
        self._seen.add(question.id)
        return to_example(question, images)

    def _judge(self, split: str, total: int, bad: int) -> None:
        if total == bad:
            reason = 'it is empty' if not total else f'none of its {total} records can be read'
        elif bad > self._max_bad_share * total:
            allowed = f'{self._max_bad_share:.1%} (--max_bad_share)'
            reason = f'{bad} of its {total} records cannot be read, more than {allowed}'
        else:
            return
        lines = [f'{self.name}, split {split}: {reason}', *self.faults.lines()]
        if 'missing image' in self.faults.kinds and (packed := self._archives()):
            lines.append(
                f'{self._folder} holds {", ".join(packed)}: unpack what is not yet unpacked'
            )
        raise UserError('\n  '.join(lines))

    def _archives(self) -> list[str]:
        files = (path.name for path in epath.Path(self._folder).iterdir() if path.is_file())
        return sorted(name for name in files if _ARCHIVE.search(name))

    def download_and_prepare(self) -> None:
        """Writes the set, in the published order and with one batch of examples in memory.

        The inherited method gathers a split in memory, and beyond 1 GB wants TensorFlow.

        Raises:
            UserError: a file is not in the published layout, or too many records are no questions.
        """
        directory = epath.Path(self.data_dir)
        if directory.exists():
            return
        part = directory.parent.parent / f'.{self.name}.part{os.getpid()}'
        try:
            other = type(self)(data_dir=str(part))  # whose description is written there
            epath.Path(other.data_dir).mkdir(parents=True, exist_ok=True)
            writer = tfds.core.SequentialWriter(
                other.info, max_examples_per_shard=SHARD, file_format='array_record'
            )
            generators = self._split_generators(None)
            writer.initialize_splits(list(generators))
            with (epath.Path(other.data_dir) / RECORDS).open('w') as lines:
                for split, examples in generators.items():
                    for batch in _batches(example for _, example in examples):
                        writer.add_examples({split: batch})
                        lines.write(''.join(to_line(split, example) for example in batch))
            writer.close_all()
            faults = json.dumps(self.faults.kinds, ensure_ascii=False, indent=2)
            (epath.Path(other.data_dir) / REFUSED).write_text(faults)
            directory.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(other.data_dir).rename(directory)
        finally:
            if part.exists():
                part.rmtree()
        self.info.read_from_directory(str(directory))


def _batches(examples: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Examples of about 64 MB at a time: the writer notes the number of them after each batch."""
    batch, size = [], 0
    for example in examples:
        batch.append(example)
        size += sum(map(len, example['images']))
        if size > BATCH_BYTES or len(batch) >= SHARD:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
