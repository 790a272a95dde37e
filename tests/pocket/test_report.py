"""The report: one self-contained page whose numbers are the summary's and whose foreign text stays
text."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sensesearch_jax.agent.actions import Answer, FormatError, ImageCrop, ImageSearch, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.agent.trajectory import (
    ImageRef,
    Observation,
    Question,
    SampleState,
    Trajectory,
    Turn,
)
from sensesearch_jax.evaluation.curves import CHARTS, curve_sections, smooth
from sensesearch_jax.evaluation.summary import summarise
from sensesearch_jax.pocket.report import ReportMeta, write_report

EVIL = '</script><script>alert(1)</script><img src="http://a.example/x.png" onerror=alert(2)> \u2028 \ud83d'
FILES: dict[str, bytes] = {}


def _picture(seed: int, width: int, height: int) -> ImageRef:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(
        buffer, 'PNG', compress_level=1
    )
    sha = hashlib.sha256(buffer.getvalue()).hexdigest()
    FILES[sha] = buffer.getvalue()
    return ImageRef(sha, width, height)


def _turn(text, action, observation=None):
    return Turn([1], [0.0], text, action, observation, [])


def _trajectory(
    number: int, right: bool, kind: str = 'search', state: SampleState = SampleState.OK
) -> dict:
    scene = _picture(number % 4, 1280, 720)
    crop, closer, thumbnail = _picture(100, 256, 192), _picture(101, 128, 96), _picture(102, 64, 64)
    question = Question(
        f'{kind}-{number}',
        f'What is it? {EVIL}',
        (f'{number % 4}.png',),
        ('yes', 'yeah'),
        category=kind,
        difficulty=str(1 + number % 3),
        truth={'box': [0.3, 0.3, 0.4, 0.4], 'title': EVIL},
    )
    turns = [
        _turn(
            '<think>look</think>\n<tool_call>',
            ImageCrop((0.2, 0.2, 0.6, 0.6)),
            Observation(('Image 2:', crop), True, 'image_crop', (crop,), 0.01),
        ),
        _turn(
            '<think>closer</think>\n<tool_call>',
            ImageCrop((0.0, 0.0, 0.5, 0.5), 2),
            Observation(('Image 3:', closer), True, 'image_crop', (closer,), 0.01),
        ),
        _turn(
            '<think>whose</think>',
            ImageSearch(3),
            Observation(('1. Flag', thumbnail), True, 'image_search'),
        ),
        _turn(
            f'<think>{EVIL}</think>',
            TextSearch(EVIL),
            Observation((EVIL,), True, 'text_search', (), 1.2),
        ),
        _turn(
            EVIL,
            FormatError('bad_json', 'No JSON.'),
            Observation(('No JSON.',), False, 'format_error'),
        ),
        _turn('<think>so</think>\n<answer>yes</answer>', Answer('yes')),
    ]
    reward = {'total': right + 0.5, 'accuracy': float(right), 'format': 1.0, 'tool_cost': 0.0}
    images = [scene, crop, closer, thumbnail]
    return Trajectory(
        question, 0, 0, turns, state, [], images, reward, 'yes' if right else EVIL
    ).to_json()


def _runs(questions: int = 12) -> dict[str, list[dict]]:
    kinds = ('search', 'perception', 'search_only')
    share = {'base': 5, 'sft': 2, 'rl': 1}
    runs = {
        name: [_trajectory(i, i % (rarity + 1) == 0, kinds[i % 3]) for i in range(questions)]
        for name, rarity in share.items()
    }
    runs['rl without crop'] = [t for t in runs['base'] if t['question']['category'] == 'search']
    return runs


def _metrics() -> list[dict]:
    names = {
        stage: [name for chart in charts for name in chart.metrics]
        for stage, charts in CHARTS.items()
    }
    return [
        {
            'step': step,
            'stage': stage,
            'time': 0.0,
            'values': {name: 1 / (1 + step) for name in [*names[stage], EVIL]},
        }
        for stage in names
        for step in range(10)
    ]


META = ReportMeta(
    title='A <b>test</b>',
    date='2026-01-01',
    machine='2 cores',
    command='python -m x',
    config={'rl': {'ratio': 'sequence'}, 'note': EVIL},
    durations={'sft': 75.0, 'rl': 700.0},
    funnel={'mined': 100, 'kept': 80},
    rejections={EVIL: 13, 'format': 7},
)


class _Page(HTMLParser):
    """Elements with their attributes, the visible text and the content of scripts, as in a browser."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == 'script':
            self.scripts.append((dict(attrs), ''))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if 'script' in self._open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif 'style' not in self._open:
            self.text.append(data)

    def viewer(self) -> dict:
        return json.loads(
            next(text for attrs, text in self.scripts if attrs.get('id') == 'viewer-data')
        )

    def with_id(self, name: str) -> list:
        return [element for element in self.elements if element[1].get('id') == name]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp('report') / 'report.html'
    runs = _runs()
    summary = json.loads(json.dumps(summarise(runs, resamples=200)))
    size = write_report(path, summary, _metrics(), runs, FILES.get, META, protocol=DEFAULT)
    assert size == path.stat().st_size
    html = path.read_text('utf-8')
    return html, _Page(html), summary


