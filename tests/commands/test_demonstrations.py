"""A cold start by a served expert."""

import json
import shutil

import pytest
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.recipes.session import read_trajectories

MINED = {'mine.samples': 2}


@pytest.mark.commands('docs/cold_start.md', '--workdir=runs/own')
def test_a_served_expert_demonstrates(desk):
    shutil.copy(desk / 'my.jsonl', desk / 'mine.jsonl')
    with chat_stand_in() as service:
        service.replies = lambda request: DEFAULT.render_action('I see it.', Answer('red'))
        host = service.url.removeprefix('http://').removesuffix('/v1')
        desk.run('--workdir=runs/own', MINED, **{'HOST:8000': host, 'NAME': 'expert'})
    assert {request.body['model'] for request in service.requests} == {'expert'}
    kept = read_trajectories(desk / 'runs/own/cold_start/kept.jsonl')
    assert 'mine-0' in {t.question.id for t in kept}
    lines = (desk / 'runs/own/cold_start/ledger.jsonl').read_text().splitlines()
    assert len(list(map(json.loads, lines))) >= 2 * len(service.requests)
