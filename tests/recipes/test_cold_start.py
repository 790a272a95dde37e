"""Cold start: the scripted expert against tools that answer, and the checks of what it writes."""

import dataclasses
import random

import pytest
from answering_world import (
    BOX,
    CHOICE,
    LOOK,
    LOOSE,
    ONLY,
    SEARCH,
    ScriptedExpert,
    environment,
    kinds,
    scorer_of,
    validate,
)

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT, RELEASED, TOOLS
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Observation, Question, SampleState, Turn
from sensesearch_jax.cold_start import validation
from sensesearch_jax.cold_start.review import Review
from sensesearch_jax.cold_start.synthesis import synthesise
from sensesearch_jax.pocket.expert.scripted import UNKNOWN
from sensesearch_jax.rewards.crop_geometry import (
    WHOLE,
    absolute,
    crop_regions,
    fits,
    holds,
    loose_box,
    relative,
)
from sensesearch_jax.rewards.evidence import quoted, states


def frames(trajectory):
    return [region.box for region in crop_regions(trajectory.turns, 1)]


def test_frames_nest():
    box = absolute((0.5, 0.5, 1.0, 1.0), (0.2, 0.2, 0.6, 0.6))
    assert box == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert relative(box, (0.2, 0.2, 0.6, 0.6)) == pytest.approx((0.5, 0.5, 1.0, 1.0))
    assert (
        fits(loose_box(BOX), BOX) and not fits(WHOLE, BOX) and not fits((0.43, 0.3, 0.5, 0.4), BOX)
    )
    seen = Observation(('Image 2:',), True, 'image_crop', (ImageRef('b', 1, 1),))
    turns = [
        Turn([], [], '', ImageCrop((0.2, 0.2, 0.6, 0.6)), seen, []),
        Turn(
            [],
            [],
            '',
            ImageCrop((0.0, 0.0, 2.0, 1.0)),
            Observation(('bad',), False, 'tool_error'),
            [],
        ),
        Turn([], [], '', ImageCrop((0.5, 0.5, 1.0, 1.0), 2), seen, []),
    ]
    assert [region.box for region in crop_regions(turns, 1)] == [
        WHOLE,
        pytest.approx((0.2, 0.2, 0.6, 0.6)),
        pytest.approx(box),
    ]


@pytest.mark.parametrize('question', [SEARCH, CHOICE])
def test_search_is_crop_search_look_up_answer(question):
    expert = ScriptedExpert(random.Random(0), poor_crops=0, poor_queries=0)
    whole = synthesise(question, expert, environment())
    assert kinds(whole) == [ImageCrop, ImageSearch, TextSearch, Answer]
    assert whole.turns[0].action.bbox == loose_box(BOX) and whole.turns[1].action.image_index == 2
    assert (
        whole.state is SampleState.OK
        and whole.answer == question.answers[0]
        and validate(whole) == []
    )
    assert [image.sha256 for image in whole.images[:1]] == ['whole'] and len(whole.images) == 2
    assert all(not turn.tokens and not turn.observation_tokens for turn in whole.turns)


def test_a_poor_crop_is_followed_by_a_better_one():
    for seed in range(40):
        expert = ScriptedExpert(random.Random(seed), poor_crops=1, hasty=0, poor_queries=0)
        whole = synthesise(SEARCH, expert, environment())
        first = whole.turns[0].action.bbox
        assert first != loose_box(BOX) and all(0 <= v <= 1 and round(v, 1) == v for v in first)
        assert validate(whole) == [] and fits(frames(whole)[-1], BOX)
        assert (kinds(whole)[1] is ImageCrop) == (not fits(first, BOX))


def test_a_search_of_a_poor_crop_is_followed_by_a_crop_of_the_object():
    missed = set()
    for seed in range(40):
        expert = ScriptedExpert(random.Random(seed), poor_crops=1, hasty=1, poor_queries=0)
        whole = synthesise(SEARCH, expert, environment())
        assert kinds(whole)[:2] == [ImageCrop, ImageSearch] and validate(whole) == []
        assert whole.answer == "N'Djamena" and len(set(map(str, frames(whole)))) == len(
            frames(whole)
        )
        if not holds(frames(whole)[1], BOX):
            missed.add(whole.turns[2].action)
    # what lies outside the crop is looked for in the original
    assert missed == {ImageCrop(loose_box(BOX))}


def test_a_poor_query_is_followed_by_a_better_one():
    whole = synthesise(
        SEARCH, ScriptedExpert(random.Random(0), poor_crops=0, poor_queries=1), environment()
    )
    assert [t.action.query for t in whole.turns if isinstance(t.action, TextSearch)] == [
        'the capital',
        'Chad capital',
    ]
    assert validate(whole) == []


