"""Workdirs and inputs in an object store: one in memory, and one that speaks S3."""

import json
import os
import time

import fsspec
import pytest
from stores import STORES

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime import storage
from sensesearch_jax.runtime.storage import Mirror, local_input, local_workdir

ADDRESS = 'memory://bucket/run'


@pytest.fixture
def store(monkeypatch):
    """An empty store in memory; nothing is pushed but by `push` and at the end."""
    monkeypatch.setattr(storage, 'PUSH_S', 1000.0)
    store = fsspec.filesystem('memory')
    store.store.clear()
    return store


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace('__', '/').replace('_json', '.json')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def there(store):
    return sorted(name.removeprefix('/bucket/run/') for name in store.find('/bucket/run'))


def test_what_is_written_is_there_for_the_next_machine(store, tmp_path):
    with Mirror(ADDRESS, tmp_path / 'one') as mirror:
        write(mirror.folder, metrics='1\n', rl__trajectories__first='a', gone='x')
        mirror.push()
        (mirror.folder / 'gone').unlink()
        with open(mirror.folder / 'metrics', 'a') as file:
            file.write('2\n')
        write(mirror.folder, stages__run_json='{}')
        (mirror.folder / '.metrics.1.2.tmp').write_text('half')
    assert there(store) == ['.lock', 'metrics', 'rl/trajectories/first', 'stages/run.json']
    with Mirror(ADDRESS, tmp_path / 'two') as mirror:
        assert (mirror.folder / 'metrics').read_text() == '1\n2\n'
        assert names(mirror.folder) == ['metrics', 'rl/trajectories/first', 'stages/run.json']


def test_the_folder_of_an_earlier_start_gives_way_to_the_store(store, tmp_path):
    with Mirror(ADDRESS, tmp_path) as mirror:
        write(mirror.folder, kept='1')
    write(tmp_path, kept='never uploaded', more='nor this')
    with Mirror(ADDRESS, tmp_path) as mirror:
        assert names(tmp_path) == ['kept'] and (tmp_path / 'kept').read_text() == '1'


def test_what_vouches_for_others_comes_after_them(store, tmp_path, monkeypatch):
    order = []
    upload = Mirror._upload
    monkeypatch.setattr(
        Mirror, '_upload', lambda self, name: order.append(name) or upload(self, name)
    )
    with Mirror(ADDRESS, tmp_path) as mirror:
        write(
            mirror.folder,
            stages__rl_json='{}',
            rl__checkpoints__5___CHECKPOINT_METADATA='{}',
            rl__checkpoints__5__arrays__data='x',
            metrics='1',
        )
        (mirror.folder / 'rl/policy').mkdir()
        (mirror.folder / 'rl/policy/model.safetensors').write_text('w')
        (mirror.folder / 'rl/policy/config.json').write_text('{}')
    assert order[-3:] == [
        'rl/policy/model.safetensors', 'rl/checkpoints/5/_CHECKPOINT_METADATA', 'stages/rl.json',
    ]  # fmt: skip
    assert len(order) == 6


def test_a_checkpoint_that_is_there_in_part_is_none(store, tmp_path):
    with Mirror(ADDRESS, tmp_path) as mirror:
        for step in (2, 4):
            write(mirror.folder, **{f'rl__checkpoints__{step}___CHECKPOINT_METADATA': '{}'})
            write(mirror.folder, **{f'rl__checkpoints__{step}__data': 'x'})
        for step in (0, 1, 2):
            write(mirror.folder, **{f'rl__trajectories__0000{step}.jsonl': '{}\n'})
    store.rm_file('/bucket/run/rl/checkpoints/4/_CHECKPOINT_METADATA')
    with Mirror(ADDRESS, tmp_path) as mirror:
        assert names(tmp_path / 'rl') == [
            'checkpoints/2/_CHECKPOINT_METADATA', 'checkpoints/2/data',
            'trajectories/00001.jsonl', 'trajectories/00002.jsonl',
        ]  # fmt: skip
    assert 'rl/checkpoints/4/data' not in there(store)
    assert 'rl/trajectories/00000.jsonl' in there(store)  # not fetched, and not deleted


def test_nothing_is_deleted_while_what_takes_its_place_is_not_there(store, tmp_path, monkeypatch):
    with Mirror(ADDRESS, tmp_path) as mirror:
        write(mirror.folder, old='1')
        mirror.push()
        (mirror.folder / 'old').unlink()
        write(mirror.folder, newer='2')
        upload = Mirror._upload

        def gone(self, name):
            (self.folder / name).unlink()
            return upload(self, name)

        monkeypatch.setattr(Mirror, '_upload', gone)
        mirror.push()
        assert 'old' in there(store)
        monkeypatch.setattr(Mirror, '_upload', upload)
        mirror.push()
        assert 'old' not in there(store)


