"""Results as lmms-eval and VLMEvalKit write them."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated import answered, question

from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.export import export
from sensesearch_jax.evaluation.result_files import write_rows
from sensesearch_jax.evaluation.results import result_row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workdir(tmp_path):
    options = {'choices': ('red', 'blue', 'green'), 'answers': ('blue',), 'category': 'single'}
    ts = [answered(question(i, 'hr_bench_4k', **options), 'ABC'[i], i == 1) for i in range(3)]
    ts += [
        answered(question(0, 'mmsearch'), said, member=m)
        for m, said in enumerate(['Paris', 'a\tb'])
    ]
    ts.append(answered(question(1, 'mmsearch'), None))
    write_rows(tmp_path, [result_row(t, 10, 2) for t in ts])
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lmms_eval_s_samples_and_results(workdir):
    files = {f.name: f for f in export(workdir, 'lmms_eval', workdir / 'out', 'rl')}
    assert list(files) == [
        'samples_hrbench4k.jsonl',
        'samples_mmsearch_end2end.jsonl',
        'results.json',
    ]
    first = lines(files['samples_hrbench4k.jsonl'])[0]
    assert {'doc_id', 'doc', 'target', 'arguments', 'resps', 'filtered_resps', 'doc_hash'} <= set(
        first
    )
    assert first['target'] == 'B' and first['doc']['A'] == 'red' and first['resps'] == [['A']]
    assert first['arguments'] == ['Which city is this?\nA. red\nB. blue\nC. green']
    sampled, unanswered = lines(files['samples_mmsearch_end2end.jsonl'])
    assert sampled['filtered_resps'] == ['Paris', 'a\tb'] and sampled['mmsearch_f1'] == 1
    assert unanswered['filtered_resps'] == ['']
    results = json.loads(files['results.json'].read_text())
    assert results['results']['hrbench4k']['hr_bench,none'] == pytest.approx(1 / 3)
    assert results['n-samples']['mmsearch_end2end'] == {'original': 2, 'effective': 2}


def test_vlmevalkit_s_table(workdir):
    files = {f.name: f for f in export(workdir, 'vlmevalkit', workdir / 'out', 'rl')}
    with open(files['rl_HRBench4K.tsv'], newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert list(rows[0])[:7] == ['index', 'id', 'question', 'A', 'B', 'C', 'answer']
    assert [row['prediction'] for row in rows] == ['A', 'B', 'C']
    assert {row['answer'] for row in rows} == {'B'} and [row['hit'] for row in rows] == list('010')
    with open(files['rl_mmsearch.tsv'], newline='') as file:
        assert [row['prediction'] for row in csv.DictReader(file, delimiter='\t')] == ['Paris', '']
    assert ('rl_mmsearch.xlsx' in files) == bool(importlib.util.find_spec('openpyxl'))


def test_the_command_ends_with_a_sentence():
    command = [sys.executable, '-m', 'sensesearch_jax.evaluation.export', str(ROOT)]
    missing = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert missing.returncode == 1 and 'give the workdir of an evaluation' in missing.stderr


def test_a_workdir_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match='give the workdir of an evaluation'):
        export(tmp_path, 'lmms_eval', tmp_path, 'rl')
