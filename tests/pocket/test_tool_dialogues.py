"""Dialogues with made-up tools: what is learned was shown before, nothing held out comes in, and no
chain of tools is learned where no plan says it.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer

from sensesearch_jax.pocket.invented.names import LONGEST_TITLE
from sensesearch_jax.pocket.invented.world import InventedWorld
from sensesearch_jax.pocket.pretraining.option_dialogues import OptionDialogues
from sensesearch_jax.pocket.pretraining.pages import Pages
from sensesearch_jax.pocket.pretraining.passage_dialogues import PassageDialogues
from sensesearch_jax.pocket.pretraining.picture_dialogues import PictureDialogues, poor_box
from sensesearch_jax.pocket.pretraining.tool_dialogues import (
    ToolDialogues,
    with_repetition,
    word_pieces,
)
from sensesearch_jax.pocket.pretraining.visual_questions import VisualQuestions
from sensesearch_jax.pocket.world.colours import NAMES
from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.observation_limits import LIMITS
from sensesearch_jax.recipes.checkpoint_policy import POCKET_POLICY
from sensesearch_jax.rewards.crop_geometry import absolute, holds, loose_box
from tests.pocket.test_examples import held_out

FILES = PocketFiles()


@pytest.fixture(scope='module')
def pages():
    return Pages(FILES)


@pytest.fixture(scope='module')
def world():
    return InventedWorld(FILES, 'train', 0)


@pytest.fixture(scope='module')
def tools(world, pages):
    pieces = word_pieces(Tokenizer.from_file(str(POCKET_POLICY / 'tokenizer.json')))
    return ToolDialogues(world, pages, pieces)


@pytest.fixture(scope='module')
def dialogues(tools):
    return [tools(np.random.default_rng(seed), 512) for seed in range(150)]


@pytest.fixture(scope='module')
def looks(pages):
    made = PictureDialogues(VisualQuestions(FILES, pages, 4, None))
    return [made(np.random.default_rng(seed), 2, 3) for seed in range(40)]


@pytest.fixture(scope='module')
def passages(tools, pages):
    made = PassageDialogues(tools, pages)
    return [made(np.random.default_rng(seed), 512) for seed in range(150)]


@pytest.fixture(scope='module')
def near_looks(pages):
    made = PictureDialogues(VisualQuestions(FILES, pages, 4, None))
    return [made.near(np.random.default_rng(seed), 4) for seed in range(20)]


def said(example):
    """All texts of an example, and of each turn what came before it."""
    (dialogue,) = example.dialogues
    before, found = f'{example.system}\n{dialogue.question}', []
    for turn in dialogue.turns:
        found.append((before, turn))
        before += f'\n{turn.text}\n' + ''.join(part for part in turn.after if isinstance(part, str))
    return before, found


def arguments(turn):
    return json.loads(re.search(r'<tool_call>\n(.*)\n</tool_call>', turn)[1])


def test_names_and_answers_were_shown_before_and_nothing_held_out_is(dialogues):
    answers = 0
    for example in dialogues:
        whole, turns = said(example)
        assert not held_out(whole), whole
        before, last = turns[-1]
        value = re.search('<answer>(.*)</answer>$', last.text)[1]
        answers += value in before
        _, query = turns[-2]
        words = next(iter(arguments(query.text)['arguments'].values()))
        titles = [part for _, turn in turns[:-2] for part in turn.after if part.startswith('1. ')]
        assert any(word in titles[0] for word in words.split() if len(word) > 3), (words, titles)
    assert answers == len(dialogues)


def test_some_labels_end_alike_before_values_that_begin_alike(passages):
    """The last words do not tell which value follows; thoughts quote them with their label."""
    alike = quotes = 0
    for example in passages:
        _, turns = said(example)
        for line in turns[0][1].after[0].split('\n'):
            fields = [clause.rsplit(': ', 1) for clause in line.split('; ')]
            fields = [field for field in fields if len(field) == 2]
            ends = Counter((label.split()[-1], value[:2]) for label, value in fields)
            alike += max(ends.values(), default=0) > 1
        quotes += sum('I read the' in turn.text for _, turn in turns)
    assert alike > 40 and quotes > 80, (alike, quotes)


def learned(turn):
    """The parts of a turn that are to be imitated."""
    rest = turn.text[len(turn.given) :]
    return rest.replace(turn.skipped, '…') if turn.skipped else rest


def test_what_no_plan_says_is_given_and_mistakes_are_never_imitated(dialogues, looks):
    planned = mistakes = copied = 0
    for example in [*dialogues, *looks]:
        lines = example.system.split('<tools>\n')[1].split('\n</tools>')[0].split('\n')
        tools = [json.loads(line)['function'] for line in lines]
        for dialogue in example.dialogues:
            told = dialogue.question
            for turn in dialogue.turns:
                assert turn.text.startswith(turn.given) and turn.skipped in turn.text
                for tool in tools:
                    if f'"name": "{tool["name"]}"' in learned(turn):
                        planned += 1
                        purpose = tool['description'].rstrip('.').split(':')[0]
                        assert tool['name'] in told or purpose[1:] in told, (told, turn)
                if turn.after and any(w in turn.after[0] for w in ('No tool', 'has no argument')):
                    mistakes += 1
                    assert not learned(turn)
                    told += turn.after[0]  # which says how the second try is to be
            copied += bool(dialogue.turns[-2:-1]) and bool(learned(dialogue.turns[-2]))
    assert planned > 60 and mistakes > 10 and copied > 100


def test_every_value_of_a_passage_is_asked_for_by_what_tells_it_from_the_others(passages):
    answers = numbers = letters = 0
    for example in passages:
        whole, turns = said(example)
        assert not held_out(whole), whole
        assert learned(turns[0][1]) == ''
        (shown,) = turns[0][1].after
        told = {}
        questions = [example.dialogues[0].question, *(t.after[0] for _, t in turns[1:-1])]
        for question, (_, turn) in zip(questions, turns[1:], strict=True):
            value = re.search('<answer>(.*)</answer>$', turn.text)[1]
            if option := re.search(rf'\n{re.escape(value)}\. (.*)', question):
                letters += 1
                value = option[1]
            assert value in shown and value in turn.text.split('</think>')[0]
            answers += 1
            numbers += value.isdigit()
            assert told.setdefault(question, value) == value, shown
    assert answers > 600 and 100 < numbers < answers / 2 and 50 < letters < answers / 4


def test_options_are_said_again_before_one_is_taken_and_the_user_names_the_others(tools, pages):
    made = OptionDialogues(pages, PassageDialogues(tools, pages).any)
    letters, colours = Counter(), 0
    for seed in range(60):
        whole, turns = said(made(np.random.default_rng(seed), 512))
        assert not held_out(whole), whole
        options = []
        for before, turn in turns:
            letter = re.search('<answer>([A-F])</answer>$', turn.text)[1]
            asked = before.rsplit('</answer>\n')[-1]
            thought = turn.text.split('</think>')[0].removeprefix('<think>')
            if first := '\nA. ' in asked:
                options = re.findall(r'\n[A-F]\. (.*)', asked)
                lettered = '; '.join(f'{o}: {a}' for a, o in zip('ABCDEF', options))
                assert thought.startswith(f'{lettered}. It is ') and turn.skipped
            option = options['ABCDEF'.index(letter)]
            assert thought.endswith(f'It is {option}: {letter}.')
            assert first or (option in asked and not turn.skipped)
            assert learned(turn).endswith(f'{letter}.</think>\n<answer>{letter}</answer>')
            letters[letter] += 1
            colours += option in NAMES
    assert min(letters[x] for x in 'ABCD') > 60 and 150 < colours < 400


def test_a_scene_is_counted_and_asked_about(pages):
    made = PictureDialogues(VisualQuestions(FILES, pages, 4, None))
    numbers = set()
    for seed in range(12):
        example = made.counts(np.random.default_rng(seed), 3)
        count = len(example.boxes)
        assert example.dialogues[0].turns[0].text.endswith(f'<answer>{count}</answer>')
        assert held_out(example.system) is False and len(example.dialogues) == 3
        numbers.add(count)
    assert len(numbers) > 3


def test_a_scene_is_counted_behind_a_short_prompt(pages):
    made, numbers = PictureDialogues(VisualQuestions(FILES, pages, 4, None)), set()
    for seed in range(12):
        example = made.count_alone(np.random.default_rng(seed))
        assert '<tools>' not in example.system and len(example.system) < 200
        ((turn,),) = [dialogue.turns for dialogue in example.dialogues]
        number = str(len(example.boxes))
        assert (
            turn.text.endswith(f'<answer>{number}</answer>')
            and number in turn.text.split('</think>')[0]
        )
        assert not turn.given and not held_out(example.system)
        numbers.add(number)
    assert len(numbers) > 3


def test_near_looks_say_what_the_crop_shows(near_looks):
    seen, counts = set(), 0
    for example in near_looks:
        boxes = example.boxes.astype(float)
        for dialogue in example.dialogues:
            *before, look, last = dialogue.turns
            if before:
                counts += 1
                assert before[0].text.endswith(f'<answer>{len(boxes)}</answer>')
            box = next(v for v in arguments(look.text)['arguments'].values() if isinstance(v, list))
            assert learned(last) and look.of_tool and look.after[0] == 'Image 2:'
            if learned(look).startswith('['):  # a poor box is shown, and not learned
                assert any(holds(box, one) for one in boxes)
            seen.add(re.search('<answer>(.*)</answer>$', last.text)[1])
    assert len(seen & set(NAMES)) > 3 and {'yes', 'no'} & seen and 8 < counts < 40


def test_passages_are_as_short_as_the_tool_servers(dialogues):
    for example in dialogues:
        for line in example.dialogues[0].turns[-2].after[0].split('\n'):
            assert len(line.split(': ', 1)[1]) <= LIMITS.passage_chars + 60


def test_boxes_show_their_objects_and_a_better_one_follows_a_failure(looks):
    first = better = nearer = 0
    for example in looks:
        assert not held_out(example.system + ''.join(d.question for d in example.dialogues))
        boxes = example.boxes.astype(float)
        for dialogue in example.dialogues:
            calls = [
                arguments(t.text)['arguments'] for t in dialogue.turns if '<tool_call>' in t.text
            ]
            asked = [next((v for v in c.values() if isinstance(v, list)), None) for c in calls]
            if asked and asked[0] and not dialogue.turns[0].text == dialogue.turns[0].given:
                first += 1
                assert any(holds(asked[0], box) for box in boxes)
            if len(dialogue.turns) == 3:
                second = asked[2]
                if 2 in calls[2].values():
                    nearer += 1
                    second = absolute(second, asked[0])
                better += 1
                assert any(holds(second, box) for box in boxes)
                assert dialogue.turns[1].given == dialogue.turns[1].text
                assert dialogue.turns[2].given.endswith('": ')
    assert first > 30 and better > 15 and nearer > 3


def test_poor_boxes_stay_in_the_picture_and_on_the_grid():
    rng = np.random.default_rng(0)
    good = loose_box((0.42, 0.3, 0.5, 0.55))
    made = {poor_box(rng, good) for _ in range(100)}
    assert len(made) > 20
    for box in made:
        assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
        assert all(round(v, 1) == v for v in box)


def test_some_names_have_a_piece_twice_and_stay_short():
    names = [
        with_repetition(np.random.default_rng(seed), name)
        for seed, name in enumerate(['Bora', 'Ada van Lor', 'A' * (LONGEST_TITLE - 1)] * 20)
    ]
    doubled = [n for n in names if re.search(r'\b(\w{2,}) \1\b', n)]
    initials = [n for n in names if re.search(r'([A-Z]\. ){2,3}\w+$', n)]
    assert {'Bora Bora'} < set(doubled) and initials
    assert all(n.split()[-1] in ('Bora', 'Lor') for n in initials)
    assert all(len(n) <= LONGEST_TITLE for n in names)
    assert names[2::3] == ['A' * (LONGEST_TITLE - 1)] * 20