def test_sections(written):
    _, page, _ = written
    for name in (
        'results',
        'tools',
        'cold-start',
        'curves',
        'trajectories',
        'run',
        'viewer',
        'viewer-data',
    ):
        assert len(page.with_id(name)) == 1, name
    assert sum(tag == 'figure' for tag, _ in page.elements) == sum(
        len(c) + 1 for c in CHARTS.values()
    )
    assert {t for t, _ in page.elements} >= {'nav', 'main', 'h1', 'noscript', 'article'}


def test_loads_nothing(written):
    html, page, _ = written
    for tag, attrs in page.elements:
        assert tag not in ('iframe', 'object', 'embed', 'base', 'video', 'audio'), tag
        for name in ('src', 'srcset', 'href', 'action', 'xlink:href', 'data', 'poster'):
            assert not attrs.get(name) or attrs[name].startswith(('#', 'data:')), (tag, attrs)
        assert not [name for name in attrs if name.startswith('on')], attrs
    style = html[html.index('<style>') : html.index('</style>')]
    assert 'url(' not in style and '@import' not in style
    code = ''.join(text for attrs, text in page.scripts if attrs.get('type') != 'application/json')
    loaders = r'fetch\(|XMLHttpRequest|import\('
    assert not re.search(
        loaders + r'|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(', code
    )


def test_policy_allows_exactly_the_own_scripts(written):
    _, page, _ = written
    policy = next(a['content'] for t, a in page.elements if t == 'meta' and 'http-equiv' in a)
    executed = [text for attrs, text in page.scripts if attrs.get('type') != 'application/json']
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'"
        for t in executed
    }
    assert len(executed) == 3 and set(re.findall(r"'sha256-[^']*'", policy)) == hashes
    assert "default-src 'none'" in policy and 'img-src data:;' in policy


def test_foreign_text_stays_text(written):
    html, page, _ = written
    assert '<script>alert' not in html and '<img' not in html and '<b>test' not in html
    assert len(page.scripts) == 4
    assert EVIL in page.viewer()['questions'][0]['text']
    assert any('A <b>test</b>' in text for text in page.text)
    block = html[
        html.index('id="viewer-data">') : html.index('</script>', html.index('id="viewer-data">'))
    ]
    assert '<' not in block.split('>', 1)[1] and '\u2028' not in block


def test_numbers_are_those_of_the_summary(written):
    _, page, summary = written
    words = ' '.join(' '.join(page.text).split())
    for run in summary['runs'].values():
        for block in [
            *run['by_category'].values(),
            *([run['overall']] if len(run['by_category']) > 1 else []),
        ]:
            a = block['accuracy']
            bounds = f'{100 * a["mean"]:.1f} {100 * a["low"]:.1f} – {100 * a["high"]:.1f} {block["counted"]}'
            assert bounds in words
    for d in summary['differences']:
        points = f'{100 * d["mean"]:+.1f} {100 * d["low"]:+.1f} to {100 * d["high"]:+.1f} {d["questions"]}'
        assert points.replace('-', '−') in words
    assert '12 held-out questions about 4 pictures' in words and '13 min in all' in words
    assert 'mined 100' in words and 'kept 80' in words and 'rl.ratio sequence' in words


def test_viewer_has_boxes_pictures_and_turns(written):
    _, page, _ = written
    viewer = page.viewer()
    assert viewer['runs'] == ['base', 'sft', 'rl', 'rl without crop'] and viewer['total'] == 12
    assert [q['category'] for q in viewer['questions']] == ['search'] * 4 + ['search_only'] * 4 + [
        'perception'
    ] * 4
    question = viewer['questions'][0]
    assert set(question['runs']) == {'base', 'sft', 'rl', 'rl without crop'}
    shown = question['runs']['rl']
    scene, crop, closer = shown['images']
    assert scene['boxes'] == [
        {'turn': 1, 'box': [0.2, 0.2, 0.6, 0.6], 'own': True},
        {'turn': 2, 'box': [0.2, 0.2, 0.4, 0.4], 'own': False},
    ]
    assert (
        crop['boxes'] == [{'turn': 2, 'box': [0.0, 0.0, 0.5, 0.5], 'own': True}]
        and closer['boxes'] == []
    )
    assert scene['truth'] == [0.3, 0.3, 0.4, 0.4] and crop['truth'] == [0.25, 0.25, 0.5, 0.5]
    assert closer['truth'] == [0.5, 0.5, 1.0, 1.0]
    first, _, search, text, wrong, answer = shown['turns']
    assert first['thought'] == 'look' and first['arguments'] == '[0.2, 0.2, 0.6, 0.6] of image 1'
    assert first['parts'] == ['Image 2:', {'image': 2}]
    assert list(search['parts'][1]) == ['thumbnail'] and text['parts'] == [EVIL]
    assert wrong['error'] == 'bad_json' and wrong['raw'] == EVIL and wrong['ok'] is False
    assert answer['answer'] == 'yes' and 'parts' not in answer
    # Seven distinct pictures, each once, none larger than it is shown.
    assert len(viewer['pictures']) == 7
    sizes = {
        Image.open(io.BytesIO(base64.b64decode(uri.removeprefix('data:image/jpeg;base64,')))).size
        for uri in viewer['pictures'].values()
    }
    assert sizes == {(960, 540), (256, 192), (128, 96), (64, 64)}


