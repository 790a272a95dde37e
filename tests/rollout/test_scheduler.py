"""The scheduler with a random policy whose every turn is made an action: what is sampled is what is
kept."""

import dataclasses
import functools
import io
import threading
import time
import zlib

import numpy as np
import optax
import pytest
from PIL import Image
from scripted_tools import DOWN, ScriptedTools, noise_file
from small_policies import quick_compilation, small_policy

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS, ParsedTurn, user_text
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, SampleState, Turn
from sensesearch_jax.batching.from_trajectories import to_member, to_row
from sensesearch_jax.batching.group_batch import build_groups
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer
from sensesearch_jax.rewards.accuracy import client_judge
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.scheduler import RolloutLimits, rollout
from sensesearch_jax.rollout.task_queue import Task
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.training.trainer import Learner

PREPROCESSOR = Preprocessor(min_pixels=28 * 28, max_pixels=28 * 28 * 20)
MEMBERS, TURN_TOKENS = 3, 7
TEXT = 'system user assistant tool_response What is it? 1. Title 1 of query: query is number 1. Match Image: '


@pytest.fixture(autouse=True, scope='module')
def quick():
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_compilation(monkeypatch)
        yield


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('policy')
    train_tokenizer([TEXT] * 9, folder, 400)
    return ChatTokenizer(folder, PREPROCESSOR.merged_tokens)


@pytest.fixture(scope='module')
def policy(chat):
    return small_policy(
        chat.vocab_size,
        image_token=chat.image_pad,
        vision_start=chat.vision_start,
        vision_end=chat.vision_end,
        video=chat.tokenizer.token_to_id('<|video_pad|>'),
        stop=chat.im_end,
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
        store._encode = first._encode
        return store

    return make


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    sizes = [(112, 84), (84, 56), (140, 60), (56, 56)]
    return [
        Question(
            f'q{i}',
            'search',
            1,
            f'What is {i}?',
            noise_file(folder / f'{i}.png', *size, i),
            ('it',),
        )
        for i, size in enumerate(sizes)
    ]


def by_chance(text, answers=True):
    """An action that follows from the text that was sampled, so that a trajectory is its tokens'
    doing."""
    choice = zlib.crc32(text.encode())
    actions = [
        TextSearch(f'query {choice % 5}'),
        ImageSearch(1),
        ImageCrop((0.0, 0.0, 0.5, 0.5)),
        ImageCrop((0.25, 0.25, 1.0, 1.0), 2),
        FormatError('no_action', 'No action.'),
        Answer(f'{choice % 7}'),
    ]
    return actions[choice % (6 if answers else 5)]


class ScriptedEnvironment(Environment):
    """Takes each turn for what `act` says of its text."""

    def __init__(self, client, act=by_chance):
        super().__init__(client, DEFAULT, TOOLS, ObservationLimits(text_results=2, image_results=2))
        self.system_prompt, self.act = 'Act.', act

    def parse(self, text):
        return ParsedTurn('thought', self.act(text))


@pytest.fixture(scope='module')
def run(chat, engine, store_for, questions):
    """Runs a rollout of the questions; returns its groups, its events, the store and the cost."""

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
        **hooks,
    ):
        features = store_for(client)
        events = {'group': [], 'turn': []}
        tasks = [Task(q, tuple(1000 * int(q.id[1:]) + g for g in range(MEMBERS))) for q in asked]

        def on_group(group):
            events['group'].append(group)
            hooks.get('on_group', lambda group: None)(group)

        def on_turn(trajectory, turn):
            events['turn'].append(id(turn))

        groups, cost = rollout(
            tasks,
            [engine, *(engine.twin() for _ in range(engines - 1))],
            chat,
            ScriptedEnvironment(client, act),
            features,
            RolloutLimits(max_turns, TURN_TOKENS, max_malformed),
            scorer=scorer,
            tool_threads=tool_threads,
            judge_threads=judge_threads,
            on_group=on_group,
            on_turn=on_turn,
        )
        return groups, events, features, cost

    return run


@pytest.fixture(scope='module')
def plain(run):
    """The rollout that the others are compared with: tools that answer at once."""
    return run(ScriptedTools())


