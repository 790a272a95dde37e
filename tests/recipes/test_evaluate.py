"""Evaluation by the command line: its files, its modes, served models, and kills between samples."""

import json
import signal
import time

import pytest
import toy_runs
from chat_stand_in import chat_stand_in
from toy_policy import write_toy_policy

from sensesearch_jax.recipes.session import read_trajectories

QUESTIONS = {'data.eval': toy_runs.pocket('test', search=1, perception=1, search_only=1)}
SEVERAL = {'evaluate.samples': 3, 'evaluate.temperature': 1.0, 'evaluate.lanes': 6}


def evaluate(workdir, policy, output, **more):
    """The workdir of an evaluation that ended well."""
    settings = QUESTIONS | {name.replace('__', '.'): value for name, value in more.items()}
    toy_runs.finish(toy_runs.start('evaluate', workdir, policy, settings, output), output)
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


def samples(workdir):
    """By question and sample, without clocks and what rounding moves."""
    found = {}
    for trajectory in read_trajectories(workdir / 'evaluation' / 'policy.jsonl'):
        value = trajectory.to_json()
        for turn in value['turns']:
            (turn['observation'] or {}).pop('latency_s', None)
            del turn['log_probs']
        del value['question']
        key = trajectory.question.id, trajectory.member
        assert key not in found
        found[key] = value
    return found


@pytest.fixture(scope='module')
def whole(policy_folder, tmp_path_factory):
    """An evaluation with three samples of each question, in one go."""
    folder = tmp_path_factory.mktemp('evaluation')
    settings = {name.replace('.', '__'): value for name, value in SEVERAL.items()}
    return evaluate(folder / 'run', policy_folder, folder / 'output.txt', **settings)


def test_each_sample_has_a_line_and_the_summary_is_of_them(whole):
    lines = rows(whole)
    assert sorted((line['id'], line['sample']) for line in lines) == sorted(samples(whole))
    assert len(lines) == 9 and {line['sample'] for line in lines} == {0, 1, 2}
    summary = json.loads((whole / 'summary.json').read_text())
    (found,) = summary['sets'].values()
    assert (found['questions'], found['samples'], found['counted']) == (3, 3, 9)
    assert found['avg_at_k']['mean'] == pytest.approx(sum(r['accuracy'] for r in lines) / 9)
    assert summary['runs']['policy']['overall']['trajectories'] == 9
    assert len({json.dumps(s['turns']) for s in samples(whole).values()}) > 3  # they differ


def test_scores_stand_with_their_card_in_every_file(whole):
    card = json.loads((whole / 'card.json').read_text())
    assert card['sampling']['samples'] == 3 and card['mode'] == 'agent'
    assert card['environment']['tools'] == ['text_search', 'image_search', 'image_crop']
    assert card['judge'] == 'rules' and card['tools']['mode'] == 'live'
    assert card['budgets']['max_turns'] == 4 and card['budgets']['suffix_capacity'] == 768
    assert json.loads((whole / 'summary.json').read_text())['card'] == card
    for file in ('table.md', 'viewer.html'):
        text = (whole / file).read_text()
        assert 'Avg@k' in text and 'max_turns 4' in text and 'rules (' in text
    printed = (whole.parent / 'output.txt').read_text()
    assert 'Judge' in printed and 'Pass@1' in printed


def test_killed_between_samples_it_asks_none_twice(whole, policy_folder, tmp_path):
    output, torn = tmp_path / 'output.txt', tmp_path / 'run'
    path = torn / 'evaluation' / 'policy.jsonl'
    process = toy_runs.start('evaluate', torn, policy_folder, QUESTIONS | SEVERAL, output)
    while not (path.is_file() and path.read_text().count('\n')):
        assert process.poll() is None, output.read_text()[-3000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b'\n') + 1]
    assert 0 < kept.count(b'\n') < 9 and not (torn / 'results.jsonl').exists()
    toy_runs.finish(
        toy_runs.start('evaluate', torn, policy_folder, QUESTIONS | SEVERAL, output), output
    )
    assert path.read_bytes().startswith(kept)
    assert samples(torn) == samples(whole)


def test_one_sample_that_is_missing_is_asked_alone(whole, policy_folder, tmp_path):
    output, torn = tmp_path / 'output.txt', tmp_path / 'run'
    path = torn / 'evaluation' / 'policy.jsonl'
    path.parent.mkdir(parents=True)
    lines = (whole / 'evaluation' / 'policy.jsonl').read_text().splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if json.loads(line)['member'] == 1)
    for name in ('config.json', 'questions'):
        source = whole / name
        if source.is_dir():
            (torn / name).symlink_to(source)
        elif source.is_file():
            (torn / name).write_bytes(source.read_bytes())
    path.write_text(''.join(line for i, line in enumerate(lines) if i != gone))
    toy_runs.finish(
        toy_runs.start('evaluate', torn, policy_folder, QUESTIONS | SEVERAL, output), output
    )
    again = path.read_text().splitlines(keepends=True)
    assert len(again) == 9 and again[:8] == [line for i, line in enumerate(lines) if i != gone]
    key = json.loads(lines[gone])['question']['id'], 1
    assert samples(torn)[key] == samples(whole)[key]


