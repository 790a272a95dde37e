"""Tables in the paper's form, and the harness card beside the scores."""

import json

import pytest
from evaluated import answered, found, question

from sensesearch_jax.evaluation.harness_card import card_lines, harness_card
from sensesearch_jax.evaluation.paper_table import markdown, metric_rows, paper_rows, sample_rows
from sensesearch_jax.evaluation.result_files import printed, summarise_sets, tables
from sensesearch_jax.evaluation.results import result_row


def sets_of(*names, samples=1):
    ts = [
        answered(
            question(i, name, category='c'), 'Paris' if i % 2 else 'Rome', member=m, turns=[found()]
        )
        for name in names
        for i in range(4)
        for m in range(samples)
    ]
    return summarise_sets([result_row(t, 10, 2) for t in ts])


def card_of(sets, **fields):
    given = {
        'agent': {'kind': 'policy', 'policy': 'runs/rl/rl/policy'},
        'mode': 'agent',
        'environment': {
            'protocol': 'default',
            'tools': ['text_search', 'image_crop'],
            'system_prompt': 'Answer.',
            'shown': {'text_results': 5, 'thumbnails': True},
        },
        'budgets': {'max_turns': 10, 'turn_tokens': 8192},
        'sampling': {'samples': 1, 'temperature': 0.0},
        'health': {
            'backends': {'text_search': 'serper', 'judge': 'rules, then gpt-4o', 'crop': 'local'},
            'mode': 'replay',
            'cache': {'text_search': {'entries': 9, 'hits': 6, 'misses': 2}},
        },
        'sets': sets,
    }
    return harness_card(**given | fields)


def test_the_paper_s_table_has_its_sets_its_average_and_its_rows():
    head, ours, *paper = paper_rows({'rl': sets_of('vstar', 'mmsearch', 'hr_mmsearch')})
    assert head == [
        'Pass@1, %', 'Search average (2 of 7 sets)', 'MMSearch', 'HR-MMSearch', 'V*',
    ]  # fmt: skip
    assert ours[:2] == ['rl', '50.00'] and ours[2].startswith('50.00 [')
    assert ['paper: SenseSearch, RL', '–', '59.06', '38.52', '83.84'] in paper


def test_the_average_of_all_search_sets_stands_beside_the_paper_s():
    names = 'mmsearch hr_mmsearch fvqa infoseek simple_vqa livevqa mat_search'.split()
    head, ours, *paper = paper_rows({'rl': sets_of(*names)})
    assert head[1] == 'Search average' and ours[1] == '50.00' and len(head) == 9
    assert [row[1] for row in paper] == ['35.50', '52.49', '53.06', '57.43']


def test_a_set_of_one_s_own_has_a_column_and_no_rows_of_the_paper():
    assert [row[0] for row in paper_rows({'rl': sets_of('mine')})] == ['Pass@1, %', 'rl']
    assert paper_rows({'rl': sets_of('mine')})[0] == ['Pass@1, %', 'mine']


def test_runs_with_other_sets_share_a_table():
    rows = paper_rows({'a': sets_of('mmsearch'), 'b': sets_of('vstar')})
    assert rows[1][2] == '–' and rows[2][1] == '–'


def test_the_official_metric_has_a_star():
    rows = metric_rows({'rl': sets_of('mmsearch')})
    assert [row[2] for row in rows[1:]] == ['mmsearch_f1*', 'exact', 'f1']
    assert 'Avg-C*' in [row[2] for row in metric_rows({'rl': sets_of('mme_realworld')})]


def test_samples_have_a_table_where_there_are_several():
    assert len(sample_rows({'rl': sets_of('mmsearch')})) == 1
    assert sample_rows({'rl': sets_of('mmsearch', samples=3)})[1][2] == '3'


def test_markdown_cells_cannot_break_a_table():
    assert markdown([['a', 'b'], ['x|y', 'z']]).splitlines()[2] == r'| x\|y | z |'
    assert markdown([['a']]) == ''


def test_the_card_says_what_a_score_depends_on():
    card = card_of(sets_of('hr_mmsearch', 'vstar'))
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    lines = dict(card_lines(card))
    assert lines['Agent'] == 'kind policy, policy runs/rl/rl/policy'
    assert lines['Protocol'] == 'default; tools: text_search, image_crop'
    assert lines['Judge'].startswith('rules, then gpt-4o (')
    assert lines['Cache'] == 'replay; answers from the store: text_search 6 of 8'
    assert '4 questions of the 305 that the paper reports' in lines['HR-MMSearch']
    assert 'text_search: 4 asked, 100.0 % returned something' in lines['HR-MMSearch']


def test_the_card_of_a_server_that_is_gone_says_so():
    lines = dict(card_lines(card_of(sets_of('mine'), health=None)))
    assert lines['Cache'] == lines['Tools'] == 'unknown' and 'of the' not in lines['mine']


@pytest.mark.parametrize('text', [tables, printed])
def test_scores_never_stand_without_their_card(text):
    sets = sets_of('hr_mmsearch')
    shown = text('rl', sets, card_of(sets))
    for words in ('50.00 [', 'HR-MMSearch', 'rules, then gpt-4o', 'replay', 'max_turns 10'):
        assert words in shown
