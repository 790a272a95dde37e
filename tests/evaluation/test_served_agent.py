"""A served model as the agent: the policy's environment, limits and scorer, and honest failures."""

import threading

import pytest
from chat_stand_in import chat_stand_in
from evaluated import question
from scripted_tools import DOWN, ScriptedTools, noise_file

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.openai_model import OpenAIAgent, OpenAIModel, ServedModel
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.trajectory import SampleState
from sensesearch_jax.evaluation.modes import mode_environment, mode_scorer
from sensesearch_jax.evaluation.served_agent import Conditions, play, play_all
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.scheduler import RolloutLimits

CALL = (
    '<think>look</think>\n<tool_call>\n{"name": "text_search", "arguments": {"query": "a city"}}\n'
)
ANSWER = '<think>so</think>\n<answer>Paris</answer>'


@pytest.fixture
def service():
    with chat_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def asked(tmp_path):
    return question(1, images=(noise_file(tmp_path / 'a.png', 320, 240, 1),))


def agent_of(service, environment, attempts=1):
    server = ServedModel(service.url, 'gpt-4o', '', 5.0, attempts, 0.0, 2.5, 10.0)
    model = OpenAIModel(server, 4)
    return OpenAIAgent(model, environment.client.image, environment.system_prompt, 0.0, 512)


def environment_of(tools, mode='agent'):
    whole = Environment(tools, DEFAULT, TOOLS, ObservationLimits(2, 2))
    return mode_environment(mode, whole)


def test_it_calls_the_run_s_tools_and_answers(service, asked):
    service.replies = [CALL, ANSWER]
    environment = environment_of(ScriptedTools())
    trajectory = play(asked, agent_of(service, environment), environment, RolloutLimits(5, 512), 0)
    assert trajectory.state is SampleState.OK and trajectory.answer == 'Paris'
    assert [turn.observation is not None for turn in trajectory.turns] == [True, False]
    first, second = (request.body['messages'] for request in service.requests)
    assert first[0] == {'role': 'system', 'content': environment.system_prompt}
    assert [part['type'] for part in first[1]['content']] == ['image_url', 'text']
    assert second[:2] == first and 'Title 0 of a city' in str(second[3])


def test_a_malformed_turn_is_observed_and_counts(service, asked):
    service.replies = ['no tags', 'still none', ANSWER]
    environment = environment_of(ScriptedTools())
    agent = agent_of(service, environment)
    assert play(asked, agent, environment, RolloutLimits(5, 512, 3), 0).answer == 'Paris'
    service.replies = ['no tags', 'still none', ANSWER]
    stopped = play(asked, agent, environment, RolloutLimits(5, 512, 2), 0)
    assert stopped.state is SampleState.TRUNCATED and len(stopped.turns) == 2


def test_turns_run_out(service, asked):
    service.replies = [CALL] * 3
    environment = environment_of(ScriptedTools())
    trajectory = play(asked, agent_of(service, environment), environment, RolloutLimits(3, 512), 0)
    assert trajectory.state is SampleState.TRUNCATED and len(trajectory.turns) == 3


@pytest.mark.parametrize('method', ['upload', 'text_search'])
def test_tools_that_fail_are_not_the_model_s_fault(service, asked, method):
    service.replies = [CALL, ANSWER]
    tools = ScriptedTools(fails=lambda called, what: DOWN if called == method else None)
    environment = environment_of(tools)
    trajectory = play(asked, agent_of(service, environment), environment, RolloutLimits(5, 512), 0)
    assert trajectory.state is SampleState.INFRA_FAILED and trajectory.failure


def test_a_server_that_fails_is_not_the_model_s_fault_either(service, asked):
    service.replies = [500]
    environment = environment_of(ScriptedTools())
    trajectory = play(asked, agent_of(service, environment), environment, RolloutLimits(5, 512), 0)
    assert trajectory.state is SampleState.INFRA_FAILED and 'status 500' in trajectory.failure


def test_direct_is_one_turn_and_rag_has_its_search_in_the_prompt(service, asked):
    for mode, images in (('direct', 1), ('rag', 3)):
        service.requests.clear()
        service.replies = ['Paris']
        environment = environment_of(ScriptedTools(), mode)
        scorer = mode_scorer(mode, Scorer(DEFAULT, None, {}, 0.5, 0.0))
        done = []
        conditions = Conditions(1, environment, RolloutLimits(1, 512), scorer, done.append)
        play_all([(asked, 0)], agent_of(service, environment), conditions, 1)
        (trajectory,), (request,) = done, service.requests
        assert trajectory.state is SampleState.OK and trajectory.reward['accuracy'] == 1
        assert str(request.body['messages'][1]).count("'image_url':") == images
        assert len(trajectory.images) == images and len(trajectory.own_images) == 1


def test_samples_are_played_side_by_side_and_noted_one_at_a_time(service, asked):
    service.replies = lambda request: ANSWER
    environment = environment_of(ScriptedTools())
    scorer = Scorer(DEFAULT, None, {}, 0.5, 0.0)
    inside, done = threading.Lock(), []

    def note(trajectory):
        assert inside.acquire(blocking=False)
        done.append(trajectory.member)
        inside.release()

    agent = agent_of(service, environment)
    samples = [(asked, member) for member in range(12)]
    conditions = Conditions(12, environment, RolloutLimits(5, 512), scorer, note)
    play_all(samples, agent, conditions, 4)
    assert sorted(done) == list(range(12))


def test_what_cannot_be_kept_ends_the_asking(service, asked):
    service.replies = lambda request: ANSWER
    environment = environment_of(ScriptedTools())

    def full(trajectory):
        raise OSError('no space')

    samples = [(asked, member) for member in range(50)]
    scorer = Scorer(DEFAULT, None, {}, 0.5, 0.0)
    conditions = Conditions(50, environment, RolloutLimits(5, 512), scorer, full)
    with pytest.raises(OSError, match='no space'):
        play_all(samples, agent_of(service, environment), conditions, 2)
    assert len(service.requests) < 10
