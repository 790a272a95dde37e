"""Wording of questions: the facts asked for, their phrasings and the text query that finds
each.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A fact a question can ask for.

    `phrasings` have one gap for the thing asked about; `query` are words of the passages that state
    it; no answer may be right in more than `cap` of the field's questions, so that guessing does
    not pay; `alias` is the name that a text search finds it by, where its own will not do.
    """

    name: str
    phrasings: tuple[str, ...]
    query: str
    cap: float = 0.12
    alias: str = ''

    @property
    def sought(self) -> str:
        """The fact's name in thoughts and queries."""
        return self.alias or self.name


FLAG_FIELDS = (
    Field(
        'capital',
        (
            'What is the capital of {}?', 'Which city is the capital of {}?',
            'Name the capital of {}.',
        ),
        'capital',
    ),
    Field(
        'currency',
        (
            'What is the currency of {}?', 'Which currency is used in {}?',
            'Name the currency of {}.',
        ),
        'exchange rates currency', alias='currency exchange rates',
    ),
    Field(
        'highest point',
        (
            'What is the highest point of {}?', 'Which is the highest point in {}?',
            'Name the highest point of {}.',
        ),
        'elevation highest point', alias='highest point elevation',
    ),
    Field(
        'national anthem',
        (
            'What is the title of the national anthem of {}?',
            'Which song is the national anthem of {}?', 'Name the national anthem of {}.',
        ),
        'national anthem title',
    ),
    Field(
        'independence year',
        (
            'In which year did {} become independent?', 'What is the year of independence of {}?',
            'Name the year of independence of {}.',
        ),
        'independence',
    ),
    Field(
        'internet country code',
        (
            'What is the internet country code of {}?', 'Which internet country code does {} use?',
            'Name the internet country code of {}.',
        ),
        'internet country code',
    ),
    Field(
        'coastline',
        (
            'How long is the coastline of {}?', 'What is the length of the coastline of {}?',
            'Name the length of the coastline of {}.',
        ),
        'coastline',
    ),
    Field(
        'airports',
        (
            'How many airports are there in {}?', 'What is the number of airports in {}?',
            'Name the number of airports in {}.',
        ),
        'airports',
    ),
    Field(
        'aircraft prefix',
        (
            'What is the aircraft registration prefix of {}?',
            'Which prefix do aircraft registered in {} have?',
            'Name the aircraft registration prefix of {}.',
        ),
        'civil aircraft registration prefix',
    ),
)  # fmt: skip
PAINTING_FIELDS = (
    Field(
        'accession year',
        (
            'In which year was {} acquired?', 'What is the accession year of {}?',
            'Name the accession year of {}.',
        ),
        'collection accession year',
    ),
    Field(
        'accession number',
        (
            'What is the accession number of {}?', 'Which accession number does {} have?',
            'Name the accession number of {}.',
        ),
        'collection accession number',
    ),
    Field(
        'artist nationality',
        (
            'What is the nationality of the artist of {}?',
            'Which nationality did the artist of {} have?',
            'Name the nationality of the artist of {}.',
        ),
        'artist nationality', 0.3,
    ),
    Field(
        'artist birth year',
        (
            'In which year was the artist of {} born?',
            'What is the birth year of the artist of {}?',
            'Name the birth year of the artist of {}.',
        ),
        'artist birth year born',
    ),
    Field(
        'artist death year',
        (
            'In which year did the artist of {} die?',
            'What is the death year of the artist of {}?',
            'Name the death year of the artist of {}.',
        ),
        'artist death year died',
    ),
    Field(
        'year made',
        (
            'In which year was {} made?', 'What is the year of {}?',
            'Name the year in which {} was made.',
        ),
        'work year date made',
    ),
    Field(
        'medium',
        ('What is the medium of {}?', 'Which medium was used for {}?', 'Name the medium of {}.'),
        'work medium', 0.3,
    ),
)  # fmt: skip
FACT_FIELDS = {'flag': FLAG_FIELDS, 'painting': PAINTING_FIELDS}

COLOUR = Field(
    'colour',
    (
        'Which colour covers most of {}?',
        'What is the main colour of {}?',
        'Name the colour that covers most of {}.',
    ),
    '',
    0.4,
)
COLOUR_CHOICE = Field('colour choice', COLOUR.phrasings, '', 0.3)
COUNT = Field(
    'count',
    (
        'How many {}s are in the picture?',
        'Count the {}s in the picture.',
        'What is the number of {}s in the picture?',
    ),
    '',
    0.2,
)
TALLER = Field(
    'taller than wide',
    (
        'Is {} taller than wide?',
        'Is the height of {} greater than its width?',
        'Does {} measure more in height than in width?',
    ),
    '',
    0.55,
)

# The word for what is seen, where a field's name is not it.
SEEN_WORDS = {TALLER.name: 'shape', COLOUR_CHOICE.name: 'colour'}

# Words that single an object out -> (axis, sign): the object whose centre is smallest along sign * axis.
PLACES = {
    'farthest left': (0, 1),
    'farthest right': (0, -1),
    'nearest the top': (1, 1),
    'nearest the bottom': (1, -1),
}
ONLY = 'in the picture'


def thing(kind: str, noun: str, place: str) -> str:
    """The subject of a question: 'the country whose flag is farthest left', 'the painting in the
    picture'.

    Args:
        kind: 'flag' or 'painting'.
        noun: of a flag's owner: 'country' or 'territory'.
        place: words that single the object out.
    """
    if kind == 'painting':
        return f'the painting {place}'
    return f'the {noun} whose flag is {place}'


def shown(noun: str, kind: str) -> str:
    """The same when the thing fills the picture."""
    return 'this painting' if kind == 'painting' else f'the {noun} with this flag'