def test_a_bad_result_is_followed_by_a_closer_crop():
    expert = ScriptedExpert(random.Random(0), poor_crops=0, poor_queries=0)
    whole = synthesise(SEARCH, expert, environment(reach=0.15))
    assert kinds(whole) == [ImageCrop, ImageSearch, ImageCrop, ImageSearch, TextSearch, Answer]
    assert (
        whole.turns[2].action.image_index == 2
        and whole.turns[3].action.image_index == 3
        and validate(whole) == []
    )
    second = synthesise(SEARCH, expert, environment(first_rank=2))
    assert (
        kinds(second)[:4] == [ImageCrop, ImageSearch, ImageCrop, ImageSearch]
        and validate(second) == []
    )


def test_an_expert_that_finds_nothing_says_so_and_is_rejected():
    for question in (SEARCH, ONLY):
        whole = synthesise(
            question, ScriptedExpert(random.Random(0), poor_crops=0), environment(reach=0.0)
        )
        assert whole.answer == UNKNOWN and set(validate(whole)) == {'wrong_answer', 'unseen_answer'}


READ = (
    '1. Ada (1801) by B — Artist: Artist: nationality: French; birth year, born in: 1444; death year, died in: 1444; '
    'artist biography: French, Lyon 1444–1444 Paris',
    '2. Ada (1801) by B — Collection: Collection: year acquired, accession year: 1975; accession number: 1975.1.110',
)


@pytest.mark.parametrize(
    'fact, field, quote',
    [
        ('French', 'artist nationality', 'nationality: French'),
        ('1444', 'artist birth year', 'birth year, born in: 1444'),
        ('1444', 'artist death year', 'death year, died in: 1444'),
        ('1975', 'accession year', 'year acquired, accession year: 1975'),
        ('1975.1.110', 'accession number', 'accession number: 1975.1.110'),
        ('Lyon', 'place', 'artist biography: French, Lyon'),
        ('1801', 'year', '1801'),
    ],
)
def test_a_quote_begins_with_the_label_of_what_was_asked(fact, field, quote):
    assert quoted(READ, fact, field) == quote


def test_the_last_thought_quotes_what_was_read():
    whole = synthesise(ONLY, ScriptedExpert(random.Random(0)), environment(reach=1.0))
    thought = DEFAULT.parse(whole.turns[-1].text, TOOLS).thought
    assert thought == "I read the capital: name: N'Djamena."


def test_a_fact_about_another_object_does_not_count():
    read = '1. Mali — Economy: Currency: euros\n2. Chad — Economy: Currency: francs'
    assert states(read, 'francs', 'Flag of Chad') and not states(read, 'euros', 'Flag of Chad')
    assert states(read, 'Euros') and not states(read, 'euro')


def test_search_only_and_perception():
    whole = synthesise(
        ONLY, ScriptedExpert(random.Random(0), poor_queries=0), environment(reach=1.0, first_rank=1)
    )
    assert kinds(whole) == [ImageSearch, TextSearch, Answer] and validate(whole) == []
    shapes = set()
    for seed in range(20):
        whole = synthesise(LOOK, ScriptedExpert(random.Random(seed), poor_crops=0), environment())
        shapes.add(tuple(kinds(whole)))
        assert whole.answer == 'blue' and validate(whole) == []
    assert shapes == {(Answer,), (ImageCrop, Answer)}
    count = Question(
        'n',
        'How many flags?',
        ('map.png',),
        ('7',),
        category='perception',
        difficulty='3',
        truth={'box': [0, 0, 1, 1]},
    )
    assert kinds(synthesise(count, ScriptedExpert(random.Random(0)), environment())) == [Answer]


def test_thoughts_are_short_and_name_nothing_unseen():
    for seed in range(60):
        for question in (SEARCH, CHOICE, ONLY):
            whole = synthesise(
                question, ScriptedExpert(random.Random(seed)), environment(reach=1.0)
            )
            seen = question.text
            for turn in whole.turns:
                thought = DEFAULT.parse(turn.text, TOOLS).thought
                assert 4 <= len(thought.split()) <= 26
                assert ('Chad' not in thought or 'Chad' in seen) and (
                    'Djamena' not in thought or 'Djamena' in seen
                )
                seen += (
                    ''.join(p for p in turn.observation.parts if isinstance(p, str))
                    if turn.observation
                    else ''
                )


def test_the_same_seed_writes_the_same():
    def write():
        return synthesise(SEARCH, ScriptedExpert(random.Random(7)), environment()).turns

    def texts(turns):
        return [turn.text for turn in turns]

    assert texts(write()) == texts(write())


def test_failures_of_tools_are_states():
    broken = environment()
    broken.client.fail = ToolFailure('timeout', 'late')
    assert (
        synthesise(SEARCH, ScriptedExpert(random.Random(0)), broken).state
        is SampleState.INFRA_FAILED
    )
    broken.client.upload = environment().client.upload
    whole = synthesise(SEARCH, ScriptedExpert(random.Random(0)), broken)
    assert whole.state is SampleState.INFRA_FAILED and len(whole.turns) == 1
    assert validate(whole) == ['infra_failed']
    assert (
        synthesise(SEARCH, ScriptedExpert(random.Random(0)), environment(), max_turns=2).state
        is SampleState.TRUNCATED
    )


