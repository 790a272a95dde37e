"""Every command of README, CONTRIBUTING, docs and the configs' docstrings is run by CI, or says which machine
it needs.

Run are: the commands that a test of this folder names by `pytest.mark.commands`, as they are written, with
further fields that make them small; `pytest` with files, of which CI's own `pytest` runs every test that is not
slow; what `.ci/run` has, which reads the README's main line from where it stands; and what begins with
`pip install`, by anybody who sets up an environment: here its extras are looked up. All others say what they
need behind `Machine:` (CONTRIBUTING.md).
"""

import configparser
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from page_commands import CONFIGS, PAGES, ROOT, commands_of, find_command

from sensesearch_jax.config.fields import FIELDS
from sensesearch_jax.data.check import read_config

COMMANDS = {c.text: c for page in PAGES + CONFIGS for c in commands_of(page)}
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / 'setup.cfg')


def started_by_tests():
    """The commands that tests of this folder name."""
    return {
        find_command(mark.args[0], words).text
        for file in Path(__file__).parent.glob('test_*.py')
        for test in vars(importlib.import_module(f'{file.stem}')).values()
        for mark in getattr(test, 'pytestmark', ())
        if mark.name == 'commands'
        for words in mark.args[1:]
    }


def test_every_command_is_run_or_says_its_machine():
    ours, ci = started_by_tests(), (ROOT / '.ci' / 'run').read_text()
    left = [
        f'{c.page}: {c.text}'
        for page in PAGES + CONFIGS
        for c in commands_of(page)
        if not c.machine
        and c.text not in ours
        and not c.text.startswith('pip install ')
        and not (c.program == 'pytest' and '-m slow' not in c.text)
        and c.text != '.ci/run'
        and not all(part in ci for part in c.text.split(' && '))
    ]
    assert not left


@pytest.mark.parametrize('text', COMMANDS)
def test_a_command_names_what_there_is(text):
    for module in re.findall(r'python -m ([\w.]+\w)', text):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r'(?:[ =])((?:tests|configs)/[\w./]*\w)', text):
        assert (ROOT / file).exists(), file
    for extras in re.findall(r'\.\[([\w,]+)\]', text):
        assert set(extras.split(',')) <= set(EXTRAS['options.extras_require']), extras
    if file := re.search(r'--config=(configs/\w+\.py\S*)', text):
        fields = re.findall(r'--config\.[\w.]+=(?:"[^"]*"|\'[^\']*\'|\S)+', text)
        plain = [field.replace('"', '').replace("'", '"') for field in fields]
        read_config(str(ROOT / file[1]), plain)
    for file in re.findall(r'^pytest (?!-m slow).*?(tests/\S+\.py)', text):
        source = (ROOT / file).read_text()
        slow = len(re.findall(r'(?m)^@pytest\.mark\.slow$', source))
        assert source.count('\ndef test_') > slow, 'it would run no test: all are slow'
    for chosen in re.findall(r'pytest .*-k (\w+)', text):
        (file,) = re.findall(r'tests/\S+\.py', text)
        assert re.search(rf'def test_\w*{chosen}', (ROOT / file).read_text()), text


@pytest.mark.parametrize('page', PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_fields_that_a_page_names_are_some_config_s(page):
    parts = {name.rpartition('.')[0] for name in FIELDS}
    for name in re.findall(r'--config\.([a-z_0-9.]+\w)', page.read_text()):
        # of a sweep's chain, a field begins with its task
        _, _, behind_task = name.partition('.')
        assert name in FIELDS or name in parts or behind_task in FIELDS, name
