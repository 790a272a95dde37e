"""The scheduler with a random policy whose every turn is made an action: what is sampled is what is
kept."""

import functools
import threading

import jax
import numpy as np
import optax
import pytest
from acts_by_chance import (
    MEMBERS,
    PREPROCESSOR,
    TURN_TOKENS,
    ScriptedEnvironment,
    by_chance,
    essence,
    scorer_of,
)
from flax import nnx
from scripted_tools import DOWN, ScriptedTools

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import user_text
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, SampleState
from sensesearch_jax.batching.from_trajectories import to_member, to_row
from sensesearch_jax.batching.group_batch import build_groups
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.replicas import hand_over
from sensesearch_jax.rollout.scheduler import RolloutLimits, Stream
from sensesearch_jax.rollout.task_queue import TaskQueue
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.mesh import make_mesh, replica_axes, replicas, shardings
from sensesearch_jax.training.trained_part import decoder
from sensesearch_jax.training.trainer import Learner


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
        width=policy.sizes.language.width,
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


def test_the_same_from_replicas(run, plain, policy, engine):
    """Two, of two devices each; each picture is encoded once, whichever wants it first. New weights
    go to both."""
    mesh, (graph, state) = (
        make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4]),
        nnx.split(policy),
    )
    state = jax.device_put(state, shardings(state, mesh))
    engines = [engine.twin(), engine.twin()]
    for one, copy in zip(engines, replicas(state, mesh, replica_axes(mesh)), strict=True):
        one.set_parameters(copy)

    def store(client):
        sharded = nnx.merge(graph, state)
        return FeatureStore(sharded, PREPROCESSOR, client, capacity_bytes=1 << 30, batch=2)

    groups, _, features, _ = run(ScriptedTools(), engines=engines, store=store)
    assert essence(groups) == essence(plain[0])
    for ours, theirs in zip(sum(groups, []), sum(plain[0], []), strict=True):
        for one, other in zip(ours.turns, theirs.turns, strict=True):
            assert np.allclose(one.log_probs, other.log_probs, atol=1e-5)
    assert features.distinct_images == features.images_encoded
    devices = [one.caches.suffix.keys.sharding.device_set for one in engines]
    assert [{*one.mesh.devices.flat} for one in engines] == devices and not devices[0] & devices[1]
    hand_over(engines, jax.tree.map(lambda x: x + x, state), mesh, None)
    before = np.asarray(state['language']['embedding'][...])
    for one, own in zip(engines, devices, strict=True):
        new = one.parameters['language']['embedding'][...]
        assert np.array_equal(new, 2 * before) and new.sharding.device_set == own


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


def test_slow_tools_of_one_question_do_not_hold_up_the_others(run, questions):
    """Crops of the first picture are answered only when every other question is done."""
    tools, finished, done = ScriptedTools(), threading.Event(), []
    slow = tools.upload(questions[0].images[0]).sha256

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


def test_new_weights_are_taken_between_turns_and_tasks_while_others_run(
    engine, policy, chat, store_for, questions
):
    """The second weights have another last norm, which keys and values do not depend on: so the
    trainer's log-probs tell by which weights each token was drawn. Some lanes are within a turn when
    those weights come. Tasks that come later have a scorer of their own."""
    first = nnx.state(policy)
    graph, second = nnx.split(policy)
    second['language']['norm'] = jax.tree.map(lambda x: 3 * x, second['language']['norm'])
    twin, features, turns = engine.twin(), store_for(ScriptedTools()), []
    twin.set_parameters(first, 0)

    def on_turn(trajectory, turn):
        turns.append(turn)
        if len(turns) == 5:
            stream.set_weights([second], 1)
            later.extend(stream.add(tasks[2:], scorer_of(None), done.append))
            stream.queue.close()

    tasks = [Task(q, tuple(1000 * i + g for g in range(MEMBERS))) for i, q in enumerate(questions)]
    environment, limits = ScriptedEnvironment(features.client), RolloutLimits(4, TURN_TOKENS)
    stream = Stream(
        twin, chat, environment, features, limits, tool_threads=8, judge_threads=8, on_turn=on_turn
    )
    done, later = [], []
    groups = stream.add(tasks[:2], None, done.append)
    stream.run()
    groups += later
    assert sorted(map(id, done)) == sorted(map(id, groups))
    assert [bool(t.reward) for group in groups for t in group] == [False] * 6 + [True] * 6

    everyone = [t for group in groups for t in group]
    versions = [[turn.version for turn in t.turns] for t in everyone]
    assert all(found == sorted(found) for found in versions)
    assert {v for found in versions[:6] for v in found} == {0, 1}
    assert {v for found in versions[6:] for v in found} == {1}

    table = features.table(image for t in everyone for image in t.images)
    batch = build_groups([to_row(group) for group in groups], table, image_token=chat.image_pad,
                         merge=2, members=MEMBERS, width=policy.sizes.language.width)  # fmt: skip
    mask = np.isin(np.arange(chat.vocab_size), chat.suppressed_ids)
    learner = Learner(policy, optax.sgd(0.1), suppressed=mask)
    of_second = nnx.state(nnx.merge(graph, second), decoder)
    by_version = [np.asarray(learner.log_probs(batch, p)) for p in (None, of_second)]
    sampled, wrong = batch.log_probs[:, :, 1:], []
    for row, group in enumerate(groups):
        for g, t in enumerate(group):
            start = 0
            for turn in t.turns:
                own = slice(start, start + len(turn.tokens))
                gaps = [np.abs(x[row, g, own] - sampled[row, g, own]).max() for x in by_version]
                assert gaps[turn.version] < 1e-4
                wrong.append(gaps[1 - turn.version])
                start += len(turn.tokens) + len(turn.observation_tokens)
    assert min(wrong) > 1e-3


def test_urgent_tasks_come_first(questions):
    queue = TaskQueue(1, 1, None, None, None, None)
    queue.add([Task(q, ()) for q in questions[:2]], None, None)
    news = queue.news
    queue.add([Task(q, ()) for q in questions[2:]], None, None, urgent=True)
    assert [task.question.id for _, task in queue.waiting] == ['q2', 'q3', 'q0', 'q1']
    assert news.done() and queue.left and queue.open
    queue.waiting.clear()
    assert queue.open and not queue.left and not queue.news.done()
    queue.close()
    assert not queue.open
