"""Answers are matched as a person would who must be sure, for the reward, the evaluation and the
rule judge alike."""

import json
import time
from pathlib import Path
from string import ascii_uppercase

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.rewards.accuracy import answer_score
from tools_server.answer_matching.characters import clean
from tools_server.answer_matching.gold import gold_fault, gold_letters, gold_texts
from tools_server.answer_matching.letters import chosen_letter
from tools_server.answer_matching.text import MOST_CHARS, same_answer
from tools_server.answer_matching.verdict import is_right
from tools_server.answer_matching.words import normalise
from tools_server.backends.judge_rules import RuleJudge

HERE = Path(__file__).parent
# Fields: 'rule' (which benchmark's rule the case is about), 'references', 'response', 'right';
# 'question', 'choices'.
CASES = [
    json.loads(line)
    for line in (HERE / 'answer_cases.jsonl').read_text(encoding='utf-8').splitlines()
]
CHOICES = [
    json.loads(line)
    for line in (HERE / 'choice_cases.jsonl').read_text(encoding='utf-8').splitlines()
]


def name(case):
    return f'{case["response"][:20]}|{case.get("references", case.get("letter"))}'


@pytest.mark.parametrize('case', CASES, ids=name)
def test_reward_and_rule_judge_say_what_a_person_would(case):
    asked, references, choices = (
        case.get('question', ''),
        case['references'],
        case.get('choices', []),
    )
    question = Question(
        'q', asked, ('a.png',), tuple(references), tuple(choices), category='search', difficulty='1'
    )
    assert answer_score(question, case['response'], None, ()) == case['right'], case['rule']
    assert RuleJudge().judge(asked, references, case['response'], None, choices) is case['right'], (
        case['rule']
    )
    assert gold_fault(references, choices) is None


@pytest.mark.parametrize('case', CHOICES, ids=name)
def test_the_option_is_the_one_that_a_person_reads(case):
    assert chosen_letter(case['response'], case['choices']) == case['letter']


@pytest.mark.parametrize(
    'text, normal',
    [
        ('  The   Eiffel, Tower! ', 'the eiffel tower'),
        ('A', 'a'),
        ('4.5', '4.5'),
        ('45.', '45'),
        ('1,200 m', '1200 m'),
        ('-5 degrees', '-5 degrees'),
        ('north-east', 'north east'),
        ('1990 – 1995', '1990-1995'),
        ('3,5', '3 , 5'),
        ('N’Djamena', 'ndjamena'),
        ('“Hope”', 'hope'),
        ('BRASÍLIA', 'brasília'),
        ('C# and C++', 'c# and c++'),
        ('...', ''),
    ],
)
def test_words_are_normalised(text, normal):
    assert normalise(text) == normal


pieces = st.one_of(
    st.text(max_size=20),
    st.sampled_from('A B. (C) the a an 1,200 1.200,5 .5 -5 − 5 % km mW MW $ € 10³ ½ 1960 August 3rd BC and or , . : / - \' " '  # noqa: E501
                    'answer is option C# ++ * ** é e\u0301 ß İ ① ٣ 12:30 29.100.115 two hundred million'.split()),
)  # fmt: skip
answers = st.lists(pieces, max_size=6).map(' '.join) | st.lists(pieces, max_size=6).map(''.join)
questions = st.sampled_from(
    ['', 'In which year was it made?', 'How many km is it?', 'Which version is it?', 'What date?']
)


@settings(max_examples=300, deadline=None)
@given(answers, answers, questions)
def test_matching_is_symmetric_and_holds_for_itself(one, other, question):
    assert same_answer(one, other, question) is same_answer(other, one, question)
    assert same_answer(one, one, question) is bool(clean(one))
    assert not same_answer(one, '', question)


@settings(max_examples=300, deadline=None)
@given(answers)
@example('0- 0')
@example('5, - 3')
@example('5) to 6')
def test_cleaning_and_normalising_twice_changes_nothing(text):
    assert clean(clean(text)) == clean(text)
    assert normalise(normalise(text)) == normalise(text)
    assert same_answer(clean(text), text, '') is bool(clean(text))


