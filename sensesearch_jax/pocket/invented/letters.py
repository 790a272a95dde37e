"""Letter models: words that sound like a language, from how letters follow each other in names of
training entities and their countries.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.held_out import HeldOut

ORDER = 2  # letters that the next one depends on; with three, most words are those it was made of
LENGTHS = (4, 12)

# Language -> training countries whose divisions and cities are called in it.
COUNTRIES = {
    'arabic': 'Iraq, Saudi Arabia, Morocco, Libya, Tunisia, Kuwait, Qatar, Syria, Lebanon',
    'dutch': 'Suriname, Belgium, Sint Maarten',
    'english': 'Australia, Canada, New Zealand, United States, Jamaica, Barbados, The Bahamas',
    'french': 'France, French Polynesia, Gabon, Benin, Togo',
    'german': 'Germany, Austria, Switzerland, Liechtenstein',
    'italian': 'Italy, Vatican City',
    'nordic': 'Denmark, Finland, Norway, Sweden, Faroe Islands, Greenland',
    'pacific': 'Tonga, Kiribati, Nauru, Marshall Islands, Cook Islands, Papua New Guinea',
    'slavic': 'Bulgaria, Poland, Russia, Serbia, Slovakia, Ukraine, North Macedonia',
    'southeast asian': 'Cambodia, Laos, Malaysia, Philippines, Vietnam, Brunei',
    'spanish': 'Argentina, Bolivia, Chile, Colombia, Cuba, Mexico, Spain, Venezuela, Uruguay',
    'bantu': 'Botswana, Lesotho, Malawi, Namibia, Tanzania, South Africa',
    'turkic': 'Azerbaijan, Kazakhstan, Turkmenistan, Uzbekistan, Mongolia',
}
# Language -> nationalities of painters who are called in it.
PAINTERS = {
    'dutch': 'Dutch, Flemish, Netherlandish',
    'english': 'British',
    'french': 'French',
    'german': 'German, Austrian',
    'italian': 'Italian',
    'spanish': 'Spanish',
}
TOPICS = ('Administrative divisions', 'Major urban areas - population', 'Capital', 'Elevation')
# English words that stand with a capital among those names.
NOT_NAMES = frozenset(
    """administrative divisions note city province district region capital elevation major urban areas
    population name time geographic coordinates difference standard washington north south east west
    northern southern eastern western central island islands parish state states territory the and
    mount point saint ocean sea daylight saving utc sunday march october november april september
    atlantic pacific first second department municipality republic federal national metropolitan
    town county river gulf lake capital""".split()
)


class Letters:
    """A letter model of one language.

    Args:
        words: that it is to sound like and never says.
    """

    def __init__(self, words: Iterable[str]):
        self._known = {word.lower() for word in words}
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for word in sorted(self._known):
            text = '^' * ORDER + word + '$'
            for i in range(ORDER, len(text)):
                counts[text[i - ORDER : i]][text[i]] += 1
        self._next = {
            before: (list(after), np.cumsum(list(after.values())) / sum(after.values()))
            for before, after in counts.items()
        }

    def word(self, rng: np.random.Generator) -> str:
        """A word of four to twelve letters, its first one a capital."""
        while True:
            text = '^' * ORDER
            while not text.endswith('$') and len(text) <= ORDER + LENGTHS[1] + 1:
                letters, shares = self._next[text[-ORDER:]]
                text += letters[int(np.searchsorted(shares, rng.random()))]
            word = text.strip('^$')
            fits = text.endswith('$') and LENGTHS[0] <= len(word) <= LENGTHS[1]
            if fits and word not in self._known:
                return word[0].upper() + word[1:]


def letter_models(files: PocketFiles, held: HeldOut) -> Mapping[str, Letters]:
    """A model for every language, from texts and painters of training entities alone."""
    words: dict[str, list[str]] = {language: [] for language in COUNTRIES}
    of_country, of_painter = (
        {name: language for language, names in table.items() for name in names.split(', ')}
        for table in (COUNTRIES, PAINTERS)
    )
    for passage in files.passages.values():
        country, _, topic = passage['title'].partition(' — ')
        if country in of_country and topic.split(': ')[-1] in TOPICS and held.may_show(passage):
            words[of_country[country]] += _names(passage['text'])
    for entity in files.select('painting', 'train'):
        if language := of_painter.get(entity.facts.get('artist nationality', '')):
            words[language] += _names(entity.title.rsplit(', by ', 1)[-1]) * 3
    return {language: Letters(found) for language, found in words.items()}


def _names(text: str) -> list[str]:
    found = re.findall(r"(?<![\w'’])[A-ZÀ-Þ][a-zà-ÿāēīōū]{2,}(?![\w'’])", text)
    return [word for word in found if word.lower() not in NOT_NAMES]
