"""Sources of questions: which ones a config names, and the sound questions of each."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from etils import epath

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data import published
from sensesearch_jax.data.faults import Faults
from sensesearch_jax.data.images import HASH
from sensesearch_jax.data.layouts import chosen_split, files_of
from sensesearch_jax.data.names import GENERATED, converted, known_names
from sensesearch_jax.data.plain_format import BadRecord, to_question
from sensesearch_jax.data.rows import rows_of
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.progress import Progress

_SIGNATURES = (
    (b'\xff\xd8\xff', 0), (b'\x89PNG', 0), (b'GIF8', 0), (b'BM', 0), (b'II*\0', 0), (b'MM\0*', 0),
    (b'WEBP', 8),
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A source as a config names it.

    Args:
        name: 'pocket', a published set, or what questions of `path` are reported as.
        path: of a file or directory, or a glob; '' where the name says it all.
        split: '' for the only one, or the usual one of the stage.
        weight: share in the mix with others; 0: as many as it has.
        limit: most questions, drawn by the seed; 0: all.
        seed: of that draw; None: the config's `data.seed`.
        category: the only one that is taken; '' for all.
    """

    name: str = ''
    path: str = ''
    split: str = ''
    weight: float = 0.0
    limit: int = 0
    seed: int | None = None
    category: str = ''

    @property
    def shown(self) -> str:
        """The source in messages."""
        return self.path or self.name

    @property
    def label(self) -> str:
        """The name under which its questions are reported: its own, or the file's or directory's."""
        file = epath.Path(self.path.rstrip('/')).name.partition('.')[0]
        return self.name or file.strip('*?[]-_') or 'data'


def parse_sources(field_name: str, value: Any) -> list[Source]:
    """The sources of a config's field.

    Args:
        field_name: as typed, such as data.rl.
        value: a text, names or paths with commas between and @SPLIT behind where wanted; or a list
            of such texts and of objects with the fields of `Source`.

    Raises:
        UserError: it names no source, or one that cannot be.
    """
    items: Sequence[Any] = _split_text(value) if isinstance(value, str) else value
    if isinstance(items, Mapping) or hasattr(items, 'to_dict'):
        items = [items]
    if not isinstance(items, list | tuple) or not items:
        raise UserError(
            f"{field_name} is {value!r}; name a source, as in 'my.jsonl' or 'pocket@test'."
        )
    found = []
    for item in items:
        if isinstance(item, str):
            found += [_of_text(text) for text in _split_text(item)]
        else:
            found.append(_of_object(field_name, item))
    for source in found:
        _check(field_name, source)
    weighted = [source for source in found if source.weight]
    if weighted and len(weighted) < len(found):
        raise UserError(
            f'{field_name}: some sources have a weight and some have none; give all or none.'
        )
    return found


def _split_text(text: str) -> list[str]:
    whole = re.sub(r'@[\w.-]+$', '', text)
    if os.path.exists(whole):  # a path with a comma
        return [text]
    return [part.strip() for part in text.split(',') if part.strip()]


def _of_text(text: str) -> Source:
    match = re.fullmatch(r'(.+)@([\w.-]+)', text)
    place, split = (match.group(1), match.group(2)) if match else (text, '')
    return (
        Source(name=place, split=split)
        if place in known_names()
        else Source(path=place, split=split)
    )


def _of_object(field_name: str, item: Any) -> Source:
    given = item.to_dict() if hasattr(item, 'to_dict') else item
    if not isinstance(given, Mapping):
        raise UserError(f'{field_name} has {item!r}; give texts, or objects with a name or a path.')
    kinds = {f.name: f.type for f in fields(Source)}
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise UserError(f'{field_name} has a source with {unknown}; fields are {list(kinds)}.')
    for name, value in given.items():
        wanted = {'weight': int | float, 'limit': int, 'seed': int | None}.get(name, str)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise UserError(f'{field_name} has a source whose {name} is {value!r}.')
    return Source(**given)