@settings(max_examples=300, deadline=None)
@given(st.lists(answers, max_size=3), answers, st.lists(answers, max_size=5), questions)
def test_any_text_gets_a_verdict(references, response, choices, question):
    right = is_right(question, references, response, choices)
    assert isinstance(right, bool) and chosen_letter(response, choices) in (
        None,
        *ascii_uppercase[: len(choices) or 26],
    )
    if choices and gold_fault(references, choices) is None:
        assert gold_letters(references, choices) and all(
            text in choices for text in gold_texts(references, choices)
        )


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_numbers_match_by_value_however_they_are_grouped(one, other):
    assert same_answer(f'{one:,}', str(other), '') is (one == other)
    assert same_answer(f'{one:,} km', f'{other} kilometres', '') is (one == other)
    assert same_answer(f'{one}.50', f'{other:,}.5', '') is (one == other)


HOSTILE = {
    'combining marks': 'e' + '\u0301' * 60_000,
    'mixed marks': 'a' + '\u0323\u0301' * 30_000,
    'digits': '9' * 100_000,
    'groups': '1' + ',000' * 25_000,
    'dots': '1.' * 50_000,
    'initials': 'a. ' * 33_000,
    'letters': 'B. ' * 33_000,
    'stars': '*a' * 50_000,
    'open stars': '* ' * 50_000 + 'a',
    'answers': 'answer is ' * 10_000,
    'ands': 'one and ' * 12_500,
    'blanks': ' ' * 100_000,
    'brackets': '(' * 100_000,
    'powers': '10^' * 33_000,
    'ratios': '1/' * 50_000,
    'quotes': '5"' * 50_000,
    'ligatures': '\ufdfa' * 50_000,
    'years': '1 year ' * 14_000,
}


@pytest.mark.parametrize('kind', HOSTILE)
@pytest.mark.parametrize('limit', [MOST_CHARS, 100_000])
def test_time_is_linear_in_the_input(kind, limit):
    text = HOSTILE[kind][:limit]
    for work in (
        lambda: is_right('Which?', ['Paris'], text, []),
        lambda: is_right('Which?', ['Paris', text], f'{text}.', []),
        lambda: is_right(text, ['3 August 1960', '5 km'], '1960', []),
        lambda: is_right('Which?', ['B'], text, ['red', 'blue', text]),
    ):
        assert min(timed(work) for _ in range(3)) < 0.1


@pytest.mark.parametrize('kind', HOSTILE)
def test_texts_that_tools_found_are_normalised_in_linear_time(kind):
    text = HOSTILE[kind]
    half, whole = (
        min(timed(lambda: normalise(text[:size])) for _ in range(3)) for size in (25_000, 100_000)
    )
    # four times the text, with room for noise; a quadratic one takes 16 times
    assert whole < max(0.1, 12 * half)


def timed(work):
    start = time.thread_time()  # what other processes do meanwhile does not count
    work()
    return time.thread_time() - start


@pytest.mark.parametrize(
    'references, choices, fault',
    [
        ((), (), 'no reference'),
        (('', ' \u200b'), (), 'empty'),
        (('E',), ('red', 'blue'), "'E' names none of the 2 choices; give a letter A to B"),
        (('mauve',), ('red', 'blue'), 'names none'),
        (('red',), ('red', 'Red', 'blue'), 'names none'),  # which of the two?
        (('B', 'Z'), ('red', 'blue'), "'Z'"),
        (('A',), tuple(map(str, range(27))), '27 choices'),
        ('Paris', (), 'list of texts'),
        ((5,), (), 'list of texts'),
    ],
)
def test_references_by_which_nothing_could_be_right_are_told(references, choices, fault):
    assert fault in gold_fault(references, choices)


def test_references_name_options_by_letter_or_text():
    choices = ('red', 'blue', 'green')
    assert gold_letters(['B.', 'green'], choices) == {'B', 'C'} and gold_texts(['B.'], choices) == (
        'blue',
    )
    assert gold_texts(['Paris'], ()) == ('Paris',) and gold_fault(['B.'], choices) is None
