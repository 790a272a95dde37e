"""Questions and items that are checked, converted, reviewed; benchmarks of one's own."""

import json

import published_files
import pytest
import requests
from PIL import Image


@pytest.mark.commands(
    'README.md', 'data.check PATH', 'data.review PATH', 'python -m sensesearch_jax.config'
)
@pytest.mark.commands('docs/data.md', 'data.check my.jsonl', 'data.check my.jsonl --config')
def test_a_file_is_checked_and_reviewed(workspace):
    assert '10 of 10 records are sound' in workspace.run('data.check my.jsonl')
    said = workspace.run('data.check PATH', PATH='my.jsonl', FILE='configs/rl.py')
    assert '10 of 10 records are sound' in said and 'rollout.prompt_capacity' in said
    # the 7B's config, with the pocket policy's tokenizer in the place of a 7B's
    said = workspace.run('data.check my.jsonl --config', DIR='toy')
    assert '10 of 10 records are sound' in said and (workspace / 'check.png').is_file()
    with workspace.served('data.review PATH', PATH='my.jsonl') as address:
        decision = {'id': 'mine-0', 'verdict': 'accept'}
        requests.post(f'{address}/decisions', json=decision, timeout=60).raise_for_status()
    (line,) = (workspace / 'my.accepted.jsonl').read_text().splitlines()
    assert json.loads(line)['id'] == 'mine-0'
    assert 'rl.learning_rate' in workspace.run('sensesearch_jax.config')


@pytest.mark.commands('docs/published_sets.md', '--list', 'convert fvqa', 'convert hr_mmsearch')
def test_published_sets_are_converted(workspace):
    published_files.fvqa(workspace / 'downloads/FVQA')
    published_files.hr_mmsearch(workspace / 'downloads/HR-MMSearch')
    assert 'https://huggingface.co/datasets/lmms-lab/FVQA' in workspace.run('--list')
    workspace.run('convert fvqa')
    assert (workspace / 'data/fvqa/1.0.0/records.jsonl').is_file()
    workspace.run('convert hr_mmsearch')
    assert (workspace / 'data/hr_mmsearch/1.0.0/records.jsonl').is_file()


@pytest.mark.commands('docs/build_benchmark.md', 'configs/build_benchmark.py', 'data.review')
def test_a_benchmark_is_built_and_reviewed(workspace):
    Image.effect_noise((320, 180), 60).save(workspace / 'a.png')
    item = {'id': 'a', 'image': 'a.png', 'question': 'What is the name of the shop?'}
    item |= {'box': [10, 10, 30, 30], 'answer': 'Cheshire'}
    bad = item | {'id': 'b', 'question': 'Is it Cheshire?'}
    (workspace / 'items.jsonl').write_text(f'{json.dumps(item)}\n{json.dumps(bad)}\n')
    size = {'benchmark.min_width': 320, 'benchmark.min_height': 180, 'benchmark.samples': 2}
    assert '1 of 2 items are sound' in workspace.run('configs/build_benchmark.py', size)
    folder = workspace / 'runs/mine/benchmark'
    assert json.loads((folder / 'candidates.jsonl').read_text())['difficulty'] in ('easy', 'hard')
    with workspace.served('data.review') as address:
        decision = {'id': 'a', 'verdict': 'accept'}
        requests.post(f'{address}/decisions', json=decision, timeout=60).raise_for_status()
    assert json.loads((folder / 'candidates.accepted.jsonl').read_text())['id'] == 'a'