def essence(groups):
    """Everything of trajectories but clocks."""
    value = [[t.to_json() for t in group] for group in groups]
    for group in value:
        for trajectory in group:
            for turn in trajectory['turns']:
                turn['log_probs'] = None  # compared where they differ by rounding at most
                if turn['observation']:
                    turn['observation']['latency_s'] = 0
    return value


def test_every_kind_of_turn_occurs(plain):
    groups, events, _, cost = plain
    everyone = [t for group in groups for t in group]
    kinds = {type(turn.action) for t in everyone for turn in t.turns}
    assert kinds == {TextSearch, ImageSearch, ImageCrop, FormatError, Answer}
    assert {t.state for t in everyone} == {SampleState.OK, SampleState.TRUNCATED}
    assert any(
        turn.observation.kind == 'tool_error'
        for t in everyone
        for turn in t.turns
        if turn.observation
    )
    assert cost.sampled_tokens == sum(len(turn.tokens) for t in everyone for turn in t.turns)
    assert len(cost.turn_seconds) == sum(len(t.turns) for t in everyone)


def test_groups_come_back_in_order_and_are_told_once(plain, questions):
    groups, events, _, _ = plain
    assert [[(t.question.id, t.member, t.seed) for t in group] for group in groups] == [
        [(q.id, g, 1000 * i + g) for g in range(MEMBERS)] for i, q in enumerate(questions)
    ]
    assert sorted(map(id, events['group'])) == sorted(map(id, groups))
    assert sorted(events['turn']) == sorted(
        id(turn) for group in groups for t in group for turn in t.turns
    )


def test_an_answer_ends_a_trajectory_and_nothing_else_does(plain):
    for t in (t for group in plain[0] for t in group):
        for i, turn in enumerate(t.turns):
            last = i == len(t.turns) - 1
            assert isinstance(turn.action, Answer) <= last
            assert (turn.observation is None) == last == (turn.observation_tokens == [])
        assert (t.state is SampleState.OK) == isinstance(t.turns[-1].action, Answer)
        assert t.answer == (t.turns[-1].action.text if t.state is SampleState.OK else None)
        assert t.state is SampleState.OK or len(t.turns) == 4


def test_token_in_token_out(plain, chat, questions):
    """The member is the prompt's, the sampled and the observations' ids; text is only read off
    them."""
    for t in (t for group in plain[0] for t in group):
        assert t.prompt_tokens == chat.prompt('Act.', [t.images[0], user_text(t.question)])
        expected, own = [], []
        for turn in t.turns:
            assert 0 < len(turn.tokens) <= TURN_TOKENS
            assert len(turn.tokens) == len(turn.log_probs)
            assert not set(turn.tokens[:-1]) & set(chat.stop_ids)
            assert len(turn.tokens) == TURN_TOKENS or turn.tokens[-1] in chat.stop_ids
            assert not set(turn.tokens) & set(chat.suppressed_ids)
            assert turn.text == chat.turn_text(turn.tokens) and turn.action == by_chance(turn.text)
            after = (
                []
                if turn.observation is None
                else chat.observation(turn.observation.parts, turn.tokens[-1])
            )
            assert turn.observation_tokens == after
            expected += turn.tokens + after
            own += [True] * len(turn.tokens) + [False] * len(after)
        member = to_member(t)
        assert member.tokens == expected and member.response_mask == own
        shown = [part for turn in t.turns if turn.observation for part in turn.observation.parts]
        assert t.images[1:] == [part for part in shown if isinstance(part, ImageRef)]


def test_log_probs_are_the_trainers(plain, policy, chat):
    """Pictures, crops, thumbnails, turns and responses: the sampler saw what the trainer sees."""
    groups, _, features, _ = plain
    table = features.table(image for group in groups for t in group for image in t.images)
    batch = build_groups(
        [to_row(group) for group in groups],
        table,
        image_token=chat.image_pad,
        merge=2,
        members=MEMBERS,
    )
    mask = np.isin(np.arange(chat.vocab_size), chat.suppressed_ids)
    ours = np.asarray(Learner(policy, optax.sgd(0.1), suppressed=mask).log_probs(batch))
    own = batch.response_mask[:, :, 1:]
    assert own.sum() > 100 and len(table.grids) > 8
    assert np.abs(ours - batch.log_probs[:, :, 1:])[own].max() < 1e-4
    assert features.distinct_images == features.images_encoded == len(table.grids)


