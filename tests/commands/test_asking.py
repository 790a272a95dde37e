"""Questions that an evaluation asks, of a policy and of a served model; that are asked by hand, and on a page."""

import json

import pytest
import requests
import toy_runs
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT


@pytest.mark.commands('docs/evaluation.md', '--workdir=runs/evaluate ', 'gpt-4o')
def test_a_policy_and_a_served_model_are_evaluated(workspace):
    workspace.link('runs/rl/rl/policy', 'toy')
    said = workspace.run(
        '--workdir=runs/evaluate ', {'data.eval': toy_runs.pocket('test', perception=2)}
    )
    assert 'Pass@1' in said
    for name in 'results.jsonl', 'summary.json', 'card.json', 'table.md', 'viewer.html':
        assert (workspace / 'runs/evaluate' / name).is_file(), name
    with chat_stand_in() as service:
        service.replies = lambda request: DEFAULT.render_action('I see it.', Answer('red'))
        workspace.run('gpt-4o', {'data.eval': 'my.jsonl', 'evaluate.agent.url': service.url})
    assert {request.body['model'] for request in service.requests} == {'gpt-4o'}
    rows = [json.loads(line) for line in (workspace / 'runs/gpt-4o/results.jsonl').open()]
    assert [row['answer'] for row in rows] == ['red'] * 10


@pytest.mark.commands('README.md', 'configs/ask.py')
@pytest.mark.commands('docs/watch.md', 'configs/ask.py')
def test_questions_are_asked_by_hand_and_on_a_page(workspace):
    workspace.link('runs/pocket/rl/policy', 'toy')
    said = workspace.run('--config.image=', FILE='pictures/0.png')
    assert '── turn 1 ──' in said
    with workspace.served('--config.ask.page=True') as address:
        assert 'question' in requests.get(address, timeout=60).text
