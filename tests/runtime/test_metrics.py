"""Metrics files: readable at any moment, repaired after a kill, cut back on resume."""

import json
import math
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from sensesearch_jax.runtime.metrics import MetricWriter, memory_use, read_metrics


def test_lines_can_be_read_at_once(tmp_path):
    with MetricWriter(tmp_path / 'm.jsonl') as writer:
        writer.write(
            'sft',
            1,
            {'loss': jnp.float32(0.5), 'tokens': np.int64(7), 'note': 'x', 'ok': np.bool_(True)},
        )
        (record,) = read_metrics(tmp_path / 'm.jsonl')
        writer.write('rl', 1, {'loss': math.nan, 'ratio': np.float32(np.inf)})
    assert (record['step'], record['stage']) == (1, 'sft') and record['time'] > 1.7e9
    assert record['values'] == {'loss': 0.5, 'tokens': 7, 'note': 'x', 'ok': True}
    lines = (tmp_path / 'm.jsonl').read_text().splitlines()
    assert json.loads(lines[1])['values'] == {'loss': None, 'ratio': None}
    (rl,) = read_metrics(tmp_path / 'm.jsonl', stage='rl')
    assert math.isnan(rl['values']['loss'])


def test_values_that_are_no_numbers_are_refused(tmp_path):
    with MetricWriter(tmp_path / 'm.jsonl') as writer:
        for value in ([1], None, jnp.ones(2), object()):
            with pytest.raises(ValueError, match='Metric loss must be a number or a string'):
                writer.write('sft', 1, {'loss': value})
    assert read_metrics(tmp_path / 'm.jsonl') == []


@pytest.mark.parametrize('torn', [b'{"step": 3, "sta', b'\x00\x00\x00', b'{"step": 3}\n', b'\n'])
def test_a_torn_last_line_is_skipped_and_repaired(tmp_path, torn):
    file = tmp_path / 'm.jsonl'
    with MetricWriter(file) as writer:
        writer.write('sft', 1, {'a': 1})
        writer.write('sft', 2, {'a': 2})
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert [r['step'] for r in read_metrics(file)] == [1, 2]
    with MetricWriter(file) as writer:
        writer.write('sft', 3, {'a': 3})
    assert file.read_bytes().startswith(whole)
    assert [r['step'] for r in read_metrics(file)] == [1, 2, 3]


def test_every_cut_of_a_file_can_be_read_and_continued(tmp_path):
    file = tmp_path / 'm.jsonl'
    with MetricWriter(file) as writer:
        for step in range(3):
            writer.write('sft', step, {'a': step})
    whole = file.read_bytes()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        complete = whole[:length].count(b'\n')
        assert len(read_metrics(file)) == complete
        MetricWriter(file).close()
        assert file.read_bytes().count(b'\n') == complete


def test_damage_in_the_middle_is_not_hidden(tmp_path):
    file = tmp_path / 'm.jsonl'
    with MetricWriter(file) as writer:
        for step in range(3):
            writer.write('sft', step, {})
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b'junk\n' + lines[2])
    for act in (read_metrics, MetricWriter):
        with pytest.raises(ValueError, match='damaged in line 2'):
            act(file)


def test_resume_drops_what_will_be_written_again(tmp_path):
    file = tmp_path / 'm.jsonl'
    with MetricWriter(file) as writer:
        for stage, step in [('sft', 1), ('sft', 9), ('rl', 1), ('rl', 2), ('rl', 3)]:
            writer.write(stage, step, {'x': math.nan})
    with MetricWriter(file) as writer:
        assert writer.resume('rl', 1) == 2
        assert writer.resume('rl', 1) == 0
        writer.write('rl', 2, {'x': 1})
    assert [(r['stage'], r['step']) for r in read_metrics(file)] == [
        ('sft', 1),
        ('sft', 9),
        ('rl', 1),
        ('rl', 2),
    ]
    with MetricWriter(file) as writer:
        assert writer.resume('rl', -1) == 2


def test_threads_do_not_mix_their_lines(tmp_path):
    with MetricWriter(tmp_path / 'm.jsonl') as writer:
        threads = [
            threading.Thread(
                target=lambda i=i: [writer.write(str(i), s, {'x': 'y' * 500}) for s in range(50)]
            )
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_metrics(tmp_path / 'm.jsonl')) == 200


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / 'none.jsonl') == []


def test_memory_use():
    use = memory_use()
    assert 1 < use['memory_peak_mib'] < 1e6
    assert use.get('memory_mib', 2) > 1
