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
def test_tools_are_served_checked_and_indexed(desk):
    with desk.served('tools_pocket.yaml') as address:
        found = requests.post(
            f'{address}/text_search', json={'query': 'capital of France', 'top_k': 1}, timeout=60
        ).json()
        assert 'France' in found['results'][0]['title']
    said = desk.run('--check')
    assert all(f'{t}: ' in said for t in ('crop', 'image_search', 'judge', 'text_search'))
    (desk / 'world/passages.jsonl').rename(desk / 'passages.jsonl')
    said = desk.run('build_index text')
    assert '1 passages' in said and '100%' in said
    desk.run('build_index images', FOLDER='pictures')
    sensenova_mars(desk.folder)
    (desk / 'train_small.json').rename(desk / 'train_qwen3_vl_8b.json')
    desk.run('build_index results')
    for name in 'text_index', 'picture_index', 'image_results':
        assert any((desk / 'runs' / name).iterdir())
