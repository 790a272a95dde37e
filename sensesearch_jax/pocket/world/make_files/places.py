"""Passages and facts of places, from The World Factbook."""

import json
import re
import zipfile
from pathlib import Path

from sensesearch_jax.pocket.world.make_files.texts import clean, slug

# Factbook names that are missing, cut off or unusual, by the Factbook's own file name.
PLACE_NAMES = {
    'ae': 'United Arab Emirates', 'ct': 'Central African Republic', 'fm': 'Micronesia',
    'dr': 'Dominican Republic', 'io': 'British Indian Ocean Territory', 'sh': 'Saint Helena',
    'vt': 'Vatican City', 'we': 'West Bank', 'cg': 'Democratic Republic of the Congo',
    'cf': 'Republic of the Congo', 'ee': 'European Union', 'xx': 'World', 'gz': 'Gaza Strip',
    'sv': 'Svalbard', 'um': 'United States Pacific Island Wildlife Refuges',
    'vq': 'US Virgin Islands',
}  # fmt: skip


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
    """One passage per section and topic of a place; a topic that repeats another is left out."""
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

    Args:
        code: the Factbook's.
        place: its record.
        texts: passage id -> text.
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