@pytest.mark.parametrize('seed', [1, 2])
def test_the_same_whatever_the_tools_delays(run, plain, seed):
    """Rows are refilled and lanes go on in another order; the trajectories do not care."""
    random, lock = np.random.default_rng(seed), threading.Lock()

    def delay(method, what):
        with lock:
            return float(random.choice([0, 0.002, 0.05]))

    groups, events, _, cost = run(ScriptedTools(delay), tool_threads=2 if seed == 1 else 8)
    assert essence(groups) == essence(plain[0])
    for ours, theirs in zip(sum(groups, []), sum(plain[0], []), strict=True):
        for one, other in zip(ours.turns, theirs.turns, strict=True):
            assert np.allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_the_same_from_engines_side_by_side(run, plain, questions, engine):
    """Two work through one queue; each group is told once, and nothing compiles again for the
    second."""
    compiled = engine.compiles
    threads = set()
    groups, events, features, cost = run(
        ScriptedTools(), engines=2, on_group=lambda group: threads.add(threading.current_thread())
    )
    assert len(threads) == 2 and engine.compiles <= compiled + 1
    assert essence(groups) == essence(plain[0])
    assert [id(g) for g in sorted(events['group'], key=lambda g: g[0].question.id)] == [
        id(g) for g in groups
    ]
    assert features.distinct_images == features.images_encoded
    assert (
        cost.sampled_tokens == plain[3].sampled_tokens
        and 0 <= cost.waiting_for_tools <= cost.seconds
    )


def test_an_engine_that_fails_ends_the_rollout(run):
    def broken(group):
        raise OSError('the disk is full')

    before = threading.active_count()
    with pytest.raises(OSError, match='disk is full'):
        run(ScriptedTools(), engines=2, on_group=broken)
    assert threading.active_count() <= before + 8  # tool threads that end by themselves


def test_a_failed_tool_ends_its_trajectory_only(run, plain):
    """The call's lane is out, with what failed in its last turn; all others are what they would
    have been."""
    query = next(
        turn.action
        for group in plain[0]
        for t in group
        for turn in t.turns
        if isinstance(turn.action, TextSearch) and turn.observation is not None
    )

    def wrong(method, what):
        return DOWN if (method, what) == ('text_search', query.query) else None

    tools = ScriptedTools(fails=wrong)
    groups, events, _, _ = run(tools)
    failed = 0
    for ours, theirs in zip(sum(groups, []), sum(plain[0], []), strict=True):
        hit = [
            i
            for i, turn in enumerate(theirs.turns)
            if turn.action == query and turn.observation is not None
        ]
        if not hit:
            assert essence([[ours]]) == essence([[theirs]])
            continue
        failed += 1
        assert (
            ours.state is SampleState.INFRA_FAILED
            and len(ours.turns) == hit[0] + 1
            and ours.answer is None
        )
        last = ours.turns[-1]
        assert last.observation.infra_failed and last.observation_tokens == []
        assert ours.images == theirs.images[: len(ours.images)]
        assert essence([[ours]])[0][0]['turns'][:-1] == essence([[theirs]])[0][0]['turns'][: hit[0]]
    assert 0 < failed < 12
    assert (
        len(events['turn'])
        == len(set(events['turn']))
        == sum(len(t.turns) for group in groups for t in group)
    )


def test_a_mistake_of_the_policy_is_told_to_it(run):
    """A call that the server refuses as the caller's fault goes on with the message as its
    observation."""
    wrong = ToolFailure('caller', 'the box is too small')
    groups, *_ = run(ScriptedTools(fails=lambda method, what: wrong if method == 'crop' else None))
    told = [
        turn
        for group in groups
        for t in group
        for turn in t.turns
        if isinstance(turn.action, ImageCrop) and turn.action.image_index == 1 and turn.observation
    ]
    assert told and all(turn.observation.parts == ('the box is too small',) for turn in told)
    assert not any(t.state is SampleState.INFRA_FAILED for group in groups for t in group)


