"""The scripted expert's thoughts, by situation.

There is one way of saying each: a small policy learns from a thousand trajectories what to do, and not
also how to vary its words. The first thought says again what is asked for, and a query repeats the words of
the thought before it: those it can copy.
"""

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.pocket.world.question_templates import PLACES, SEEN_WORDS

GOAL = 'I want the {field} of the {thing}{place}. '
GOAL_COUNT = 'I count the {thing}s. '
FIRST_CROP = 'It is small here, so I crop it.'
CROP_AGAIN = 'The {thing} is cut off here. I take a better box.'
CROP_CLOSER = 'The crop is too loose. I zoom in on the {thing}.'
SEARCH_CROP = 'The {thing} is in the crop. I search for its name.'
SEARCH_PICTURE = 'It fills the picture. I search for its name.'
NOT_FOUND = 'This is not it. I zoom in on the {thing}.'
NOTHING_HERE = 'This is not it. I take a better box.'
LOOK_UP = 'I look up {query}.'
ANOTHER_QUERY = 'That is not in these passages. I look up {query}.'
# A quote of the passage that begins with the label: to go on with a text that has been begun is copying,
# which a small policy does best.
READ = 'I read the {field}: {quote}.'
# Of options the one that is seen is answered in its own words, which the judge takes as well as its
# letter: a policy that copies looks for what stands behind a word, and a letter stands before its option.
SEE = 'It is {text}.'
GIVE_UP = 'The tools do not show it, so I cannot tell.'


def say(template: str, question: Question, **filled: str) -> str:
    """A thought about a question, such as 'I want the capital of the flag farthest left. '.

    Args:
        template: one of this module's, or several.
        question: gives {thing} ('flag', 'painting' or 'object'), {place} and {field}.
        filled: what else the template leaves open.
    """
    asked = question.text.lower()
    thing = next((name for name in ('flag', 'painting') if name in asked), 'object')
    place = next((f' {words}' for words in PLACES if words in question.text), '')
    return template.format(thing=thing, place=place, field=field(question), **filled)


def field(question: Question) -> str:
    """The fact asked for, in the expert's words."""
    name = question.truth.get('sought') or question.truth.get('field', 'fact')
    return SEEN_WORDS.get(name, name)
