"""Journals: whole lines alone survive, whatever tore the last one."""

import threading

import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.journal import Journal


def values(path):
    with Journal(path) as journal:
        return list(journal)


@pytest.mark.parametrize('torn', [b'', b'{"a": 2', b'\x00\x00\x00\n', b'{"a": 2}\n{'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / 'folder' / 'j.jsonl'
    with Journal(path) as journal:
        journal.append({'a': 'é \ud800'}, sync=True)
    with open(path, 'ab') as file:
        file.write(torn)
    kept = [{'a': 'é \ud800'}] + ([{'a': 2}] if torn.startswith(b'{"a": 2}') else [])
    assert values(path) == kept
    with Journal(path) as journal:
        journal.append({'a': 3}, sync=False)
    assert values(path) == [*kept, {'a': 3}]


def test_a_spoilt_line_in_the_middle_is_said(tmp_path):
    (tmp_path / 'j').write_text('{}\nnonsense\n{}\n')
    with pytest.raises(UserError, match='Line 2 of .*j is no JSON'):
        values(tmp_path / 'j')


def test_threads_share_it(tmp_path):
    with Journal(tmp_path / 'j') as journal:
        threads = [
            threading.Thread(target=lambda i=i: [journal.append({'i': i}, True) for _ in range(20)])
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(v['i'] for v in values(tmp_path / 'j')) == sorted(list(range(8)) * 20)