def test_a_picture_that_is_gone_fails_its_trajectory(run, questions):
    """The crop was answered, but its file cannot be fetched, or is no picture."""
    for broken in (DOWN, b'no picture'):
        client = ScriptedTools()
        # The questions' own pictures are fetched first; nothing that comes later is.
        client.fails = lambda method, what, client=client: (
            broken if method == 'image' and sum(m == 'crop' for m, _ in client.calls) else None
        )
        groups, *_ = run(
            client,
            act=lambda text: ImageCrop((0.0, 0.0, 0.5, 0.5)),
            max_turns=2,
            asked=questions[:1],
        )
        for t in (t for group in groups for t in group):
            assert t.state is SampleState.INFRA_FAILED and len(t.turns) == 1
            assert t.turns[0].observation.infra_failed and len(t.images) == 1


def test_a_question_whose_picture_cannot_be_uploaded(run, questions):
    """Its group is told as failed, without prompt and turns; the others run."""
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('upload', '1.png') else None
    )
    groups, events, *_ = run(tools)
    assert len(events['group']) == 4
    for t in groups[1]:
        assert (t.state, t.turns, t.prompt_tokens, t.images) == (
            SampleState.INFRA_FAILED,
            [],
            [],
            [],
        )
    assert [t.member for t in groups[1]] == list(range(MEMBERS))
    assert all(t.turns for i in (0, 2, 3) for t in groups[i])


def test_truncation_by_turns(run, questions):
    groups, *_ = run(ScriptedTools(), act=functools.partial(by_chance, answers=False), max_turns=2)
    for t in (t for group in groups for t in group):
        assert t.state is SampleState.TRUNCATED and len(t.turns) == 2
        assert (
            t.turns[0].observation is not None
            and t.turns[1].observation is None
            and t.answer is None
        )


def test_malformed_turns_in_a_row_end_a_trajectory():
    """Other turns between them start the count anew; 0 means that none of them ends anything."""
    wrong, right = (
        Turn([], [], '', action, None, []) for action in (FormatError('x', 'x'), ImageSearch(1))
    )
    limits = RolloutLimits(max_turns=6, turn_tokens=8, max_malformed=2)
    assert limits.reached([right, wrong, wrong]) and limits.reached([wrong, wrong])
    assert not any(
        map(limits.reached, ([wrong], [wrong, right, wrong], [wrong, wrong, right], [right] * 5))
    )
    assert limits.reached([right] * 6)
    assert not RolloutLimits(max_turns=6, turn_tokens=8).reached([wrong] * 5)


def test_a_policy_that_says_nothing_valid_is_cut_short(run, questions):
    groups, *_ = run(
        ScriptedTools(), act=lambda text: FormatError('no_action', 'No action.'), max_malformed=2
    )
    for t in (t for group in groups for t in group):
        assert t.state is SampleState.TRUNCATED and len(t.turns) == 2 and t.answer is None
        assert t.turns[0].observation is not None and t.turns[1].observation is None


def test_truncation_by_room_never_cuts_a_response(run, engine, chat, monkeypatch):
    """A trajectory ends before a response that does not fit, or in a turn that fills the last room."""
    capacity = 256 - engine.chunk  # of the sizes that are compiled already
    monkeypatch.setattr(engine, 'suffix_capacity', capacity)
    groups, *_ = run(ScriptedTools(), act=functools.partial(by_chance, answers=False), max_turns=50)
    ends = set()
    for t in (t for group in groups for t in group):
        assert t.state is SampleState.TRUNCATED and 1 < len(t.turns) < 50
        tokens = to_member(t).tokens
        assert len(tokens) <= capacity
        assert tokens.count(chat.image_pad) == sum(
            PREPROCESSOR.merged_tokens(image.width, image.height) for image in t.images[1:]
        )
        assert tokens.count(chat.vision_start) == tokens.count(chat.vision_end) == len(t.images) - 1
        last = t.turns[-1]
        assert last.observation is None and last.observation_tokens == []
        ends.add(len(tokens) == capacity)
        for turn in t.turns[:-1]:
            assert turn.observation_tokens == chat.observation(
                turn.observation.parts, turn.tokens[-1]
            )
    assert False in ends


