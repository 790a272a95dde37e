"""Direct and RAG: what is in the prompt, and what counts as the answer without tags."""

import pytest
from evaluated import PICTURE, answered, question, turn

from sensesearch_jax.agent.actions import FormatError
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import NO_RESULTS, ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.tool_client import Match, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, SampleState
from sensesearch_jax.evaluation.modes import mode_environment, mode_scorer, untagged_answer
from sensesearch_jax.rewards.scorer import Scorer

THUMBNAIL = ImageRef('b' * 64, 56, 56)


class Client:
    """Searches by image; `found` is what it says."""

    def __init__(self, found):
        self.found, self.asked = found, []

    def image_search(self, sha256, top_k):
        self.asked.append((sha256, top_k))
        return self.found


def environment(mode, found=()):
    client = Client(list(found) if isinstance(found, tuple) else found)
    return mode_environment(mode, Environment(client, DEFAULT, TOOLS, ObservationLimits(5, 3)))


def test_an_agent_keeps_its_environment_and_the_others_have_no_tools():
    assert (
        environment('agent').tools == TOOLS and 'text_search' in environment('agent').system_prompt
    )
    for mode in ('direct', 'rag'):
        assert environment(mode).tools == () and 'search' not in environment(mode).system_prompt


def test_rag_puts_what_the_search_found_between_image_and_question():
    rag = environment('rag', (Match('Eiffel Tower', THUMBNAIL, 1.0),))
    parts = rag.user_parts(question(0), [PICTURE])
    assert parts == [
        PICTURE,
        '\nImage search for image:\n',
        '1. Eiffel Tower',
        THUMBNAIL,
        '\n\nWhich city is this?',
    ]
    assert rag.client.asked == [(PICTURE.sha256, 3)]
    assert environment('direct').user_parts(question(0), [PICTURE]) == [
        PICTURE,
        'Which city is this?',
    ]


def test_rag_says_that_nothing_was_found_and_searches_each_image():
    rag = environment('rag')
    parts = rag.user_parts(question(0), [PICTURE, THUMBNAIL])
    texts = [part for part in parts if isinstance(part, str)]
    assert texts.count(NO_RESULTS) == 2 and len(rag.client.asked) == 2
    assert '\nImage search for image 2:\n' in texts
    assert [p for p in parts if isinstance(p, ImageRef)] == [PICTURE, THUMBNAIL]  # own ones first
    assert parts[-1].strip() == 'Which city is this?'


def test_a_search_that_fails_is_no_prompt_without_results():
    failure = ToolFailure('unavailable', 'gone')
    assert environment('rag', failure).user_parts(question(0), [PICTURE]) is failure


@pytest.mark.parametrize(
    'text, answer',
    [
        ('Paris', 'Paris'),
        ('<think>It has a tower.</think>\nParis', 'Paris'),
        ('  Paris. \n', 'Paris.'),
        ('<think>It has a tower', None),
        ('<think>It has a tower.</think>', None),
        ('', None),
    ],
)
def test_a_reply_without_tags_is_the_answer(text, answer):
    assert untagged_answer(text, DEFAULT) == answer


def scored(mode, said, text):
    scorer = mode_scorer(mode, Scorer(DEFAULT, None, {}, 0.5, 0.0))
    if said is None:
        last = turn(FormatError('no_action', 'No action.'))
        last.text = text
        trajectory = answered(question(0), None, turns=[last], state=SampleState.TRUNCATED)
    else:
        trajectory = answered(question(0), said)
    return scorer.score(trajectory)


def test_untagged_answers_count_in_one_turn_and_not_for_an_agent():
    assert scored('direct', None, 'Paris').reward['accuracy'] == 1
    assert scored('direct', None, 'Paris').state is SampleState.OK
    assert scored('direct', None, 'Paris').reward['format'] == 0
    assert scored('agent', None, 'Paris').reward['accuracy'] == 0
    assert scored('agent', None, 'Paris').state is SampleState.TRUNCATED
    assert scored('rag', 'Paris', '').reward['accuracy'] == 1
