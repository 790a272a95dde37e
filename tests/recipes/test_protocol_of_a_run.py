"""The config's protocol and tools, in whatever a run writes, reads or scores."""

import runpy
from pathlib import Path

import pytest
from scripted_tools import ScriptedTools, noise_file

from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.observations import NO_RESULTS
from sensesearch_jax.agent.protocol import RELEASED
from sensesearch_jax.agent.trajectory import Observation, Question, SampleState, Trajectory, Turn
from sensesearch_jax.config.checks import check
from sensesearch_jax.recipes import cold_start
from sensesearch_jax.recipes.cold_start_results import gathered
from sensesearch_jax.recipes.session import Session, load_tokenizer
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir

CONFIGS = Path(__file__).parents[2] / 'configs'


def config_of(name, **agent):
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()
    config.agent.update(agent)
    return config


@pytest.fixture
def session_of(tmp_path):
    """A session of a config with scripted tools."""

    def make(config):
        workdir = Workdir.open(tmp_path / 'run', config.to_dict())
        return Session(
            config,
            workdir,
            ScriptedTools(),
            MetricWriter(workdir / 'metrics.jsonl'),
            make_mesh(config.mesh),
        )

    return make


@pytest.fixture
def looked_at(tmp_path):
    path = noise_file(tmp_path / 'a.png', 112, 84, 0)
    return Question(
        'q',
        'Which colour?',
        (path,),
        ('it',),
        category='perception',
        source='pocket',
        truth={'box': (0.42, 0.34, 0.46, 0.38)},
    )


@pytest.mark.parametrize('name', ['rl', 'evaluate', 'pocket'])
def test_a_well_formed_trajectory_of_the_released_protocol_has_format(session_of, looked_at, name):
    session = session_of(config_of(name, protocol='released'))
    told = Observation((NO_RESULTS,), True, 'text_search')
    moves = (TextSearch('a'), told), (ImageCrop((0.1, 0.2, 0.5, 0.75)), told), (Answer('it'), None)
    turns = [
        Turn([], [], RELEASED.render_action('t', action), action, seen, [])
        for action, seen in moves
    ]
    scored = session.scorer().score(
        Trajectory(looked_at, 0, 0, turns, SampleState.OK, [], [], {}, 'it')
    )
    assert scored.reward['format'] == 1 and scored.reward['accuracy'] == 1


def test_the_cold_start_keeps_what_the_expert_writes_under_the_released_protocol(
    session_of, looked_at, policy_folder
):
    session = session_of(config_of('cold_start', protocol='released'))
    chat = load_tokenizer(str(policy_folder), session.config)
    found = cold_start.demonstrate(session, chat, [looked_at], [], None)
    made = found[looked_at.id].trajectory
    assert '<thinking>' in made.turns[0].text
    assert gathered(session, found, [looked_at], [looked_at], [], {}) == [made]


def test_questions_that_need_a_tool_that_is_off_are_left_out(session_of, looked_at, capsys):
    config = config_of('cold_start', tools=('text_search', 'image_search'))
    searched = Question(
        's', 'Which capital?', (looked_at.images[0],), ('it',), category='search', source='pocket'
    )
    session = session_of(config)
    assert cold_start.demonstrable(session, [searched, looked_at]) == [looked_at]
    assert 'leaves out 1 of 2 questions' in capsys.readouterr().err
    with pytest.raises(ValueError, match='image_crop for search, which agent.tools leaves out'):
        cold_start.demonstrable(session, [searched])


def test_a_cold_start_without_anything_to_demonstrate_is_refused():
    config = config_of('cold_start', tools=('image_crop',))
    check(config)  # perception is left
    config.data.train = [s for s in config.data.train if s['category'] != 'perception']
    with pytest.raises(ValueError, match='nothing to demonstrate.*text_search'):
        check(config)