def test_slow_tools_of_one_question_do_not_hold_up_the_others(run, questions):
    """Crops of the first picture are answered only when every other question is done."""
    tools, finished, done = ScriptedTools(), threading.Event(), []
    slow = tools.upload(questions[0].image).sha256

    def delay(method, what):
        if (method, what) == ('crop', slow):
            assert finished.wait(60), 'the other questions waited for this one'
        return 0.0

    def on_group(group):
        done.append(group[0].question.id)
        if len(done) == 3:
            finished.set()

    tools.delay = delay
    groups, _, _, cost = run(
        tools, act=lambda text: ImageCrop((0.0, 0.0, 0.5, 0.5)), max_turns=3, on_group=on_group
    )
    assert len(done) == 4 and done[-1] == 'q0'
    assert all(len(t.turns) == 3 for group in groups for t in group)
    assert 0 <= cost.waiting_for_tools <= cost.seconds


class SlowJudge:
    """Takes its time, and counts how many ask at a time."""

    def __init__(self, seconds=0.2, verdict=False):
        self.seconds, self.verdict, self.asked, self.now, self.most = seconds, verdict, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, question, answer, image):
        with self.lock:
            self.asked.append((question.id, answer))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return self.verdict


def scorer_of(judge):
    return Scorer(DEFAULT, judge, prices={}, format_weight=0.5, evidence_weight=0.0)


def test_a_slow_judge_is_asked_side_by_side_while_decoding_goes_on(run, plain, engine, monkeypatch):
    judge, meanwhile = SlowJudge(), []
    decode = engine.decode
    monkeypatch.setattr(
        engine, 'decode', lambda *lanes: (meanwhile.append(judge.now), decode(*lanes))[1]
    )
    told = []
    groups, events, _, cost = run(
        ScriptedTools(),
        scorer=scorer_of(judge),
        on_group=lambda g: told.append([t.state for t in g]),
    )
    answers = [(t.question.id, t.answer) for group in groups for t in group if t.answer is not None]
    assert len(answers) > 4 and sorted(judge.asked) == sorted(
        set(answers)
    )  # equal ones of a group once
    assert judge.most > 1 and any(meanwhile)
    assert (
        cost.seconds - cost.waiting_for_judge < len(judge.asked) * judge.seconds
        and cost.waiting_for_judge > 0
    )
    # Scored before they are told, and sampled as without a judge.
    assert sorted(map(id, events['group'])) == sorted(map(id, groups))
    assert all('total' in t.reward for group in groups for t in group) and len(told) == len(groups)
    assert [[t.turns[-1].tokens for t in g] for g in groups] == [
        [t.turns[-1].tokens for t in g] for g in plain[0]
    ]


def test_no_more_verdicts_are_asked_for_at_a_time_than_judge_threads(run):
    judge = SlowJudge(0.02)
    run(ScriptedTools(), scorer=scorer_of(judge), judge_threads=1, engines=2)
    assert judge.most == 1 and judge.asked


def test_a_judge_that_fails_makes_its_answers_unscorable_and_stops_nothing(run):
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('judge', 'What is 0?') else None
    )
    groups, *_ = run(tools, scorer=scorer_of(client_judge(tools)))
    for t in (t for group in groups for t in group):
        dead = t.question.id == 'q0' and t.answer is not None
        assert (t.state is SampleState.UNSCORABLE) == dead and t.reward['accuracy'] == 0
    assert any(t.state is SampleState.UNSCORABLE for t in groups[0])


def test_what_no_picture_could_be_had_for_is_scored_as_well(run):
    tools = ScriptedTools(
        fails=lambda method, what: DOWN if (method, what) == ('upload', '1.png') else None
    )
    groups, *_ = run(tools, scorer=scorer_of(None))
    assert [(t.state, t.reward['total']) for t in groups[1]] == [
        (SampleState.INFRA_FAILED, 0.0)
    ] * MEMBERS


