"""A few self-made records of each published set, in files of exactly its published layout."""

import json
from pathlib import Path

from table_files import b64, picture, write_json, write_picture, write_rows


def fvqa(folder: Path) -> list[Path]:
    """Three training questions and two of the test."""

    def row(split: str, number: int, category: str | None) -> dict:
        found = {
            'data_id': f'fvqa_{split}_{number}',
            'prompt': [{'role': 'user', 'content': f'Which county is building {number} in?'}],
            'images': [{'bytes': picture(number), 'path': None}],
            'reward_model': {
                'candidate_answers': json.dumps(['Cheshire', f'County of {number}']),
                'ground_truth': 'Cheshire',
                'style': 'rule',
            },
            'data_source': f'mmsearch_r1/fvqa_{split}',
        }
        return found | ({'category': category} if category else {})

    kinds = 'search_free', 'search_required', 'search_required'
    return [
        write_rows(
            folder / 'fvqa_train.parquet', [row('train', n, kind) for n, kind in enumerate(kinds)]
        ),
        write_rows(folder / 'fvqa_test.parquet', [row('test', n, None) for n in range(2)]),
    ]


def hr_mmsearch(folder: Path) -> list[Path]:
    """Three questions beside their images."""
    rows = []
    for number, (difficulty, category) in enumerate(
        [('hard', 'Sports'), ('easy', 'Games'), ('hard', 'Others')]
    ):
        write_picture(folder / 'images' / f'{number}.png', number)
        rows.append(
            {
                'sample_id': f'sample_{number:04d}',
                'query': f'When was the club of player {number} founded?',
                'query_image': f'images/{number}.png',
                'ground_truth': str(1900 + number),
                'difficulty': difficulty,
                'category': category,
            }
        )
    return [write_rows(folder / 'data.jsonl', rows)]


def pixel_reasoner(folder: Path) -> list[Path]:
    """Two questions about images, of which one has options, and one about a video."""
    write_picture(folder / 'images' / '0.jpg', 0)
    write_picture(folder / 'images' / '1.jpg', 1)

    def row(number: int, text: str, asked: dict, answer: str) -> dict:
        instructions = 'Guidelines: Understand the given visual information. Call `crop_image`.'
        return {
            'qid': f'q-{number}',
            'message_list': [
                {'role': 'system', 'content': [{'type': 'text', 'text': 'You are helpful.'}]},
                {
                    'role': 'user',
                    'content': [{'type': 'text', 'text': f'{text}\n\n{instructions}'}, asked],
                },
                {'role': 'assistant', 'content': [{'type': 'text', 'text': 'I look closer.'}]},
                {'role': 'user', 'content': [{'type': 'text', 'text': 'Here is the crop.'}]},
                {
                    'role': 'assistant',
                    'content': [{'type': 'text', 'text': rf'So it is \boxed{{{answer}}}.'}],
                },
            ],
        }

    image = {'type': 'image', 'image': 'images/0.jpg'}
    other = {'type': 'image', 'image': 'images/1.jpg'}
    video = {'type': 'video', 'video': ['videos/0/1.jpg']}
    rows = [
        row(0, 'What is written on the sign?', image, 'MAIN {ST}'),
        row(1, 'Which colour has the cup?\n(A) red\n(B) blue', other, 'B'),
        row(2, 'What happens first?', video, 'a fall'),
    ]
    return [write_rows(folder / 'release.json', rows)]


def _mini_o3(folder: Path, name: str, file: str) -> Path:
    rows = []
    for number in range(3):
        write_picture(folder / 'data' / f'{file}{number}.jpg', number)
        rows.append(
            {
                'doc_id': number,
                'problem': f'<image>\nWhat number is on bus {number}?',
                'images': [f'{name}/data/{file}{number}.jpg'],
                'solution': f'{number}12',
                'data_source': name.lower(),
            }
        )
    return write_rows(folder / f'{file}.json', rows)


def deepeyes_4k(folder: Path) -> list[Path]:
    """Three questions."""
    return [_mini_o3(folder, 'DeepEyes_train_4K', 'train')]


def visual_probe(folder: Path) -> list[Path]:
    """Three questions to train with and three to evaluate with."""
    return [
        _mini_o3(folder, 'VisualProbe_train', 'train'),
        _mini_o3(folder, 'VisualProbe_Hard', 'val'),
    ]


