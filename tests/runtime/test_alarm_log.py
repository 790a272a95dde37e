"""Alarms of a run: told once on the bar and in a file, by command and webhook, and what they stop."""

import contextlib
import io
import json
import runpy
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.alarm_log import AlarmLog, check_alarms, read_alarms
from sensesearch_jax.runtime.metrics import MetricWriter, read_metrics
from sensesearch_jax.runtime.notification import Notifier
from sensesearch_jax.runtime.progress import Progress
from sensesearch_jax.runtime.workdir import Workdir

ROOT = Path(__file__).parents[2]
GOOD, BAD = {'infra_failed': 0.0}, {'infra_failed': 1.0}


def alarms(**changes):
    config = runpy.run_path(str(ROOT / 'configs' / 'rl.py'))['get_config']().alarms
    config.update(changes)
    return config


@contextlib.contextmanager
def run(folder, config, step=0, tells=True):
    """A function that makes a step, as a recipe does, and the text of the bar."""
    with Workdir.open(folder, {}) as workdir, MetricWriter(workdir / 'metrics.jsonl') as metrics:
        metrics.resume('rl', step)
        file = io.StringIO()
        with Progress('rl', 9, initial=step, file=file) as bar:
            before = read_metrics(workdir / 'metrics.jsonl', 'rl')
            with AlarmLog(config, workdir, 'rl', step, tells, before) as log:

                def make(number, values):
                    metrics.write('rl', number, values)
                    log.note(number, values, bar)
                    bar.update(reward=1.0)
                    return log.stopping()

                yield make, file


def lines(folder):
    return [(a['step'], a['alarm'], a['over']) for a in read_alarms(folder / 'alarms.jsonl')]


def test_an_alarm_is_told_when_it_is_raised_and_when_it_is_over(tmp_path):
    with run(tmp_path, alarms()) as (make, file):
        for step, values in enumerate([GOOD, BAD, BAD, GOOD, BAD], 1):
            assert make(step, values) is None
    said = file.getvalue().splitlines()
    assert [line for line in said if line.startswith('ALARM')] == [
        'ALARM tools_down (rl, step 2): The tools failed on 100% of the trajectories '
        '(alarms.tools_down 0.5); look at the tool server and its log.',
        said[1].replace('step 2', 'step 5'),
    ]
    assert 'ALARM=tools_down, reward=1' in said[-1]
    assert lines(tmp_path) == [(2, 'tools_down', False), (4, 'tools_down', True),
                               (5, 'tools_down', False)]  # fmt: skip
    assert read_alarms(tmp_path / 'alarms.jsonl')[0]['sentence'].startswith('The tools failed')


def test_a_run_that_goes_on_writes_anew_what_is_behind_its_checkpoint(tmp_path):
    with run(tmp_path, alarms()) as (make, _):
        for step, values in enumerate([GOOD, BAD, GOOD, BAD], 1):
            make(step, values)
    with open(tmp_path / 'alarms.jsonl', 'a') as file:
        file.write('{"time": 1, "sta')  # a killed process
    with run(tmp_path, alarms(), step=2) as (make, file):
        make(3, BAD)  # which was raised at step 2
        make(4, GOOD)
    assert lines(tmp_path) == [(2, 'tools_down', False), (4, 'tools_down', True)]
    assert 'ALARM tools_down (' not in file.getvalue()


def test_lines_of_a_validation_are_no_steps(tmp_path):
    """A window of two steps has two, with a line of another sort between them."""
    config = alarms(stop_on=('same_answer',), window=2)
    with run(tmp_path, config) as (make, _):
        assert make(1, {'same_answer': 0.9}) is None
    with Workdir.open(tmp_path, {}) as workdir, MetricWriter(workdir / 'metrics.jsonl') as metrics:
        metrics.write('rl', 1, {'validation/accuracy': 0.5})
    with run(tmp_path, config, step=1) as (make, _):
        assert make(2, {'same_answer': 0.9})


def test_a_rule_stops_the_run_as_long_as_its_alarm_is_raised(tmp_path):
    config = alarms(stop_on=('tools_down', 'format'))
    with run(tmp_path, config) as (make, _):
        assert make(1, GOOD) is None
        error = make(2, BAD)
    assert isinstance(error, UserError) and '\n' not in str(error)
    assert str(error).startswith('The alarm tools_down stopped the run at step 2 of rl (alarms.')
    with run(tmp_path, config, step=2) as (make, _):
        assert make(3, BAD) and make(4, GOOD) is None
    with run(tmp_path, alarms(stop_on=('format',)), step=4) as (make, _):
        assert make(5, BAD) is None