def test_one_process_at_a_time(store, tmp_path):
    def claim(**changes):
        holder = {'pid': 1, 'host': 'elsewhere', 'started': 1, 'time': time.time()} | changes
        store.pipe_file('/bucket/run/.lock', json.dumps(holder).encode())

    claim()
    with pytest.raises(UserError, match='in use by process 1 on elsewhere, alive 0 s ago'):
        Mirror(ADDRESS, tmp_path)
    claim(time=time.time() - 1000)
    Mirror(ADDRESS, tmp_path).close()
    claim(host=storage.own_claim()['host'], pid=os.getppid(), started=None)
    with pytest.raises(UserError, match=f'in use by process {os.getppid()} on'):
        Mirror(ADDRESS, tmp_path)
    claim(host=storage.own_claim()['host'], pid=2**22 + 1)  # there is no such process
    Mirror(ADDRESS, tmp_path).close()
    assert store.cat_file('/bucket/run/.lock') == b''


def test_a_store_that_is_away_is_told_of(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, 'PUSH_S', 0.01)
    mirror = Mirror(ADDRESS, tmp_path)
    upload = Mirror._upload

    def away(self, name):
        raise ConnectionError('no route')

    monkeypatch.setattr(Mirror, '_upload', away)
    write(mirror.folder, metrics='1')
    said = ''
    while 'is tried again in' not in said:
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert 'no route' in said
    with pytest.raises(UserError, match='cannot be reached: ConnectionError: no route'):
        mirror.close()
    monkeypatch.setattr(Mirror, '_upload', upload)
    mirror.close()
    assert 'metrics' in there(store)


def test_inputs_are_fetched_once_and_again_when_they_change(store, tmp_path):
    store.pipe({'/bucket/policy/config.json': b'{}', '/bucket/policy/old': b'1'})
    folder = local_input('memory://bucket/policy', str(tmp_path))
    assert sorted(os.listdir(folder)) == ['.fetched.json', '.lock', 'config.json', 'old']
    store.rm_file('/bucket/policy/old')
    store.pipe({'/bucket/policy/config.json': b'{"more": 1}'})
    assert local_input('memory://bucket/policy', str(tmp_path)) == folder
    assert sorted(os.listdir(folder)) == ['.fetched.json', '.lock', 'config.json']
    with open(f'{folder}/config.json') as file:
        assert json.load(file) == {'more': 1}
    store.pipe({'/bucket/kept.jsonl': b'[]'})
    with open(local_input('memory://bucket/kept.jsonl', str(tmp_path))) as file:
        assert file.read() == '[]'
    assert local_input('runs/policy', str(tmp_path)) == 'runs/policy'
    with pytest.raises(UserError, match='There is nothing at memory://bucket/none'):
        local_input('memory://bucket/none', str(tmp_path))


@pytest.mark.parametrize('scheme', STORES)
def test_a_store_that_is_served(scheme, tmp_path, monkeypatch):
    with STORES[scheme]() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
        store.mkdir('bucket')
        with local_workdir(f'{scheme}://bucket/run', str(tmp_path)) as path:
            with open(f'{path}/metrics.jsonl', 'w') as file:
                file.write('1\n')
            os.makedirs(f'{path}/rl/policy')
            with open(f'{path}/rl/policy/model.safetensors', 'wb') as file:
                file.write(b'x' * 3_000_000)
        with open(f'{path}/metrics.jsonl', 'w') as file:
            file.write('only here')
        with local_workdir(f'{scheme}://bucket/run', str(tmp_path)) as path:
            assert open(f'{path}/metrics.jsonl').read() == '1\n'
            os.remove(f'{path}/metrics.jsonl')
        store.invalidate_cache()
        left = ['bucket/run/.lock', 'bucket/run/rl/policy/model.safetensors']
        assert sorted(store.find('bucket')) == left
        policy = local_input(f'{scheme}://bucket/run/rl/policy', str(tmp_path))
        assert os.path.getsize(f'{policy}/model.safetensors') == 3_000_000
        with pytest.raises(UserError, match=f'{scheme}://nowhere/policy cannot be reached: '):
            local_input(f'{scheme}://nowhere/policy', str(tmp_path))
