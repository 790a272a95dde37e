"""The tool server and its indexes."""

import pytest
import requests
from published_files import sensenova_mars


@pytest.mark.commands(
    'docs/tool_server.md',
    'configs/tools_pocket.yaml',
    'configs/tools_pocket.yaml --check',
    'build_index text',
    'build_index images',
    'build_index results',
)
def test_tools_are_served_checked_and_indexed(workspace):
    with workspace.served('tools_pocket.yaml') as address:
        found = requests.post(
            f'{address}/text_search', json={'query': 'capital of France', 'top_k': 1}, timeout=60
        ).json()
        assert 'France' in found['results'][0]['title']
    said = workspace.run('--check')
    assert all(f'{t}: ' in said for t in ('crop', 'image_search', 'judge', 'text_search'))
    (workspace / 'world/passages.jsonl').rename(workspace / 'passages.jsonl')
    said = workspace.run('build_index text')
    assert '1 passages' in said and '100%' in said
    workspace.run('build_index images', FOLDER='pictures')
    sensenova_mars(workspace.folder)
    (workspace / 'train_small.json').rename(workspace / 'train_qwen3_vl_8b.json')
    workspace.run('build_index results')
    for name in 'text_index', 'picture_index', 'image_results':
        assert any((workspace / 'runs' / name).iterdir())