def _viewer(tmp_path, runs, loader=FILES.get, **options):
    summary = summarise(runs, resamples=20)
    write_report(tmp_path / 'r.html', summary, [], runs, loader, protocol=DEFAULT, **options)
    page = _Page((tmp_path / 'r.html').read_text('utf-8'))
    return page, page.viewer()


def test_limit_keeps_categories_and_outcomes(tmp_path):
    runs = {'rl': [_trajectory(i, i == 7, 'perception' if i < 3 else 'search') for i in range(40)]}
    _, viewer = _viewer(tmp_path, runs, shown=8)
    assert len(viewer['questions']) == 8 and viewer['total'] == 40
    assert any(q['id'] == 'search-7' for q in viewer['questions'])
    assert {q['category'] for q in viewer['questions']} == {'search', 'perception'}


def test_pictures_keep_to_their_budget(tmp_path):
    runs = {'rl': [_trajectory(i, True) for i in range(4)]}
    _, everything = _viewer(tmp_path, runs)
    whole = sum(map(len, everything['pictures'].values()))
    _, viewer = _viewer(tmp_path, runs, image_budget=whole // 2)
    assert 0 < len(viewer['questions']) < 4
    assert sum(map(len, viewer['pictures'].values())) <= whole // 2
    assert (tmp_path / 'r.html').stat().st_size < whole // 2 + 200_000


def test_missing_pictures_and_little_data(tmp_path):
    runs = {'rl': [_trajectory(0, False, state=SampleState.INFRA_FAILED)]}
    page, viewer = _viewer(tmp_path, runs, loader=lambda sha: None)
    assert viewer['pictures'] == {} and viewer['questions'][0]['runs']['rl']['right'] is None
    assert not page.with_id('curves') and not page.with_id('cold-start')
    page, viewer = _viewer(tmp_path, runs, loader=lambda sha: b'no picture', shown=0)
    assert viewer['questions'] == [] and not page.with_id('trajectories')


def test_refuses_a_summary_of_other_runs(tmp_path):
    runs = {'rl': [_trajectory(0, True)]}
    with pytest.raises(ValueError, match=r"about \['rl'\] but the runs are \['sft'\]"):
        write_report(
            tmp_path / 'r.html',
            summarise(runs, resamples=20),
            [],
            {'sft': runs['rl']},
            FILES.get,
            protocol=DEFAULT,
        )
    with pytest.raises(ValueError, match='shown must be 0 or more'):
        write_report(
            tmp_path / 'r.html',
            summarise(runs, resamples=20),
            [],
            runs,
            FILES.get,
            protocol=DEFAULT,
            shown=-1,
        )


def test_curves_keep_the_last_of_a_step_and_skip_what_is_no_number():
    records = [
        {'step': s, 'stage': 'rl', 'time': 0.0, 'values': {'reward': v, 'note': 'text', 'odd': 2.0}}
        for s, v in [(0, 0.5), (1, float('nan')), (2, 9.0), (2, 1.0)]
    ]
    (section,) = curve_sections(records)
    (reward,) = section['charts']
    assert reward['curves'][0]['data']['steps'] == [0, 2] and reward['curves'][0]['data'][
        'raw'
    ] == [0.5, 1.0]
    assert reward['curves'][0]['raw'].split()[0].startswith('0.00,') and (
        reward['first'],
        reward['last'],
    ) == (0, 2)
    assert reward['low'] <= 0.5 and reward['high'] >= 1.0
    assert [chart['title'] for chart in section['others']] == ['odd']


def test_long_curves_are_thinned():
    records = [
        {'step': s, 'stage': 'sft', 'time': 0.0, 'values': {'loss': float(s)}} for s in range(5000)
    ]
    curve = curve_sections(records)[0]['charts'][0]['curves'][0]
    assert len(curve['raw'].split()) == 300 and curve['last'] == pytest.approx(4999, rel=0.02)


def test_smoothing_neither_lags_nor_shifts():
    assert smooth([2.0, 2.0, 2.0], 1.0) == pytest.approx(2.0)
    line = smooth(np.arange(101.0), 3.0)
    assert line[20:80] == pytest.approx(np.arange(101.0)[20:80], abs=1e-6)
    assert smooth([1.0, 5.0], 0.0) == pytest.approx([1.0, 5.0])