@pytest.mark.parametrize('mode', [pytest.param('direct', marks=pytest.mark.slow), 'rag'])
def test_one_turn_without_tools(mode, policy_folder, tmp_path):
    more = {}
    if mode == 'rag':  # the pocket world's image search knows the whole picture of search_only
        more = {'rollout__prompt_capacity': 512, 'tools__config': 'configs/tools_pocket.yaml'}
    done = evaluate(
        tmp_path / 'run', policy_folder, tmp_path / 'output.txt', evaluate__mode=mode, **more
    )
    lines = rows(done)
    assert {line['turns'] for line in lines} == {1} and len(lines) == 3
    assert {sum(line['tool_calls'].values()) for line in lines} <= {0, 1}
    card = json.loads((done / 'card.json').read_text())
    assert card['environment']['tools'] == [] and card['budgets']['max_turns'] == 1
    images = {len(t.images) for t in read_trajectories(done / 'evaluation' / 'policy.jsonl')}
    assert images == {1} if mode == 'direct' else max(images) > 1
    assert any(line['retrieved'] for line in lines) == (mode == 'rag')
    assert ('"retrieved":["' in (done / 'viewer.html').read_text()) == (mode == 'rag')
    assert ('% of the prompts' in (done / 'table.md').read_text()) == (mode == 'rag')


def test_a_served_model_is_evaluated_by_the_same_command(policy_folder, tmp_path):
    answer = '<think>so</think>\n<answer>blue</answer>'
    with chat_stand_in() as service:
        service.replies = lambda request: answer
        done = evaluate(
            tmp_path / 'run',
            policy_folder,
            tmp_path / 'output.txt',
            evaluate__agent__kind='openai',
            evaluate__agent__url=service.url,
            evaluate__agent__model='gpt-4o',
            evaluate__agent__input_usd=2.5,
            evaluate__agent__output_usd=10.0,
            evaluate__name='openai/gpt-4o',
        )
        bodies = [request.body for request in service.requests]
    assert {body['model'] for body in bodies} == {'gpt-4o'}
    assert len({line['id'] for line in rows(done)}) == 3
    card = json.loads((done / 'card.json').read_text())
    assert card['agent']['model'] == 'gpt-4o' and card['agent']['requests'] == len(bodies)
    usd = len(bodies) * (100 * 2.5 + 20 * 10) / 1e6  # by the tokens that the service counts
    assert card['agent']['usd'] == pytest.approx(usd, abs=1e-4)
    assert 'prompt_capacity' not in card['budgets']
    assert (done / 'evaluation' / 'openai_gpt-4o.jsonl').is_file()
    assert 'gpt-4o' in (done / 'viewer.html').read_text()


def test_a_served_model_s_replies_are_paid_for_once_whenever_the_run_is_killed(
    policy_folder, tmp_path
):
    """Killed in the middle of trajectories of several turns; each prompt came to the service once."""
    call = (
        '<think>look</think>\n<tool_call>\n{"name": "text_search", "arguments": {"query": "a"}}\n'
    )
    seen = []

    def reply(request):
        seen.append(json.dumps(request.body, sort_keys=True))
        time.sleep(0.05)
        turns = sum(message['role'] == 'assistant' for message in request.body['messages'])
        return call if turns < 2 else '<think>so</think>\n<answer>blue</answer>'

    with chat_stand_in() as service:
        service.replies = reply
        settings = QUESTIONS | {
            'evaluate.agent.kind': 'openai',
            'evaluate.agent.url': service.url,
            'evaluate.agent.model': 'gpt-4o',
            'evaluate.lanes': 2,
        }
        output = tmp_path / 'output.txt'
        for requests in (2, 5):
            process = toy_runs.start('evaluate', tmp_path / 'run', policy_folder, settings, output)
            while len(seen) < requests:
                assert process.poll() is None, output.read_text()[-3000:]
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        toy_runs.finish(
            toy_runs.start('evaluate', tmp_path / 'run', policy_folder, settings, output), output
        )
    assert len(seen) == len(set(seen)) >= 6
    lines = rows(tmp_path / 'run')
    assert len({line['id'] for line in lines}) == len(lines) == 3
    card = json.loads((tmp_path / 'run' / 'card.json').read_text())
    assert card['agent']['requests'] == len(seen)


@pytest.mark.slow
def test_a_policy_of_the_second_family_is_evaluated(tmp_path):
    folder = tmp_path / 'policy'
    folder.mkdir()
    write_toy_policy(folder, 'qwen3_vl')
    assert len(rows(evaluate(tmp_path / 'run', folder, tmp_path / 'output.txt'))) == 3
