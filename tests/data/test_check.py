"""The check of a source: faults by kind with their first ids, lengths against capacities, exit statuses."""

import json
import runpy
from pathlib import Path

import published_files
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scripted_tools import noise_file

from sensesearch_jax.data.check import main
from sensesearch_jax.data.convert import main as convert

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def written(tmp_path):
    """Writes records, each with a picture unless it says otherwise; gives the file."""

    def written(*records):
        whole = []
        for number, record in enumerate(records):
            noise_file(tmp_path / f'{number}.png', 96, 54, number)
            usual = {'id': f'q{number}', 'question': 'What is it?', 'image': f'{number}.png'}
            usual |= {'answers': ['it'], 'category': 'sports', **record}
            whole.append({name: value for name, value in usual.items() if value is not None})
        file = tmp_path / 'mine.jsonl'
        file.write_text('\n'.join(json.dumps(record) for record in whole))
        return file

    return written


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command; gives its exit status, report and complaint."""

    def check(path, *options):
        status = main([str(path), f'--sheet={tmp_path / "sheet.png"}', *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return check


def test_a_sound_source_fits(written, check, tmp_path):
    status, said, _ = check(written({}, {}), f'--config={CONFIGS / "evaluate.py"}')
    assert status == 0
    assert '2 of 2 records are sound' in said and 'category: sports 2' in said
    assert 'all 2 prompts fit into rollout.prompt_capacity' in said
    assert [int(n) for n in line(said, 'image width').split()[-5:]] == [96] * 5
    assert [int(n) for n in line(said, 'image height').split()[-5:]] == [54] * 5
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.format == 'PNG' and sheet.width == 2 * 480


def line(said, name):
    return next(text for text in said.splitlines() if text.strip().startswith(name))


def test_faults_are_counted_by_kind_with_the_first_ids(written, check, tmp_path):
    file = written(
        {},
        {'id': 'q0'},
        {'image': 'absent.png'},
        {'image': 'cut.png'},
        {'image': 'text.png'},
        {'image': 'narrow.png'},
        {'choices': ['red', 'blue'], 'answers': ['C']},
        {'answers': []},
        {'answers': []},
        {'reward': 'luck'},
        {'nonsense': 1},
    )
    data = (tmp_path / '0.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(data[: len(data) // 2])
    (tmp_path / 'text.png').write_text('no image')
    Image.new('RGB', (2010, 10)).save(tmp_path / 'narrow.png')
    with open(file, 'a') as more:
        more.write('\n{"id": "torn", "quest')
    status, said, _ = check(file)
    assert status == 1 and '1 of 12 records are sound' in said
    for kind, count, ids in (
        ('duplicate id', 1, 'q0'),
        ('missing image', 1, 'q2'),
        ('corrupt image', 2, 'q3'),
        ('image out of limits', 1, 'q5'),
        ('no right answer', 3, 'q6, q7, q8'),
        ('unknown reward', 1, 'q9'),
        ('unknown field', 1, 'q10'),
    ):
        found = line(said, f'{kind}:')
        assert found.strip().startswith(f'{kind}: {count} (') and ids in found, found


def test_prompts_that_do_not_fit_are_counted_and_named(written, check):
    file = written({}, {'question': 'What is it, and where? ' * 100})
    config = f'--config={CONFIGS / "evaluate.py"}'
    status, said, _ = check(file, config)
    assert status == 1
    found = line(said, '1 of 2 prompts are longer')
    assert 'rollout.prompt_capacity 416 (q1)' in found and 'raise it to ' in found
    most = int(found.partition('raise it to ')[2].partition(',')[0])
    for capacity, expected in ((most, 0), (most - 1, 1)):  # as the sampler counts
        assert check(file, config, f'--config.rollout.prompt_capacity={capacity}')[0] == expected


def test_lengths_are_those_of_the_sampler(written, check):
    """The prompt of the config's agent, image and all."""
    from sensesearch_jax.agent.chat_template import ChatTokenizer
    from sensesearch_jax.agent.protocol import PROTOCOLS
    from sensesearch_jax.agent.trajectory import ImageRef
    from sensesearch_jax.data.check import BASE_POLICY
    from sensesearch_jax.model.image_processor import Preprocessor

    _, said, _ = check(written({}), f'--config={CONFIGS / "evaluate.py"}')
    agent = runpy.run_path(str(CONFIGS / 'evaluate.py'))['get_config']().agent
    chat = ChatTokenizer(BASE_POLICY, Preprocessor.read(BASE_POLICY).merged_tokens)
    system = PROTOCOLS[agent.protocol].system_prompt(agent.tools)
    prompt = chat.prompt(system, [ImageRef('', 96, 54), 'What is it?'])
    assert [int(n) for n in line(said, 'prompt tokens').split()[-5:]] == [len(prompt)] * 5