class Reciter:
    """An expert that does as it is told."""

    def __init__(self, *moves):
        self.moves = moves

    def next_turn(self, question, images, turns):
        return 'I do as I was told by the test.', self.moves[len(turns)]


@pytest.mark.parametrize(
    'moves, reason',
    [
        ([TextSearch('Chad capital'), Answer("N'Djamena")], 'unseen_title'),
        ([LOOSE, ImageSearch(2), Answer("N'Djamena")], 'unseen_answer'),
        ([LOOSE, ImageSearch(2), TextSearch('Chad capital'), Answer('Bamako')], 'wrong_answer'),
        ([LOOSE, ImageSearch(3), Answer("N'Djamena")], 'unknown_image'),
        ([ImageCrop((0.5, 0.5, 0.4, 0.6)), Answer("N'Djamena")], 'bad_box'),
        ([LOOSE, LOOSE, Answer("N'Djamena")], 'repeated_call'),
        ([LOOSE, FormatError('no_action', 'No action.')], 'format'),
        ([LOOSE, Answer('</answer>')], 'format'),
    ],
)
def test_each_fault_has_its_reason(moves, reason):
    whole = synthesise(SEARCH, Reciter(*moves), environment())
    assert reason in validate(whole)


@pytest.mark.parametrize('question', [ONLY, LOOK])
def test_the_expert_writes_under_the_released_protocol(question):
    expert = ScriptedExpert(random.Random(0), RELEASED, poor_queries=0, direct=0)
    whole = synthesise(question, expert, environment(RELEASED, reach=1.0))
    assert '<thinking>' in whole.turns[0].text and len(whole.turns) > 1
    assert validate(whole, scorer=scorer_of(RELEASED)) == [] and 'format' in validate(whole)
    assert scorer_of(RELEASED).score(whole).reward['format'] == 1


def test_the_expert_uses_only_the_tools_that_there_are():
    def without(*off, protocol=DEFAULT):
        return ScriptedExpert(
            random.Random(0), protocol, [tool for tool in TOOLS if tool not in off], direct=0
        )

    assert [without().unmet(question) for question in (SEARCH, ONLY, LOOK)] == [None] * 3
    assert 'image_crop for search, which agent.tools leaves out' in without('image_crop').unmet(
        SEARCH
    )
    assert 'text_search for search_only' in without('text_search', 'image_crop').unmet(ONLY)
    assert "agent.protocol 'released'" in without(protocol=RELEASED).unmet(SEARCH)
    assert without('image_crop').unmet(ONLY) is None
    assert 'invented world alone' in without().unmet(dataclasses.replace(SEARCH, source='mine'))
    tools = ('text_search', 'image_search')
    whole = synthesise(LOOK, without('image_crop'), environment(tools=tools))
    assert kinds(whole) == [Answer] and validate(whole) == []


def test_a_judge_that_fails_leaves_a_demonstration_out():
    whole = synthesise(
        SEARCH,
        Reciter(LOOSE, ImageSearch(2), TextSearch('Chad capital'), Answer('the city')),
        environment(),
    )
    dead = scorer_of(judge=lambda question, answer, image: ToolFailure('timeout', 'late'))
    assert 'unscorable' in validate(whole, scorer=dead) and 'wrong_answer' not in validate(
        whole, scorer=dead
    )


def test_what_no_rollout_has_room_for_is_too_long():
    whole = synthesise(SEARCH, ScriptedExpert(random.Random(0)), environment())
    whole.turns[0].tokens, whole.turns[0].observation_tokens = [1] * 5, [2] * 3
    assert validate(whole, room=8) == [] and validate(whole, room=7) == ['too_long']


def test_a_verdict_has_the_reasons():
    good = synthesise(SEARCH, ScriptedExpert(random.Random(0)), environment())
    bad = synthesise(SEARCH, Reciter(Answer('Bamako')), environment())
    edited = synthesise(SEARCH, ScriptedExpert(random.Random(0)), environment())
    edited.turns[0].text = edited.turns[1].text
    verdicts = [validation.verdict_on(t, scorer_of(), None, None) for t in (good, bad, edited)]
    assert [verdict.reasons for verdict in verdicts] == [
        (), ('wrong_answer', 'unseen_answer'), ('text_differs',),
    ]  # fmt: skip
    assert verdicts[1].text == 'wrong_answer, unseen_answer' and verdicts[1].final


def test_a_model_reviews_what_the_rules_keep():
    good = synthesise(SEARCH, ScriptedExpert(random.Random(0)), environment())
    bad = synthesise(SEARCH, Reciter(Answer('Bamako')), environment())

    def verdict(trajectory, review):
        return validation.verdict_on(trajectory, scorer_of(), None, lambda t: review)

    assert verdict(good, Review((), 'fine')).reasons == ()
    guessed = verdict(good, Review(('logic',), 'It guesses.'))
    assert guessed.text == 'review_logic: It guesses.' and guessed.final
    assert verdict(bad, Review((), 'fine')).reasons == ('wrong_answer', 'unseen_answer')
    down = verdict(good, ToolFailure('unavailable', 'It is down.'))
    assert down.text == 'unscorable: It is down.' and not down.final
