"""Evidence: the share of the facts and views behind an answer that a trajectory's tools showed.

As a reward, evidence tells trajectories apart that all end with a wrong answer: the one that
cropped the right object, or searched for it, from the one that did not. Rewards for the results of
a search are known from text search agents; ours counts images too.
"""

import re
from collections.abc import Iterable, Sequence

from sensesearch_jax.agent.trajectory import Observation, Question, Trajectory, Turn
from sensesearch_jax.rewards.crop_geometry import WHOLE, crop_regions, fits, loose_box
from tools_server.answer_matching.characters import clean
from tools_server.answer_matching.gold import gold_letters, gold_texts
from tools_server.answer_matching.words import normalise, without_article


def observed_text(observation: Observation) -> str:
    """The observation's text without its images."""
    return ''.join(part for part in observation.parts if isinstance(part, str))


def seen_text(turns: Iterable[Turn], kinds: Iterable[str] = ('text_search', 'image_search')) -> str:
    """The text of all results of the given kinds in `turns`."""
    wanted = set(kinds)
    observations = (turn.observation for turn in turns if turn.observation is not None)
    return '\n'.join(observed_text(o) for o in observations if o.ok and o.kind in wanted)


def contains(text: str, phrase: str) -> bool:
    """Whether `phrase`, without a leading article, is in `text` as whole words, both normalised."""
    phrase = normalise(without_article(clean(phrase)))
    return bool(phrase) and f' {phrase} ' in f' {normalise(text)} '


def content_words(title: str) -> list[str]:
    """The words of a title by which a text can be known to be about it."""
    return [word for word in normalise(title).split() if len(word) > 3 and word != 'flag']


def stating(text: str, fact: str, title: str = '') -> list[str]:
    """The lines (results) of `text` that hold `fact` and are about `title`.

    The fact alone would not do: many countries pay in euros.

    Args:
        text: results of searches, one a line.
        fact: a word or phrase; see `contains`.
        title: name of the object; any content word of it will do. '' accepts every line.
    """
    names = content_words(title)
    return [
        line
        for line in text.split('\n')
        if contains(line, fact) and (not names or any(contains(line, name) for name in names))
    ]


def states(text: str, fact: str, title: str = '') -> bool:
    """Whether a line of `text` holds `fact` and is about `title`.

    Args:
        text, fact, title: as of `stating`.
    """
    return bool(stating(text, fact, title))


def quoted(lines: Sequence[str], fact: str, field: str) -> str:
    """The words that state a fact, from their label on: 'death year, died in: 1476'.

    Args:
        lines: results of a text search, whose labelled texts are parted by semicolons.
        fact: as they state it.
        field: of the question; of several places the one whose label has most of its words is taken.

    Returns: the fact alone where no label stands before it.
    """
    quotes = []
    for clause in '; '.join(lines).split('; '):
        head, _, said = clause.rpartition(': ')
        if head and (stated := re.search(rf'.*?(?<!\w){re.escape(fact)}(?!\w|[.,]\d)', said)):
            quotes.append(f'{head.rpartition(": ")[2]}: {stated[0]}')
    words = set(field.split())
    return max(quotes, key=lambda quote: len(words & set(re.findall(r'\w+', quote))), default=fact)


def asks_fact(question: Question) -> bool:
    """Whether the question's truth has a query: its answer is to be looked up."""
    return bool(question.truth.get('query'))


def right_texts(question: Question) -> tuple[str, ...]:
    """The accepted answers as a text states them: of multiple choice the options, not letters."""
    return gold_texts(question.answers, question.choices)


def answer_text(question: Question, fact: str) -> str:
    """Written form of a right answer: the letter for multiple choice, else the fact."""
    return min(gold_letters(question.answers, question.choices)) if question.choices else fact


def evidence(trajectory: Trajectory) -> float:
    """Share in [0, 1] of the expected evidence that tools showed: a close view of the object, its
    name, the answer.

    The close view is expected where the object does not fill the picture; the name where the
    question's truth has it, and only as an image search's first result. Questions whose truth has
    no query expect the view alone, since a text might hold their answers by chance.
    """
    question = trajectory.question
    shown = (
        [shown_near(trajectory)] if loose_box(question.truth.get('box') or WHOLE) != WHOLE else []
    )
    if asks_fact(question):
        shown.append(fact_shown(trajectory))
        if question.truth.get('title'):
            shown.append(object_named(trajectory))
    return sum(shown) / len(shown) if shown else 0.0


def shown_near(trajectory: Trajectory) -> bool:
    """Whether a crop showed all of the object asked for and was not too loose around it."""
    box = trajectory.question.truth['box']
    own = len(trajectory.question.images)
    regions = crop_regions(trajectory.turns, own)
    return any(fits(region.box, box) for region in regions[own:] if region.image == 1)


def object_named(trajectory: Trajectory) -> bool:
    """Whether an image search named the object first."""
    searches = (
        t.observation
        for t in trajectory.turns
        if t.observation and t.observation.kind == 'image_search'
    )
    return any(
        contains(observed_text(o).split('\n', 1)[0], trajectory.question.truth['title'])
        for o in searches
    )


def fact_shown(trajectory: Trajectory) -> bool:
    """Whether a text search showed the right answer, about the object where its title is known."""
    question, read = trajectory.question, seen_text(trajectory.turns, ['text_search'])
    return any(
        states(read, text, question.truth.get('title', '')) for text in right_texts(question)
    )
