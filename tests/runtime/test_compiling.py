"""Where compiled programs are kept."""

import jax
import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.compiling import (
    MIN_SECONDS,
    enable_compilation_cache,
    user_cache_folder,
)

FIELDS = (
    'jax_compilation_cache_dir',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """jax's, as if the environment said nothing of a cache; what they are now is put back
    afterwards."""
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    before = {name: getattr(jax.config, name) for name in FIELDS}
    jax.config.update('jax_compilation_cache_dir', None)
    yield lambda: [getattr(jax.config, name) for name in FIELDS]
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_field_decides(settings, tmp_path, monkeypatch):
    enable_compilation_cache('', tmp_path / 'of' / 'all')
    assert settings() == [str(tmp_path / 'of' / 'all'), True, MIN_SECONDS]
    enable_compilation_cache(str(tmp_path / 'own'), tmp_path / 'other')
    assert settings()[0] == str(tmp_path / 'own') and not (tmp_path / 'other').exists()
    monkeypatch.setenv('HOME', str(tmp_path))
    enable_compilation_cache('~/mine', tmp_path / 'other')
    assert settings()[0] == str(tmp_path / 'mine')
    enable_compilation_cache('none', tmp_path / 'other')
    assert settings()[1] is False and not (tmp_path / 'other').exists()


def test_the_environment_decides_where_the_field_does_not(settings, tmp_path, monkeypatch):
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'theirs'))
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
    before = settings()
    enable_compilation_cache('', tmp_path / 'other')
    assert settings() == before and not list(tmp_path.iterdir())
    enable_compilation_cache(str(tmp_path / 'own'), tmp_path / 'other')
    assert settings() == [str(tmp_path / 'own'), *before[1:]]


def test_a_folder_that_cannot_be_made(settings, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(
        UserError, match='compilation cache .*file/a cannot be made.*--config.compilation_cache=DIR'
    ):
        enable_compilation_cache(str(tmp_path / 'file' / 'a'), tmp_path)
    # which is no reason to end a run
    with pytest.warns(UserWarning, match='every start compiles anew'):
        enable_compilation_cache('', tmp_path / 'file' / 'b')
    assert settings()[0] is None


def test_the_users_cache_is_where_others_are(monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '/caches')
    assert str(user_cache_folder()) == '/caches/sensesearch_jax/compiled'
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert str(user_cache_folder()) == '~/.cache/sensesearch_jax/compiled'