def test_a_prompt_that_does_not_fit_fails_alone(run, plain, engine, questions, chat):
    """Without a look at its picture; the other questions run as ever, with one engine and with two."""
    long = dataclasses.replace(questions[1], text='What is it? ' * 60)
    tokens = len(chat.prompt('Act.', [plain[0][1][0].images[0], user_text(long)]))
    for engines in (1, 2):
        tools = ScriptedTools()
        groups, events, features, _ = run(
            tools,
            asked=[questions[0], long, *questions[2:]],
            engines=engines,
            scorer=scorer_of(None),
        )
        for t in groups[1]:
            assert (t.state, t.turns, t.prompt_tokens, t.images) == (
                SampleState.TOO_LONG,
                [],
                [],
                [],
            )
            assert (
                f'A prompt of {tokens} tokens, 6 of them' in t.failure
                and '84×56 pixels' in t.failure
            )
            assert (
                f'rollout.prompt_capacity {engine.prompt_capacity}' in t.failure
                and t.reward['total'] == 0
            )
        assert [t.member for t in groups[1]] == list(range(MEMBERS)) and len(events['group']) == 4
        for i in (0, 2, 3):
            assert [[turn.tokens for turn in t.turns] for t in groups[i]] == [
                [turn.tokens for turn in t.turns] for t in plain[0][i]
            ]
        name = tools.upload(questions[1].image).sha256
        assert ('image', name) not in tools.calls and name not in features._seen


def test_a_response_that_can_never_fit_is_no_fault_of_the_policy(run, engine, monkeypatch):
    """It is out, with the numbers, and its pictures are not even fetched; one that came too late is
    cut as ever."""
    monkeypatch.setattr(engine, 'suffix_capacity', 25)
    tools = ScriptedTools()
    groups, *_ = run(tools, act=lambda text: ImageSearch(1), max_turns=3, scorer=scorer_of(None))
    thumbnails = {name for name in tools._files} - {
        t.images[0].sha256 for group in groups for t in group
    }
    for t in (t for group in groups for t in group):
        assert (
            t.state is SampleState.TOO_LONG and len(t.turns) == 1 and t.turns[0].observation is None
        )
        assert (
            'A response of image_search of' in t.failure
            and 'rollout.suffix_capacity 25' in t.failure
        )
    assert (
        thumbnails and not {what for method, what in tools.calls if method == 'image'} & thumbnails
    )


def test_the_engine_refuses_a_prompt_that_nobody_has_looked_at(engine, chat):
    with pytest.raises(
        ValueError, match='does not fit into 128; raise rollout.prompt_capacity or lower max_pixels'
    ):
        engine.prefill([0], [[1] * 130], [[]], None)


def test_pictures_are_encoded_once(store_for, questions):
    """A store gives each picture's features whatever came before, and again after they had to go."""
    client = ScriptedTools()
    refs = [client.upload(q.image) for q in questions]
    store = store_for(client)
    first = store.table([*refs, refs[0]])
    assert store.images_encoded == store.distinct_images == 4
    store.table(refs)
    assert store.images_encoded == 4 and len([c for c in client.calls if c[0] == 'image']) == 4
    tight = store_for(client, capacity_bytes=1)
    alone = [tight.table([ref]) for ref in refs]
    assert tight.table([refs[0]]).features.keys() == {refs[0].sha256} and tight.images_encoded == 5
    for ref, table in zip(refs, alone, strict=True):
        assert np.allclose(table.features[ref.sha256], first.features[ref.sha256], atol=1e-5)
        assert table.grids == {ref.sha256: PREPROCESSOR.grid(ref.width, ref.height)}
    with pytest.raises(ValueError, match='cannot be fetched'):
        store_for(ScriptedTools(fails=lambda *_: DOWN)).table(refs[:1])


def test_what_a_step_wants_stays_if_it_fits(store_for, questions, capsys):
    """Also what an earlier step has left behind and this one has only got ready so far; and a store
    too small says so."""
    client = ScriptedTools()
    a, b, c, d = [client.upload(q.image) for q in questions]
    sizes = {
        ref: PREPROCESSOR.merged_tokens(ref.width, ref.height) * 32 * 4 for ref in (a, b, c, d)
    }
    store = store_for(client, capacity_bytes=sum(sizes.values()) - 1)  # one of them has to go
    store.begin_step()
    for ref in (a, b, c):
        store.table([ref])
    store.begin_step()
    assert store.prepare(a) is None  # a question about it is about to be asked
    store.table([d])
    store.table([a, c, d])
    assert (store.images_encoded, store.encoded_again) == (4, 0) and capsys.readouterr().err == ''
    assert store.step_bytes == sizes[a] + sizes[c] + sizes[d]
    for ref in (b, a, c, d):  # in turn: each comes when it has just gone
        store.table([ref])
    assert store.encoded_again == 3 and store.images_encoded == 8
    said = capsys.readouterr().err
    assert (
        said.count('rollout.feature_cache_gib') == 1
        and 'Set it to more.' in said
        and said.count('\n') == 1
    )
    store.begin_step()
    store.table([b])
    assert store.encoded_again == 0


