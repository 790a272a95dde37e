"""What commands of README, CONTRIBUTING, docs and the configs' docstrings name is there."""

import configparser
import importlib.util
import re

import pytest
from page_commands import CONFIGS, PAGES, ROOT, commands_of

from sensesearch_jax.config.fields import FIELDS
from sensesearch_jax.data.check import read_config

COMMANDS = {c.text: c for page in PAGES + CONFIGS for c in commands_of(page)}
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / 'setup.cfg')


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
