"""The numerics tool finds the block that is wrong, and no other."""

import jax.numpy as jnp
from PIL import Image
from small_policies import quick_compilation

from experiments import numerics
from sensesearch_jax.policy.checkpoint import load_policy


def test_a_wrong_block_is_named(tmp_path, monkeypatch):
    """A decoder layer whose weights differ by a hundredth: wrong alone, and everything after it so far."""

    def bent(folder, dtype):
        policy = load_policy(folder, dtype)
        kernel = policy.language.layers.mlp.down.kernel
        kernel.set_value(kernel[...].at[3].multiply(jnp.asarray(1.01, dtype)))
        return policy

    numerics.random_policy(tmp_path)
    quick_compilation(monkeypatch)
    monkeypatch.setattr(numerics, 'load_policy', bent)
    rows, wrong = numerics.compare(tmp_path, Image.new('RGB', (120, 90), 'teal'))
    assert [sentence.split(':')[0] for sentence in wrong if 'alone' in sentence] == ['decoder 3']
    assert {s.split(':')[0] for s in wrong if 'so far' in s} == {'decoder 3', 'decoder 4', 'decoder 5', 'norm', 'logits'}
    assert list(rows)[:2] == ['patches', 'vision 0'] and max(row['so far'] for row in rows.values()) < 0.1