def test_patches_of_what_was_not_shown_are_freed(run, engine, questions, monkeypatch):
    """Of lanes that end before their tool's answer: it has no room, or its second picture is gone."""
    monkeypatch.setattr(engine, 'suffix_capacity', 256 - engine.chunk)
    _, _, features, _ = run(
        ScriptedTools(), act=functools.partial(by_chance, answers=False), max_turns=50
    )
    assert not features._patches
    tools = ScriptedTools()

    def gone(method, what):
        return DOWN if method == 'image' and tools._open(what).size == (56, 56) else None

    tools.fails = gone  # the second thumbnail
    groups, _, features, _ = run(
        tools, act=lambda text: ImageSearch(1), max_turns=3, asked=questions[:1]
    )
    assert all(t.state is SampleState.INFRA_FAILED and len(t.images) == 1 for t in groups[0])
    assert not features._patches


def test_places_left_in_a_pass_are_filled_with_what_comes_next(store_for, tmp_path, monkeypatch):
    """Later pictures of like size ride along and are not computed again; one that is gone stops
    nobody."""
    client, paths = ScriptedTools(), [tmp_path / f'{i}.png' for i in range(5)]
    for i, path in enumerate(paths):
        noise_file(path, *((84, 56) if i < 4 else (280, 224)), i)
    *alike, other = [client.upload(str(path)) for path in paths]
    store, plain = store_for(client, batch=4), store_for(client)
    store.table(alike[:2], ahead=[alike[0], *alike[2:], other])
    assert store.images_encoded == len(alike) and store.distinct_images == 2
    found, wanted = store.table(alike), plain.table(alike)
    assert store.images_encoded == store.distinct_images == len(alike)
    for ref in alike:
        assert np.allclose(found.features[ref.sha256], wanted.features[ref.sha256], atol=1e-5)
    store.clear()
    prepare = store.prepare
    monkeypatch.setattr(
        store, 'prepare', lambda image: DOWN if image == alike[2] else prepare(image)
    )
    assert len(store.table(alike[:2], ahead=alike[2:]).features) == 2
    assert store.images_encoded == 2 * len(alike) - 1


def test_warm_up_compiles_the_tower_for_every_form_of_picture(policy, tmp_path):
    client = ScriptedTools()
    store = FeatureStore(policy, PREPROCESSOR, client, capacity_bytes=1 << 30, batch=2)
    store.warm_up()
    compiled = store.compiles
    sizes = [
        (28, 28),
        (28, 1400),
        (1400, 28),
        (84, 56),
        (300, 300),
        (56, 280),
        (170, 90),
        (28, 300),
        (300, 28),
        (1000, 800),
    ]
    refs = [client.upload(noise_file(tmp_path / f'{w}x{h}.png', w, h, 1)) for w, h in sizes]
    store.table(refs)
    for ref in refs:
        store.clear()
        store.table([ref])
    assert store.compiles == compiled > 3


def test_turned_photographs_are_turned_back(store_for, tmp_path):
    """The orientation tag is applied, so that boxes and patches share one frame."""
    upright = Image.open(noise_file(tmp_path / 'a.png', 84, 56, 1))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, 'PNG', exif=exif)
    client = ScriptedTools()
    ref = client.upload(str(tmp_path / 'a.png'))
    plain = store_for(client).table([ref])
    client._files[ref.sha256] = turned.getvalue()
    again = store_for(client).table([ref])
    assert np.allclose(plain.features[ref.sha256], again.features[ref.sha256], atol=1e-5)