def _check(field_name: str, source: Source) -> None:
    """Whether there is such a source, as far as can be told without reading it."""
    if not source.path and source.name not in known_names():
        raise UserError(
            f'{field_name}: there is no source {source.name!r}; give the path of yours, or one of '
            f'{", ".join(known_names())}.'
        )
    if not 0 <= source.weight < float('inf'):
        raise UserError(
            f'{field_name}: the weight of {source.shown} is {source.weight}; give 0 or more.'
        )
    if source.limit < 0:
        raise UserError(
            f'{field_name}: the limit of {source.shown} is {source.limit}; give 0 (all) or more.'
        )


@dataclass
class Found:
    """The sound questions of a source, and what is wrong with its other records.

    Args:
        questions: in the source's order.
        faults: of its other records.
    """

    questions: list[Question] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)


def read_source(path: str, split: str, name: str = '', folder: str = '', usual: str = '') -> Found:
    """All questions of a source.

    Args:
        path: a JSONL, JSON, Parquet or Arrow file, a glob of such files, a directory of them as the
            Hub lays them out or `datasets.save_to_disk` leaves it, a tensorflow-datasets directory,
            or the name of a published set.
        split: '' for the only one, or `usual`.
        name: of the source, for questions that name none; the path's own by default.
        folder: where converted published sets are; '' is tensorflow-datasets' own.
        usual: the split that is taken where there are several; '' for none.

    Raises:
        UserError: there is no such source or split, or it cannot be read as a whole.
    """
    if path in published.NAMES:
        name, path = name or path, converted(path, folder)
    name = name or Source(path=path).label
    if '://' not in path:  # a run may go on from another folder
        path = os.path.abspath(path)
    files = chosen_split(path, files_of(path), split, usual)
    found, seen = Found(), set()
    with Progress(f'read {name}', None, unit='record') as bar:
        for file in files:
            for place, record in rows_of(file):
                _add(found, seen, place, record, file.path.parent, name)
                bar.update()
    return found


def _add(
    found: Found,
    seen: set[str],
    place: str,
    record: Mapping[str, Any] | BadRecord,
    folder: epath.Path,
    name: str,
) -> None:
    """Takes in one record.

    Args:
        found: gets the question or the fault.
        seen: ids so far.
        place: of the record in its file.
        record: a plain one, or why it is none.
        folder: relative image paths start here.
        name: of the source.
    """
    try:
        if isinstance(record, BadRecord):
            raise record
        place = str(record.get('id') or place)
        question = to_question(record, folder, name)
        if question.id in seen:
            raise BadRecord('duplicate id', 'another record has the same id')
        for image in question.images:
            _check_image(image)
    except BadRecord as error:
        found.faults.add(error.kind, place, f'{place}: {error}')
        return
    seen.add(question.id)
    found.questions.append(question)


def _check_image(reference: str) -> None:
    """Whether there is an image file, by its first bytes; places within files are not read."""
    if reference.startswith(HASH):
        return
    if '://' in reference:
        file, _, where = reference.partition('#')
        if not where and epath.Path(file).name not in _names_in(str(epath.Path(file).parent)):
            raise BadRecord('missing image', f'there is no image file {reference}')
        return
    try:
        with open(reference, 'rb') as opened:
            start = opened.read(16)
    except FileNotFoundError:
        if '#' not in reference:
            raise BadRecord('missing image', f'there is no image file {reference}') from None
        return
    except OSError as error:
        raise BadRecord('missing image', f'{reference} cannot be read: {error.strerror}') from None
    if not any(start[at : at + len(mark)] == mark for mark, at in _SIGNATURES):
        raise BadRecord('corrupt image', f'{reference} is no image file')


@functools.lru_cache(maxsize=256)
def _names_in(folder: str) -> frozenset[str]:
    """Names in a folder of an object store, asked for once."""
    path = epath.Path(folder)
    return frozenset(entry.name for entry in path.iterdir()) if path.exists() else frozenset()


def check_source(source: Source, folder: str, usual: str) -> None:
    """Whether a source that is read is there, with its split.

    Args:
        source: as a config names it.
        folder: where converted published sets are; '' is tensorflow-datasets' own.
        usual: the split that is taken where there are several.

    Raises:
        UserError: it is not.
    """
    path = source.path or converted(source.name, folder)
    chosen_split(path, files_of(path), source.split, usual)


def is_generated(source: Source) -> bool:
    """Whether the questions are made and not read."""
    return not source.path and source.name in GENERATED
