"""A small engine, empty stores of features and rollouts of four questions about made-up pictures."""

import pytest
from acts_by_chance import MEMBERS, PREPROCESSOR, TURN_TOKENS, ScriptedEnvironment, by_chance
from scripted_tools import ScriptedTools, noise_file
from small_policies import small_policy

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.scheduler import RolloutLimits, Stream
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore

TEXT = 'system user assistant tool_response What is it? 1. Title 1 of query: query is number 1. Match Image: '


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('policy')
    train_tokenizer([TEXT] * 9, folder, 400)
    return ChatTokenizer(folder, PREPROCESSOR.merged_tokens)


@pytest.fixture(scope='module')
def policy(chat, request):
    """Of the first family, or of those that a module names."""
    return small_policy(
        chat.vocab_size,
        image_token=chat.image_pad,
        vision_start=chat.vision_start,
        vision_end=chat.vision_end,
        video=chat.tokenizer.token_to_id('<|video_pad|>'),
        stop=chat.im_end,
        family=getattr(request, 'param', None),
    )


@pytest.fixture(scope='module')
def engine(policy, chat):
    """Compiled once; what a rollout leaves in it does not matter to the next one."""
    return Engine(
        policy,
        groups=2,
        members=MEMBERS,
        prompt_capacity=128,
        suffix_capacity=512,
        chunk=5,
        stop=chat.stop_ids,
        suppressed=chat.suppressed_ids,
    )


@pytest.fixture(scope='module')
def store_for(policy):
    """Empty stores by their client, with the programs of one."""
    first = FeatureStore(policy, PREPROCESSOR, None, capacity_bytes=1 << 30, batch=2)

    def make(client, **options):
        store = FeatureStore(
            policy, PREPROCESSOR, client, **{'batch': 2, 'capacity_bytes': 1 << 30} | options
        )
        store._towers = first._towers
        return store

    return make


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    sizes = [(112, 84), (84, 56), (140, 60), (56, 56)]
    return [
        Question(
            f'q{i}',
            f'What is {i}?',
            (noise_file(folder / f'{i}.png', *size, i),),
            ('it',),
            category='search',
            difficulty='1',
        )
        for i, size in enumerate(sizes)
    ]


@pytest.fixture(scope='module')
def run(chat, engine, store_for, questions):
    """Runs a rollout of the questions, on so many engines or those given; returns its groups, its
    events, the store and the cost."""

    def run(
        client,
        act=by_chance,
        max_turns=4,
        asked=questions,
        tool_threads=8,
        max_malformed=0,
        engines=1,
        scorer=None,
        judge_threads=8,
        store=store_for,
        at_first=0,
        enough=lambda group: True,
        **hooks,
    ):
        features = store(client)
        if isinstance(engines, int):
            engines = [engine, *(engine.twin() for _ in range(engines - 1))]
        events = {'group': [], 'turn': []}
        seeds = {q.id: tuple(1000 * int(q.id[1:]) + g for g in range(MEMBERS)) for q in asked}
        tasks = [Task(q, seeds[q.id], at_first) for q in asked]

        def on_group(group):
            events['group'].append(group)
            hooks.get('on_group', lambda group: None)(group)

        def on_turn(trajectory, turn):
            events['turn'].append(id(turn))

        stream = Stream(
            engines,
            chat,
            ScriptedEnvironment(client, act),
            features,
            RolloutLimits(max_turns, TURN_TOKENS, max_malformed),
            tool_threads=tool_threads,
            judge_threads=judge_threads,
            on_turn=on_turn,
            enough=enough,
        )
        groups, cost = stream.sample(tasks, scorer, on_group)
        return groups, events, features, cost

    return run


@pytest.fixture(scope='module')
def plain(run):
    """The rollout that the others are compared with: tools that answer at once."""
    return run(ScriptedTools())
