"""Cold starts by the scripted expert and by a served one, to the chat format and back, and SFT on them."""

import json
import shutil

import pytest
import toy_runs
from chat_stand_in import chat_stand_in

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.recipes.session import read_trajectories

MINED = {'mine.samples': 2}


@pytest.mark.commands(
    'docs/cold_start.md',
    '--workdir=runs/cold_start',
    'chat_format export',
    'chat_format import',
    'configs/sft.py',
)
def test_demonstrations_go_to_the_chat_format_and_back(workspace):
    pocket = {
        'data.train': toy_runs.pocket('train', search=1, perception=1),
        'tools.config': 'configs/tools_pocket.yaml',
        'mine.most_right': 2,
    }
    workspace.run('--workdir=runs/cold_start', MINED | pocket)
    folder = workspace / 'runs/cold_start/cold_start'
    assert (folder / 'cold_start.html').is_file() and (folder / 'rejected.jsonl').is_file()
    kept = read_trajectories(folder / 'kept.jsonl')
    assert kept and all(t.turns for t in kept)
    workspace.run('chat_format export')
    assert (workspace / 'chats/dataset_info.json').is_file()
    workspace.run('chat_format import', POLICY='toy')
    assert len(read_trajectories(workspace / 'imported.jsonl')) == len(kept)
    room = {'sft.epochs': 1, 'sft.pack_step': 0}
    workspace.run('configs/sft.py', room, POLICY='toy')
    assert (workspace / 'runs/sft/sft/policy/model.safetensors').is_file()


@pytest.mark.commands('docs/cold_start.md', '--workdir=runs/own')
def test_a_served_expert_demonstrates(workspace):
    shutil.copy(workspace / 'my.jsonl', workspace / 'mine.jsonl')
    with chat_stand_in() as service:
        service.replies = lambda request: DEFAULT.render_action('I see it.', Answer('red'))
        host = service.url.removeprefix('http://').removesuffix('/v1')
        workspace.run('--workdir=runs/own', MINED, **{'HOST:8000': host, 'NAME': 'expert'})
    assert {request.body['model'] for request in service.requests} == {'expert'}
    kept = read_trajectories(workspace / 'runs/own/cold_start/kept.jsonl')
    assert 'mine-0' in {t.question.id for t in kept}
    lines = (workspace / 'runs/own/cold_start/ledger.jsonl').read_text().splitlines()
    assert len(list(map(json.loads, lines))) >= 2 * len(service.requests)