def sensenova_mars(folder: Path) -> list[Path]:
    """A part with searches, one with options, and one of a benchmark; returns their JSONL files."""
    fine = 'What colour is the kite?\n(A) red\n(B) green\nAnswer with a letter.'
    parts = {
        'train_small.json': {
            'fvqa_train': (['llm_score', 'format_score'], 'Who is this?', ['Ada', 'Ada Lovelace']),
            'deepeyes_4k_train_mcq': (['em_score_mcq', 'format_score'], fine, 'B'),
        },
        'test_all.json': {'hr_mmsearch': ([], 'When was the club founded?', '1899')},
    }
    files = []
    for manifest, of_manifest in parts.items():
        written = {}
        for part, (reward, question, answer) in of_manifest.items():
            root = folder / 'data' / part
            rows = []
            for number in range(2):
                seed = len(files) * 10 + number
                write_picture(root / 'images' / f'{number}.jpg', seed)
                for place in range(2):
                    write_picture(root / 'thumbs' / f'{number}_{place}.jpg', seed + 100 + place)
                rows.append(
                    {
                        'index': number,
                        'prompt': [{'role': 'user', 'content': f'<image>\n{question}'}],
                        'image': [f'images/{number}.jpg'],
                        'reward_model': {'ground_truth': answer},
                        'image_search_title_list': [f'{part} {number}', 'Another page'],
                        'image_search_thumbnail_list': [
                            f'thumbs/{number}_0.jpg',
                            f'thumbs/{number}_1.jpg',
                        ],
                    }
                )
            files.append(write_rows(root / 'data.jsonl', rows))
            written[part] = {
                'root': f'./data/{part}',
                'annotation': f'./data/{part}/data.jsonl',
                'length': 2,
                'repeat_time': 1,
                'reward_fn': reward,
                'unused_reward_fn': [],
                'input_template': {'name': 'general', 'arguments': {}},
                'comment': part,
            }
        (folder / manifest).write_text(json.dumps(written))
    return files


def mmsearch_all(folder: Path) -> list[Path]:
    """Two questions with an image and one without."""
    rows = [
        {
            'sample_id': f'technology_{number}',
            'query': f'When does conference {number} begin?',
            'query_image': {'bytes': picture(number), 'path': None} if number < 2 else None,
            'image_search_result': {'bytes': picture(90), 'path': None} if number < 2 else None,
            'area': 'news' if number else 'knowledge',
            'subfield': 'technology',
            'timestamp': '2024-09-29',
            'gt_requery': 'conference date',
            'gt_answer': f'2024-09-{number + 1:02d}',
            'alternative_gt_answers': [f'{number + 1} September 2024'] if number else [],
        }
        for number in range(3)
    ]
    return [write_rows(folder / 'end2end.parquet', rows)]


mmsearch = mmsearch_all


def infoseek(folder: Path) -> list[Path]:
    """Two questions of the 2,000."""
    rows = [
        {
            'data_id': f'infoseek_val_{number:08d}',
            'prompt': [{'role': 'user', 'content': f'Where does animal {number} live?'}],
            'images': [{'bytes': picture(number), 'path': None}],
            'reward_model': {
                'ground_truth': 'Africa',
                'candidate_answers': json.dumps(['Africa', 'the savanna']),
                'style': 'rule',
            },
            'data_source': 'mmsearch_r1/infoseek_sub_2k',
        }
        for number in range(2)
    ]
    return [write_rows(folder / 'mmsearch_r1_infoseek_sub_2k.parquet', rows)]


def infoseek_val(folder: Path) -> list[Path]:
    """A name, a number with its range, and a year."""
    kinds = [
        ('String', ['Ljubljana'], ['Ljubljana', 'City of Ljubljana']),
        ('Numerical', ['2864.0'], [{'wikidata': 2864.0, 'range': [2577.6, 3150.4]}]),
        ('Time', ['1894'], ['1893', '1894', '1895']),
    ]
    rows, types = [], []
    for number, (kind, answer, accepted) in enumerate(kinds):
        image = f'oven_0{number}990048'
        write_picture(folder / 'images' / f'0{number}' / f'{image}.jpg', number)
        name = f'infoseek_val_{number:08d}'
        rows.append(
            {
                'data_id': name,
                'image_id': image,
                'question': f'What of place {number}?',
                'answer': answer,
                'answer_eval': accepted,
                'data_split': 'val_unseen_question',
            }
        )
        types.append({'data_id': name, 'question_type': kind})
    write_rows(folder / 'infoseek_val_qtype.jsonl', types)
    return [write_rows(folder / 'infoseek_val.jsonl', rows)]


def simple_vqa(folder: Path) -> list[Path]:
    """Two questions in English and one in Chinese, images as base64 text."""
    rows = [
        {
            'data_id': number,
            'image': b64(picture(number)),
            'language': language,
            'question': question,
            'answer': 'Mount Fuji',
            'original_category': 'landmark',
            'source': 'none',
        }
        for number, (language, question) in enumerate(
            [('EN', 'Which mountain is it?'), ('EN', 'Which peak is it?'), ('CN', '这是什么山？')]
        )
    ]
    return [write_rows(folder / 'data' / 'test-00000-of-00001.parquet', rows)]


