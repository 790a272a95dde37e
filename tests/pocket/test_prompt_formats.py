"""Made-up formats: what they write can be read back by their own rule, and none is the protocol's."""

import json
import re

import numpy as np

from sensesearch_jax.agent.actions import FormatError
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.pocket.pretraining.prompt_formats import RESERVED, Format

WORDS = np.array(
    sorted(
        {
            'river',
            'Paris',
            'collection',
            'query',
            *(a + b + c for a in 'bdfg' for b in 'aeio' for c in 'nrst'),
        }
    )
)


def drawn(count):
    return [Format.draw(np.random.default_rng(seed), WORDS) for seed in range(count)]


def test_names_are_distinct_short_words_without_the_protocols():
    for form in drawn(100):
        used = [
            form.thought,
            form.call,
            form.reply,
            *form.keys,
            *(word for function in form.functions for word in function),
        ]
        used = [word for word in used if word]
        assert len(set(used)) == len(used) and not RESERVED.intersection(used)
        assert all(word.islower() and len(word) <= 8 for word in used)


def test_calls_hold_their_argument_as_json():
    for form in drawn(60):
        for function, value, read in (
            (Format.LOOK, '[0.1, 0.2, 0.3, 0.4]', [0.1, 0.2, 0.3, 0.4]),
            (Format.FIND, 'the "Elder"\nof é', 'the "Elder"\nof é'),
            (Format.NAME, None, None),
        ):
            text = form.write_call('I look.', function, value)
            found = json.loads(re.search(r'\{.*\}', text, re.DOTALL).group())
            name, argument = form.functions[function]
            assert found == {
                form.keys[0]: name,
                form.keys[1]: {} if value is None else {argument: read},
            }
            assert 'I look.' in text and text.count('<') == text.count('>') == 2 * (
                bool(form.thought) + bool(form.call)
            )


def test_the_rule_shows_each_kind_of_turn_and_the_protocol_knows_none():
    for form in drawn(60):
        rule = form.rule()
        for name, argument in form.functions:
            assert f'"{name}"' in rule and f'"{argument}"' in rule
        assert form.write_reply('…', '…') in rule
        for text in (form.write_call('a', Format.NAME), form.write_reply('a', 'b')):
            assert isinstance(DEFAULT.parse(text, TOOLS).action, FormatError)


def test_many_formats_and_seeds_decide():
    assert len({form.rule() for form in drawn(50)}) == 50
    assert drawn(3) == drawn(3)


def test_a_manual_declares_each_function_as_json_before_the_rule():
    for seed, form in enumerate(drawn(30)):
        manual = form.manual(np.random.default_rng(seed), WORDS)
        assert manual.endswith(form.rule())
        entries = [json.loads(line) for line in manual.removesuffix(form.rule()).splitlines()]
        assert len(entries) == len(form.functions)
        for entry, function in zip(entries, form.functions):
            assert all(json.dumps(word) in json.dumps(entry) for word in function)
            assert not RESERVED.intersection(re.findall(r'\w+', json.dumps(entry)))
