"""Skills: what is in question is what the trial is about, what a policy writes is what reading it says
it would write, and a right box is found by the search.
"""

import numpy as np
import pytest
from toy_policy import write_toy_policy

from sensesearch_jax.agent.actions import ImageCrop
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.pocket.invented.build import build
from sensesearch_jax.pocket.skills.gates import GATES, measure, table, worlds
from sensesearch_jax.pocket.skills.reader import Reader
from sensesearch_jax.pocket.skills.trials import Trials, call_of
from sensesearch_jax.pocket.world.colours import NAMES
from sensesearch_jax.rewards.crop_geometry import loose_box


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world') / 'invented'
    build(folder, {'train': 1, 'validation': 12}, 0)
    return worlds(folder)


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp('policy')
    write_toy_policy(folder)
    return Reader(folder)


@pytest.fixture(scope='module')
def trials(reader, known):
    return Trials(reader, known['invented'], 0)


def said(reader, given, chosen):
    return reader.chat.tokenizer.decode(
        [t for t, asked in zip(given.tokens, chosen) if asked], False
    )


def test_the_name_and_the_value_are_in_question_where_they_are_said(reader, trials, known):
    copied, fields = list(trials.copied(4)), list(trials.fields(6))
    assert len(copied) == 4 and len(fields) >= 4
    for skill, given in [*copied, *fields]:
        asked = said(reader, given, given.asked)
        half = asked.split()[: len(asked.split()) // 2]
        whole = said(reader, given, [True] * len(given.tokens))
        assert skill in ('copy', 'field') and len(asked) >= 2
        assert whole.count(' '.join(half[1:-1])) >= 3  # shown by a tool, and said twice
        assert given.asked.count(True) < 80 and not any(given.asked[: len(given.asked) // 2])


def test_trials_are_in_the_protocols_own_words(reader, trials):
    skills = {}
    for skill, given in trials.seen(12):
        skills.setdefault(skill, said(reader, given, given.asked).strip())
        whole = said(reader, given, [t != reader.chat.image_pad for t in given.tokens])
        assert DEFAULT.system_prompt(TOOLS).split('\n')[0] in whole
        cropped = '"name": "image_crop"' in whole.split('assistant\n', 1)[1]
        assert cropped == (skill != 'count') == (whole.count('<tool_response>') == 1)
        pads = sum(t == reader.chat.image_pad for t in given.tokens)
        sizes = [reader.preprocessor.merged_tokens(*p.size) for p in given.pictures]
        assert pads == sum(sizes) and len(sizes) == 1 + cropped
    assert set(skills) == {'count', 'option', 'colour', 'shape'}
    assert skills['colour'] in NAMES and skills['count'].isdigit()
    assert skills['option'] in tuple('ABCD')


def test_what_the_policy_writes_is_what_reading_says_it_would_write(reader, trials):
    scene = trials.world.scenes('search', 1, 3)[0]
    given = trials.cropped(scene, loose_box(scene.question.truth['box']))
    (ids,) = reader.continued([given], 6, 'an end that never comes')
    assert len(ids) == 6
    asked = type(given)([*given.tokens, *ids], given.pictures, [*given.asked, *[True] * len(ids)])
    wrong = asked._replace(tokens=[*given.tokens, *ids[:-1], ids[-1] + 1])
    assert reader.right([asked, wrong]) == [True, False]


def test_the_search_finds_what_a_right_box_shows_and_not_the_whole_scene(known):
    for world in known.values():
        scenes = world.scenes('search', 12, 0)
        near = [world.found(s, world.view(s, loose_box(s.question.truth['box']))) for s in scenes]
        far = [world.found(s, world.view(s, (0.0, 0.0, 1.0, 1.0))) for s in scenes]
        assert np.mean(near) > 0.7 > 0.4 > np.mean(far)
        assert not world.found(scenes[0], world.view(scenes[0], (0.3, 0.3, 0.3, 0.6)))


def test_every_gate_has_a_line(reader, known):
    found = {'invented': measure(reader, known['invented'], 3, 0)}
    assert set(found['invented']) <= set(GATES) and {'copy', 'field', 'first crop'} <= set(
        found['invented']
    )
    lines = table(found)
    assert len(lines) == 2 + len(GATES) and all(line.count('|') == 5 for line in lines)


@pytest.mark.parametrize(
    'rest, call',
    [
        ('0.1, 0.2, 0.3, 0.4]}}', ImageCrop((0.1, 0.2, 0.3, 0.4), 1)),
        ('0.1, 0.2, 0.3, 0.4], "image_index": 2}}', ImageCrop((0.1, 0.2, 0.3, 0.4), 2)),
        ('0.1, 0.2, 0.3, 0.4], "frame": 2}}', ImageCrop((0.1, 0.2, 0.3, 0.4), 2)),
        ('0.1, 0.2, 0.3, 0.4], "image_index": 3}}', None),  # there is none
        ('0.1, 0.2, 0.3]}}', None),
        ('0.1, "a", 0.3, 0.4]}}', None),
        ('0.1, 0.2, 0.3, 0.4', None),
    ],
)
def test_a_box_counts_whatever_the_pictures_argument_is_called(rest, call):
    assert call_of(rest) == call
