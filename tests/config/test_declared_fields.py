"""The declared fields: those of the shipped configs, with their types, and nothing beside them."""

import runpy
from pathlib import Path

import pytest
import yaml
from ml_collections import ConfigDict

from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.config.__main__ import main
from sensesearch_jax.config.fields import FIELDS, SOURCES, check_types, leaves
from sensesearch_jax.errors import UserError
from sensesearch_jax.pocket.world.observation_limits import LIMITS

CONFIGS = Path(__file__).parents[2] / 'configs'
# base.py documents its own fields; common.py and common_7b.py hold what the others share; a sweep has the configs of
# several tasks (tests/sweep).
NAMES = sorted(
    {file.stem for file in CONFIGS.glob('*.py') if not file.stem.startswith('sweep_')}
    - {'base', 'common', 'common_7b'}
)


def config_of(name):
    return runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()


def kind(field, value):
    """The declared type of a value: a part is a dict, a list a tuple; sources may be a text too."""
    if field in SOURCES and isinstance(value, str):
        return tuple
    return {ConfigDict: dict, list: tuple}.get(type(value), type(value))


@pytest.mark.parametrize('name', NAMES)
def test_each_field_of_a_shipped_config_is_declared_with_its_type(name):
    fields = dict(leaves(config_of(name)))
    assert {field: kind(field, value) for field, value in fields.items()} == {
        field: FIELDS[field].type for field in fields if field in FIELDS
    }
    check_types(config_of(name))


@pytest.mark.parametrize('name', NAMES)
def test_no_shipped_config_cuts_what_its_search_chose_to_show(name):
    config = config_of(name)
    if 'agent' in config and config.tools.config:
        tools = yaml.safe_load((CONFIGS.parent / config.tools.config).read_text())
        chosen = tools['text_search'].get('max_chars', 1500)  # the default of those that are online
        assert config.agent.passage_chars >= chosen


def test_lessons_and_trials_of_the_pocket_policy_show_as_much_as_its_runs():
    agent = config_of('pocket').agent
    shown = {name: agent[name] for name in ('text_results', 'image_results', 'passage_chars')}
    assert ObservationLimits(**shown) == LIMITS


def test_each_declared_field_is_in_a_shipped_config():
    assert {field for name in NAMES for field, _ in leaves(config_of(name))} == set(FIELDS)


@pytest.mark.parametrize('name', sorted(FIELDS))
def test_a_value_of_another_type_is_refused_with_the_field_s_name(name):
    (holder,) = [c for c in map(config_of, NAMES) if name in dict(leaves(c))][:1]
    *parts, last = name.split('.')
    part = holder
    for inner in parts:
        part = part[inner]
    with holder.ignore_type():
        part[last] = 1.5 if FIELDS[name].type is not float else 'fast'
    with pytest.raises(UserError, match=f'^{name} is .*; give a value of type'):
        check_types(holder)


def test_an_unknown_field_is_refused_with_the_command_that_lists_all():
    config = config_of('rl')
    with config.unlocked():
        config.rl.nonsense = 1
    with pytest.raises(UserError, match=r'unknown field rl\.nonsense; `python -m sensesearch_jax'):
        check_types(config)


def test_the_command_lists_each_field_once_with_its_type_and_meaning(capsys):
    main()
    text = capsys.readouterr().out
    lines = [line.split(maxsplit=2) for line in text.split('\n\n', 1)[1].splitlines() if line]
    assert [line[0].removesuffix('*') for line in lines] == list(FIELDS)
    assert [line[0].endswith('*') for line in lines] == [not f.pins for f in FIELDS.values()]
    assert [line[1:] for line in lines] == [[f.type.__name__, f.meaning] for f in FIELDS.values()]
    assert max(map(len, text.splitlines())) <= 120
