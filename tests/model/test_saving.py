"""A save that is killed at any file operation leaves the old policy, the new one, or a sentence."""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small_policies import small_policy

from sensesearch_jax.errors import UserError
from sensesearch_jax.model import safetensors_io
from sensesearch_jax.model.hf_checkpoint import load_policy, save_policy
from sensesearch_jax.model.saving import put_in_place, stage

EVENTS = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'save')
ONE_FILE, SHARDS, MORE_SHARDS = 1 << 30, 40_000, 20_000


class Killed(BaseException):
    """Nothing that the code could catch and clean up behind."""


class Disk:
    """Ends the process, as it were, before the file operation of a number, counted within a folder."""

    def __init__(self):
        self.left, self.folder = 0, ''
        # cannot be taken away again: without a number it does nothing
        sys.addaudithook(self.operation)

    def operation(self, event, arguments):
        if not self.left or event not in EVENTS or self.folder not in str(arguments[0]):
            return
        if event == 'open' and not (
            isinstance(arguments[1], str) and set(arguments[1]) & set('wxa+')
        ):
            return
        self.left -= 1
        if not self.left:
            raise Killed

    def save_file(self, save):
        """safetensors writes without Python's help: half of the file is there when it is killed."""

        def torn(values, path, metadata):
            save(values, path, metadata=metadata)
            try:
                self.operation('save', [path])
            except Killed:
                Path(path).write_bytes(Path(path).read_bytes()[:-100])
                raise

        return torn


DISK = Disk()


@pytest.fixture(scope='module')
def policies(tmp_path_factory):
    """Two policies of one shape, which differ in every tensor, in a size and in a file beside them."""
    found = []
    for seed in range(2):
        policy = small_policy(seed=seed)
        policy.sizes = dataclasses.replace(
            policy.sizes,
            language=dataclasses.replace(policy.sizes.language, rope_theta=1000.0 * (1 + seed)),
        )
        source = tmp_path_factory.mktemp('source')
        (source / 'special_tokens_map.json').write_text(str(seed))
        found.append((policy, source))
    return found


def which(folder, policies):
    """0 for the old policy, 1 for the new one; a directory that is neither in full fails."""
    loaded = load_policy(folder)
    seed = int((folder / 'special_tokens_map.json').read_text())
    expected, _ = policies[seed]
    assert loaded.sizes == expected.sizes

    def leaves(policy):
        return jax.tree.leaves(nnx.state(policy, nnx.Param))

    assert all(
        np.array_equal(one, other)
        for one, other in zip(leaves(loaded), leaves(expected), strict=True)
    )
    return seed


@pytest.mark.parametrize(
    'before, after',
    [
        (ONE_FILE, ONE_FILE),
        (SHARDS, SHARDS),
        (ONE_FILE, SHARDS),
        (SHARDS, ONE_FILE),
        (SHARDS, MORE_SHARDS),
    ],
)
def test_killed_at_every_file_operation(policies, tmp_path, monkeypatch, before, after):
    monkeypatch.setattr(safetensors_io, 'save_file', DISK.save_file(safetensors_io.save_file))
    (old, of_old), (new, of_new) = policies
    save_policy(old, tmp_path / 'old', of_old, shard_bytes=before)
    save_policy(new, tmp_path / 'new', of_new, shard_bytes=after)
    (tmp_path / 'old' / 'notes.txt').write_text('of the user')

    def content(folder):
        return {
            path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'notes.txt'
        }

    outcomes, killed = [], True
    while killed:
        folder = tmp_path / f'run-{len(outcomes)}'
        shutil.copytree(tmp_path / 'old', folder)
        DISK.folder, DISK.left = str(folder), len(outcomes) + 1
        try:
            save_policy(new, folder, of_new, shard_bytes=after)
        except Killed:
            pass
        killed, DISK.left = not DISK.left, 0
        try:
            outcomes.append(which(folder, policies))
        except UserError as error:
            assert 'interrupted; save the policy again' in str(error) and '\n' not in str(error)
            outcomes.append(None)
        save_policy(new, folder, of_new, shard_bytes=after)  # whoever is started again
        assert content(folder) == content(tmp_path / 'new') and (folder / 'notes.txt').is_file()
        shutil.rmtree(folder)
    # The old one until everything is on disk, the new one in the end, and for a few moments none.
    assert outcomes[0] == 0 and outcomes[-1] == 1 and len(outcomes) > 6
    assert outcomes == sorted(outcomes, key=lambda found: {0: 0, None: 1, 1: 2}[found])


def test_new_weights_alone_take_the_old_ones_place_at_once(policies, tmp_path, monkeypatch):
    """As a run saves the same policy again and again: no moment is without one."""
    (old, source), (new, _) = policies
    new = nnx.merge(nnx.graphdef(old), nnx.state(new))
    for policy in (old, new):
        save_policy(policy, tmp_path / 'run', source)
    seen, unlink = [], Path.unlink
    monkeypatch.setattr(
        Path,
        'unlink',
        lambda path, *how, **options: seen.append(path) or unlink(path, *how, **options),
    )
    save_policy(old, tmp_path / 'run', source)
    assert all(path.parent.name == '.saving' for path in seen)
    names = sorted(path.name for path in (tmp_path / 'run').iterdir())
    assert names == ['config.json', 'model.safetensors', 'special_tokens_map.json']


def test_what_the_new_policy_has_no_use_for_goes_with_the_old_weights(tmp_path):
    for name in ('model-00001-of-00002.safetensors', 'chat_template.json', 'notes.txt'):
        (tmp_path / name).write_text('old')
    staged = stage(tmp_path)
    for name in ('model.safetensors', 'config.json'):
        (staged / name).write_text('new')
    put_in_place(tmp_path, outdated=('chat_template.json', 'absent.json'))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        'model.safetensors': 'new',
        'config.json': 'new',
        'notes.txt': 'old',
    }
