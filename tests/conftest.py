"""Makes the helpers in tests/shared importable for the tests of every room, and a CPU look like
eight devices.

Whatever is not told a mesh runs on the first of them alone. What one test compiled, the others take
from a cache, in pytest's other processes and in those that tests start, too.
"""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

# pytest's workers have it from the process that started them
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = tempfile.TemporaryDirectory()
    os.environ |= {
        'JAX_COMPILATION_CACHE_DIR': cache.name,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
    }

sys.path.append(str(Path(__file__).parent / 'shared'))
sys.path.append(str(Path(__file__).parents[1]))  # for experiments

import toy_runs

# The README's commands run with all that XLA can; tests are too small to feel it.
os.environ.setdefault('XLA_FLAGS', toy_runs.QUICK['XLA_FLAGS'])

import jax  # it reads the environment as it is imported
import pytest

jax.config.update('jax_num_cpu_devices', 8)

# Files of a minute and more. A file is one worker's: the last one must be short, or the other waits.
LONG = {
    'test_training_processes.py',
    'test_rl_processes.py',
    'test_other_processes.py',
    'test_parity.py',
    'test_7b_configs.py',
    'test_fields.py',
    'test_killed_sweep.py',
    'test_tpu_memory.py',
    'test_restart.py',
    'test_processes.py',
    'test_sharding.py',
    'test_trainer.py',
}


def pytest_collection_modifyitems(items):
    """Long files first, else as they were."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish():
    """Imported modules stay: the search for garbage after each file passes them by."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='module')
def programs_are_released():
    """Each compiled program holds memory maps, of which Linux gives a process 65,530; past them XLA
    crashes."""
    yield
    jax.clear_caches()
    gc.collect()


# In containers there is no room for a sandbox, and little shared memory.
CHROMIUM_ARGUMENTS = ['--no-sandbox', '--disable-dev-shm-usage']


@pytest.fixture
def page():
    """A page of a real browser."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    names = 'chromium', 'chromium-browser', 'google-chrome'
    chromium = next(filter(None, map(shutil.which, names)), '')
    if not chromium:
        pytest.skip('no Chromium is installed, and the page is looked at in a real browser')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={'width': 1280, 'height': 800})
        page.set_default_timeout(60_000)
        faults = []
        page.on('pageerror', lambda error: faults.append(str(error)))
        yield page
        browser.close()
        assert not faults


@pytest.fixture(scope='session')
def policy_folder(tmp_path_factory):
    """A tiny policy with random weights, in a Hugging Face directory like any other: one layer of width 32;
    pictures become at most 12 visual tokens."""
    from toy_policy import write_toy_policy  # only for those who want it

    folder = tmp_path_factory.mktemp('policy')
    write_toy_policy(folder)
    return folder