def livevqa(folder: Path) -> list[Path]:
    """Two questions, with the topic of one."""
    rows = []
    for number in range(2):
        write_picture(folder / 'image' / f'{number}.jpg', number)
        rows.append(
            {
                'sample_id': f'news_{number}',
                'query': f'Which city is {number}?',
                'query_image': f'/image/{number}.jpg',
                'gt_answer': 'Graz',
            }
        )
    write_rows(folder / 'qa_detailed.json', [{'sample_id': 'news_0', 'topic': 'sports'}])
    return [write_rows(folder / 'qa.json', rows)]


def mat_search(folder: Path) -> list[Path]:
    """Two questions, one with several answers."""
    rows = []
    for number in range(2):
        write_picture(folder / 'MAT-Benchmark' / 'MAT-Search-image' / f'{number}.jpg', number)
        rows.append(
            {
                'id': number,
                'question': f'Who led company {number} first?',
                'answer': ['Ada', 'Ada King'] if number else 'Grace',
                'image_path': f'{number}.jpg',
            }
        )
    return [write_rows(folder / 'MAT-Benchmark' / 'MAT-Search.json', rows)]


def vstar(folder: Path) -> list[Path]:
    """Two questions about attributes and one about a position, the right option always first."""
    rows = []
    kinds = [('direct_attributes', 0), ('direct_attributes', 1), ('relative_position', 0)]
    for category, number in kinds:
        file = f'{category}/sa_{number}.jpg'
        write_picture(folder / file, number + len(category))
        boxes = [[16, 12, 8, 6], [32, 24, 8, 6]][: 1 if category[0] == 'd' else 2]
        names = ['glove', 'hat'][: len(boxes)]
        write_json((folder / file).with_suffix('.json'), {'target_object': names, 'bbox': boxes})
        options = ['rubber', 'cotton', 'kevlar', 'leather'][: 4 if category[0] == 'd' else 2]
        lines = '\n'.join(f'({"ABCD"[n]}) {option}' for n, option in enumerate(options))
        rows.append(
            {
                'image': file,
                'text': f'What is glove {number} made of?\n{lines}\n'
                "Answer with the option's letter from the given choices directly.",
                'category': category,
                'label': 'A',
                'question_id': number,
            }
        )
    return [write_rows(folder / 'test_questions.jsonl', rows)]


vstar_published_order = vstar


def _hr_bench(path: Path) -> list[Path]:
    colours, rows = ['red', 'green', 'blue', 'white'], []
    for question, category in enumerate(['single', 'cross']):
        image = b64(picture(question))
        for cycle in range(4):
            options = colours[cycle:] + colours[:cycle]
            rows.append(
                {
                    'index': 4 * question + cycle,
                    'question': f'What colour is flag {question}?',
                    'answer': 'ABCD'[options.index('blue')],
                    'category': category,
                    **dict(zip('ABCD', options, strict=True)),
                    'cycle_category': str(cycle),
                    'image': image,
                }
            )
    return [write_rows(path, rows)]


def hr_bench_4k(folder: Path) -> list[Path]:
    """Two questions in four orders each, as Parquet."""
    return _hr_bench(folder / 'hr_bench_4k.parquet')


def hr_bench_8k(folder: Path) -> list[Path]:
    """Two questions in four orders each, as TSV."""
    return _hr_bench(folder / 'hr_bench_8k.tsv')


OPTIONS = ['(A) 3', '(B) 4', '(C) 5', '(D) 6', '(E) The image does not feature the content.']


def mme_realworld(folder: Path) -> list[Path]:
    """Two questions in the authors' own layout."""
    rows = []
    for number in range(2):
        # Unpacked, the archive holds a folder of its own name.
        write_picture(folder / 'remote_sensing' / 'remote_sensing' / f'{number}.png', number)
        rows.append(
            {
                'Question_id': f'perception/remote_sensing/count/{number:04d}',
                'Image': f'remote_sensing/{number}.png',
                'Text': 'How many planes are there?',
                'Question Type': 'Multiple Choice',
                'Answer choices': OPTIONS,
                'Ground truth': 'BE'[number],
                'Category': 'count',
                'Subtask': 'Remote Sensing',
                'Task': 'Perception',
            }
        )
    return [write_rows(folder / 'MME_RealWorld.json', rows)]


MAKERS = {
    'fvqa': fvqa,
    'pixel_reasoner': pixel_reasoner,
    'deepeyes_4k': deepeyes_4k,
    'visual_probe': visual_probe,
    'sensenova_mars': sensenova_mars,
    'hr_mmsearch': hr_mmsearch,
    'mmsearch': mmsearch,
    'mmsearch_all': mmsearch_all,
    'infoseek': infoseek,
    'infoseek_val': infoseek_val,
    'simple_vqa': simple_vqa,
    'livevqa': livevqa,
    'mat_search': mat_search,
    'vstar': vstar,
    'vstar_published_order': vstar_published_order,
    'hr_bench_4k': hr_bench_4k,
    'hr_bench_8k': hr_bench_8k,
    'mme_realworld': mme_realworld,
}
