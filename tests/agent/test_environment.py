"""The environment: what each action gets to see, whose fault a failure is, and no call for a
mistake."""

import pytest

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, RELEASED, TOOLS
from sensesearch_jax.agent.tool_client import Match, Passage, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Turn

PICTURE, CROP, THUMB = ImageRef('a', 3840, 2160), ImageRef('b', 400, 300), ImageRef('c', 64, 48)


class FakeClient:
    """Answers every call with what the test put in, and notes the calls."""

    def __init__(self, failure=None):
        self.calls, self.failure = [], failure

    def _note(self, name, *args, value):
        self.calls.append((name, *args))
        return self.failure or value

    def text_search(self, query, top_k=5):
        passages = [
            Passage('Chad', 'Capital:\n N’Djamena', 2.0),
            Passage('Mali', 'Capital: Bamako', 1.0),
        ]
        return self._note('text_search', query, top_k, value=passages)

    def image_search(self, sha256, top_k=5):
        matches = [Match('Flag of Chad', THUMB, 0.9), Match('Flag of Romania', THUMB, 0.8)]
        return self._note('image_search', sha256, top_k, value=matches)

    def crop(self, sha256, bbox):
        return self._note('crop', sha256, tuple(bbox), value=CROP)


def environment_of(client, protocol=DEFAULT, tools=TOOLS, limits=ObservationLimits()):
    return Environment(client, protocol, tools, limits)


def test_text_search_is_numbered_and_limited():
    client = FakeClient()
    seen = environment_of(client, limits=ObservationLimits(text_results=1)).execute(
        TextSearch('capital'), [PICTURE]
    )
    assert seen.parts == ('1. Chad: Capital: N’Djamena',) and seen.ok and seen.kind == 'text_search'
    assert client.calls == [('text_search', 'capital', 1)]


def test_long_text_is_cut_and_says_so():
    limits = ObservationLimits(max_chars=20, passage_chars=8)
    (text,) = (
        environment_of(FakeClient(), limits=limits).execute(TextSearch('capital'), [PICTURE]).parts
    )
    assert text == '1. Chad: Capital:…\n2… [cut at 20 characters]'
    with pytest.raises(ValueError, match='at least 1'):
        ObservationLimits(max_chars=0)


def test_image_search_shows_titles_and_thumbnails():
    client = FakeClient()
    seen = environment_of(client).execute(ImageSearch(2), [PICTURE, CROP])
    assert (
        seen.parts == ('1. Flag of Chad', THUMB, '\n2. Flag of Romania', THUMB)
        and not seen.new_images
    )
    assert client.calls == [('image_search', 'b', 5)]
    seen = environment_of(client, limits=ObservationLimits(thumbnails=False)).execute(
        ImageSearch(), [PICTURE]
    )
    assert seen.parts == ('1. Flag of Chad\n2. Flag of Romania',)


def test_a_crop_becomes_the_next_image():
    client = FakeClient()
    seen = environment_of(client).execute(ImageCrop((0.0, 0.1, 0.5, 1.0)), [PICTURE])
    assert (
        seen.parts == ('Image 2:', CROP)
        and seen.new_images == (CROP,)
        and seen.kind == 'image_crop'
    )
    assert client.calls == [('crop', 'a', (0.0, 0.1, 0.5, 1.0))]
    assert (
        environment_of(client, RELEASED)
        .execute(ImageCrop((0.0, 0.1, 0.5, 1.0)), [PICTURE])
        .parts[0]
        == 'Image 1:'
    )
    searched = Observation(('1. Flag of Chad', THUMB), True, 'image_search')
    turns = [Turn([], [], '', Answer(''), o, []) for o in (searched, seen, None)]
    assert indexed_images([PICTURE], turns) == [PICTURE, CROP]  # a thumbnail has no number


@pytest.mark.parametrize(
    'action, said',
    [
        (TextSearch('  '), 'empty'),
        (ImageSearch(0), 'Images: 1 to 2'),
        (ImageSearch(3), 'No image 3'),
        (ImageSearch(10**3000), 'No image 1000'),
        (ImageCrop((0.0, 0.0, 1.0, 1.0), -1), 'No image -1'),
        (ImageCrop((0.5, 0.0, 0.5, 1.0)), 'Bad box'),
        (ImageCrop((0.0, 0.0, 1.1, 1.0)), 'Bad box'),
        (ImageCrop((0.0, -0.1, 1.0, 1.0)), 'Bad box'),
        (ImageCrop((0.0, float('nan'), 1.0, 1.0)), 'Bad box'),
    ],
)
def test_mistakes_are_told_without_a_call(action, said):
    client = FakeClient()
    seen = environment_of(client).execute(action, [PICTURE, CROP])
    assert (
        not seen.ok
        and seen.kind == 'tool_error'
        and not seen.infra_failed
        and said in seen.parts[0]
    )
    assert not client.calls and len(seen.parts[0]) < 100


def test_format_errors_are_told_and_answers_end():
    environment = environment_of(FakeClient(), tools=('text_search',))
    assert environment.execute(Answer('a'), [PICTURE]) is None
    error = environment.parse(
        '<tool_call>{"name": "image_crop", "arguments": {}}</tool_call>'
    ).action
    assert isinstance(error, FormatError)
    assert environment.execute(error, [PICTURE]) == Observation(
        (error.message,), False, 'format_error'
    )
    assert 'image_crop' not in environment.system_prompt


@pytest.mark.parametrize(
    'action', [TextSearch('a'), ImageSearch(), ImageCrop((0.0, 0.0, 1.0, 1.0))]
)
@pytest.mark.parametrize('kind', ['caller', 'refused', 'timeout', 'unavailable'])
def test_failures_are_values(action, kind):
    seen = environment_of(FakeClient(ToolFailure(kind, 'too small'))).execute(action, [PICTURE])
    assert not seen.ok and seen.kind == 'tool_error' and not seen.new_images
    assert seen.infra_failed == (kind != 'caller')
    assert (seen.parts[0] == 'too small') == (kind == 'caller')


def test_a_question_without_a_picture_and_with_two():
    client = FakeClient()
    environment = environment_of(client)
    assert environment.execute(ImageSearch(1), []).parts == ('No images.',)
    two = [PICTURE, THUMB]
    assert indexed_images(two, []) == two
    environment.execute(ImageCrop((0.0, 0.1, 0.5, 1.0), 2), two)
    assert client.calls == [('crop', THUMB.sha256, (0.0, 0.1, 0.5, 1.0))]