def test_another_process_knows_the_alarm_and_does_not_tell(tmp_path):
    config = alarms(stop_on=('tools_down',), command=f'touch {tmp_path}/called')
    with run(tmp_path / 'run', config, tells=False) as (make, file):
        assert make(1, BAD)
    assert 'ALARM' not in file.getvalue() and lines(tmp_path / 'run') == []
    assert not (tmp_path / 'called').exists()


def test_a_command_is_given_the_alarm_in_its_environment(tmp_path):
    command = f'echo "$ALARM_NAME $ALARM_STAGE $ALARM_STEP $ALARM_TEXT" >> {tmp_path}/called'
    with run(tmp_path / 'mine', alarms(command=command)) as (make, _):
        make(1, BAD)
    assert (tmp_path / 'called').read_text().startswith(
        'tools_down rl 1 mine, rl, step 1: The tools failed on 100%'
    )  # fmt: skip


@pytest.fixture
def webhook():
    """The address of a server, what it was sent, and the status that it answers with."""
    sent, status = [], [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent.append(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'127.0.0.1:{server.server_port}', sent, status
        server.shutdown()


def test_a_webhook_is_posted_to_and_its_secret_is_in_no_file(tmp_path, webhook, monkeypatch):
    address, sent, _ = webhook
    monkeypatch.setenv('OUR_HOOK', f'http://{address}/secret')
    config = alarms(webhook='$OUR_HOOK')
    check_alarms(config)
    with run(tmp_path / 'mine', config) as (make, _):
        make(1, BAD)
    assert [(s['name'], s['step']) for s in sent] == [('tools_down', '1')]
    assert sent[0]['text'].startswith('mine, rl, step 1: The tools failed')
    assert 'secret' not in ''.join(file.read_text() for file in (tmp_path / 'mine').glob('*.*'))


def test_what_goes_wrong_with_a_message_is_said_and_no_more(webhook, capsys):
    address, _, status = webhook
    status[0] = 500
    for command, hook, words in (
        ('echo no mailer >&2; exit 3', '', 'alarms.command ended with status 3: no mailer'),
        ('sleep 60', '', 'alarms.command took more than 0.5 s'),
        ('', f'http://{address}/secret', 'alarms.webhook answered 500'),
        ('', 'http://127.0.0.1:9/secret', 'alarms.webhook cannot be reached (ConnectionError'),
    ):
        notifier = Notifier(command, hook, 0.5)
        began = time.monotonic()
        notifier.send({'text': 'it', 'name': 'tools_down'})
        assert time.monotonic() - began < 0.2  # the run does not wait
        notifier.close()
        said = capsys.readouterr().err
        assert words in said and said.endswith('the run goes on.\n') and 'secret' not in said


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'tools_down': -0.1}, 'alarms.tools_down is -0.1; give 0 .no such alarm. or more'),
        ({'window': 0}, 'alarms.window is 0; give 1 or more'),
        ({'stop_on': ('tool_down',)}, "alarms.stop_on has 'tool_down'; choose from tools_down, "),
        ({'deadline_s': 0.0}, 'alarms.deadline_s is 0.0; give more than 0'),
        ({'webhook': 'hooks.example/x'}, 'alarms.webhook is no address'),
        ({'webhook': '$NO_SUCH_NAME'}, 'variable NO_SUCH_NAME, which is not set'),
        ({'webhook': 'http://a/$'}, r"write '\$\$' for the character"),
    ],
)
def test_a_field_that_cannot_be_kept_to_is_refused(changes, words):
    check_alarms(alarms())
    with pytest.raises(UserError, match=words):
        check_alarms(alarms(**changes))


def test_a_validation_is_none_of_the_steps_that_are_compared(tmp_path):
    with Workdir.open(tmp_path, {}) as workdir, MetricWriter(workdir / 'metrics.jsonl') as metrics:
        metrics.write('rl', 1, GOOD)
        metrics.write('rl', 1, {'validation/accuracy': 0.5})
        before = read_metrics(workdir / 'metrics.jsonl', 'rl')
        with AlarmLog(alarms(), workdir, 'rl', 1, True, before) as log:
            assert len(log.steps) == 1
