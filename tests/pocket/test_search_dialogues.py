"""Search dialogues: what is said was shown before, nothing held out comes in, and the value stands in what
is cut out."""

import json
import re

import numpy as np
import pytest

from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.search_dialogues import (
    PASSAGE,
    SearchDialogues,
    cut_around,
    word,
)
from sensesearch_jax.pocket.pretraining.visual_questions import with_options
from sensesearch_jax.pocket.world.files import PocketFiles
from tests.pocket.test_examples import held_out, words_of

FILES = PocketFiles()


@pytest.fixture(scope='module')
def search_dialogues():
    return SearchDialogues(FILES, Pages(FILES))


def test_names_and_answers_were_shown_before(search_dialogues, monkeypatch):
    made, plain = [], search_dialogues._dialogue
    monkeypatch.setattr(
        search_dialogues,
        '_dialogue',
        lambda *about: made.append((about, plain(*about))) or made[-1][1],
    )
    for seed in range(400):
        example = search_dialogues(np.random.default_rng(seed), 512)
        assert example.picture is None and not held_out(words_of(example))
    restated = 0
    for (_, _, question, thing, title, name, key, _, _, value), pairs in made:
        (asked, first), *beside, (names, named), (passages, read) = pairs
        assert asked == question and len(beside) <= 2
        restated += key in first and thing in first
        assert names.startswith(f'1. {title}') and name in named and key in named
        assert value in passages and value in read
    assert restated > len(made) / 2


def test_formatted_search_dialogues_call_for_the_words_and_reply_with_the_value(
    search_dialogues, monkeypatch
):
    made, plain = [], search_dialogues._dialogue
    monkeypatch.setattr(
        search_dialogues,
        '_dialogue',
        lambda *about: made.append((about, plain(*about))) or made[-1][1],
    )
    systems = [
        search_dialogues(np.random.default_rng(seed), 512, formatted=True).system
        for seed in range(200)
    ]
    for (_, form, _, _, _, name, key, _, _, value), pairs, system in zip(
        *zip(*made), systems, strict=True
    ):
        assert system.endswith(form.rule())
        call, reply = pairs[-2][1], pairs[-1][1]
        assert f'"{form.functions[form.FIND].name}"' in call and reply.endswith(
            form.write_reply('', value)[-len(value) :]
        )
        words = json.loads(re.search(r'\{.*\}', call, re.DOTALL).group())[form.keys[1]].popitem()[1]
        assert name in words and key in words


def test_longer_examples_hold_more_search_dialogues_and_seeds_decide(search_dialogues):
    assert len(search_dialogues(np.random.default_rng(1), 1024).pairs) >= 6
    one, other = (search_dialogues(np.random.default_rng(3), 512) for _ in range(2))
    assert one[:4] == other[:4] != search_dialogues(np.random.default_rng(4), 512)[:4]


def test_facts_asked_for_are_of_training_entities_and_stated(search_dialogues):
    assert len(search_dialogues.stated) > 1000
    for entity, field in search_dialogues.stated:
        passage = FILES.passages[entity.passages[field.name]]
        assert entity.split == 'train' and word(entity.facts[field.name]).search(passage['text'])


def test_cut_around_keeps_the_value():
    text = 'abc ' * 100 + 'the value' + ' xyz' * 100
    part = cut_around(text, 'the value')
    assert (
        'the value' in part
        and len(part) <= PASSAGE + 4
        and part.startswith('… ')
        and part.endswith('…')
    )
    assert cut_around('a: b; c: d', 'd') == 'a: b; c: d'
    assert cut_around(text, '') == text[:PASSAGE].strip() + '…'


def test_words_are_whole_ones():
    assert word('4').sub('7', '4; 14; 4.5; 3,4; 4') == '7; 14; 4.5; 3,4; 7'


def test_the_letter_is_the_right_options():
    for seed in range(50):
        question, letter = with_options(np.random.default_rng(seed), 'Which colour?', 'blue')
        options = dict(line.split('. ') for line in question.split('\n')[1:])
        assert options[letter] == 'blue' and len(set(options.values())) == 4