def test_images_within_a_table_are_looked_at(check, tmp_path):
    noise_file(tmp_path / 'a.png', 96, 54, 0)
    data = (tmp_path / 'a.png').read_bytes()
    rows = [
        {'id': f'q{i}', 'question': 'What?', 'images': [{'bytes': d}], 'answers': ['it']}
        for i, d in enumerate((data, data[:100]))
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / 'x.parquet')
    status, said, _ = check(tmp_path / 'x.parquet')
    assert status == 1 and '1 of 2 records are sound' in said
    assert 'corrupt image: 1 (q1)' in said


def test_several_images_none_and_a_hash(written, check):
    file = written({'image': None, 'images': ['0.png', '0.png']}, {'image': None}, {})
    records = [json.loads(text) for text in file.read_text().splitlines()]
    records[2]['image'] = 'sha256:' + '0' * 64
    file.write_text('\n'.join(map(json.dumps, records)))
    status, said, _ = check(file)
    assert status == 0 and '3 of 3 records are sound' in said
    assert [int(n) for n in line(said, 'images a question').split()[-5:]] == [0, 1, 2, 2, 2]
    assert '1 images are content hashes' in said


@pytest.mark.parametrize('by_name', [True, False])
def test_a_published_set_is_checked_by_name_and_by_directory(check, tmp_path, by_name):
    published_files.hr_mmsearch(tmp_path / 'files')
    assert convert(['hr_mmsearch', str(tmp_path / 'files'), str(tmp_path / 'data')]) == 0
    directory = tmp_path / 'data' / 'hr_mmsearch' / '1.0.0'
    path = 'hr_mmsearch' if by_name else directory
    status, said, _ = check(path, f'--data_dir={tmp_path / "data"}')
    assert status == 0 and ' records are sound' in said and 'source: hr_mmsearch' in said


@pytest.mark.parametrize(
    ('options', 'complaint'),
    [
        (['absent.jsonl'], 'absent.jsonl'),
        (['hr_mmsearch', '--data_dir=absent'], 'data.convert hr_mmsearch'),
        (['mine.jsonl', '--config=absent.py'], '--config=absent.py names no file'),
        (['mine.jsonl', '--config.max_pixels=1'], 'give --config=FILE'),
        (['mine.jsonl', f'--config={CONFIGS / "evaluate.py"}', '--config.nothing=1'], 'nothing'),
        (['mine.jsonl', f'--config={CONFIGS / "ask.py"}'], 'asks no questions'),
        (['mine.jsonl', '--policy=absent'], 'absent'),
    ],
)
def test_what_cannot_be_checked_ends_with_a_sentence(
    written, check, tmp_path, monkeypatch, options, complaint
):
    written({})
    monkeypatch.chdir(tmp_path)
    status, _, said = check(*options)
    assert status == 2 and said.splitlines()[-1].startswith('check: ') and complaint in said


def test_help_says_the_exit_statuses(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--help'])
    assert ended.value.code == 0 and 'Exit status: 0' in capsys.readouterr().out
