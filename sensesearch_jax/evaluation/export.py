"""Results in the files of other evaluation tools, so that their own scripts can read them.

    python -m sensesearch_jax.evaluation.export runs/evaluate [--format=lmms_eval] [--out=DIR]

lmms_eval: samples_SET.jsonl of {doc_id, doc, target, arguments, resps, filtered_resps, …} and
results.json, as `lmms-eval --log_samples` writes them. vlmevalkit: NAME_SET.tsv of {index, question,
A, B, …, answer, category, prediction}, as VLMEvalKit's `run.py --mode eval` takes them, and
NAME_SET.xlsx as well where openpyxl is installed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sensesearch_jax.evaluation.result_files import read_rows
from tools_server.answer_matching.gold import gold_letters

Row = Mapping[str, Any]
FORMATS = 'lmms_eval', 'vlmevalkit'
# Names of the sets in these tools, where they have them; other sets keep ours.
LMMS_TASKS = {
    'mmsearch': 'mmsearch_end2end',
    'vstar': 'vstar_bench',
    'hr_bench_4k': 'hrbench4k',
    'hr_bench_8k': 'hrbench8k',
    'mme_realworld': 'mmerealworld',
    'simple_vqa': 'simplevqa',
}
VLMEVALKIT_SETS = {
    'vstar': 'VStarBench',
    'hr_bench_4k': 'HRBench4K',
    'hr_bench_8k': 'HRBench8K',
    'mme_realworld': 'MME-RealWorld',
    'simple_vqa': 'SimpleVQA',
}
_CELL_CHARS = 32_767  # most that a spreadsheet's cell holds


def export(workdir: Path, kind: str, out: Path, name: str) -> list[Path]:
    """Writes the results of a workdir in another tool's files.

    Args:
        workdir: of an evaluation.
        kind: one of `FORMATS`.
        out: the folder; made if it is not there.
        name: of the model, in names of files and in results.json.

    Returns:
        The files.

    Raises:
        UserError: the workdir has no results.
    """
    by_set: dict[str, list[Row]] = {}
    for row in read_rows(workdir):
        by_set.setdefault(row['set'], []).append(row)
    out.mkdir(parents=True, exist_ok=True)
    write = {'lmms_eval': _lmms_eval, 'vlmevalkit': _vlmevalkit}[kind]
    return write(by_set, out, name)


def lmms_sample(number: int, samples: Sequence[Row]) -> dict[str, Any]:
    """The line of a question in lmms-eval's samples file.

    Args:
        number: of the question within its set, from 0.
        samples: its rows; their answers are the responses.
    """
    row = samples[0]
    letters = sorted(gold_letters(row['references'], row['choices'])) if row['choices'] else []
    target = letters[0] if letters else row['references'][0]
    doc = {
        'question_id': row['id'],
        'question': row['question'],
        'answer': target,
        'answers': row['references'],
        'category': row['category'],
        'difficulty': row['difficulty'],
        **dict(zip(ascii_uppercase, row['choices'], strict=False)),
    }
    responses = [sample['answer'] or '' for sample in samples]
    return {
        'doc_id': number,
        'doc': doc,
        'target': target,
        'arguments': [_prompt(row)],
        'resps': [responses],
        'filtered_resps': responses,
        'doc_hash': _hash(json.dumps(doc, sort_keys=True, ensure_ascii=False)),
        'prompt_hash': _hash(_prompt(row)),
        'target_hash': _hash(target),
        'accuracy': row['accuracy'],
        **row['metrics'],
    }


def vlmevalkit_row(index: int, row: Row) -> dict[str, Any]:
    """A line of VLMEvalKit's table: the answer's letter for questions with options, else the text.

    Args:
        index: of the sample within its set, from 0.
        row: of results.jsonl.
    """
    letters = sorted(gold_letters(row['references'], row['choices'])) if row['choices'] else []
    return {
        'index': index,
        'id': row['id'],
        'question': row['question'],
        **dict(zip(ascii_uppercase, row['choices'], strict=False)),
        'answer': letters[0] if letters else row['references'][0],
        'category': row['category'] or 'all',
        'l2-category': row['difficulty'],
        'split': row['set'],
        'prediction': row['answer'] or '',
        'hit': int(row['accuracy']),
    }


def _lmms_eval(by_set: Mapping[str, Sequence[Row]], out: Path, name: str) -> list[Path]:
    files, results, counts = [], {}, {}
    for of_set, rows in by_set.items():
        task = LMMS_TASKS.get(of_set, of_set)
        by_question: dict[str, list[Row]] = {}
        for row in rows:
            by_question.setdefault(row['id'], []).append(row)
        lines = [lmms_sample(i, samples) for i, samples in enumerate(by_question.values())]
        files.append(out / f'samples_{task}.jsonl')
        text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
        files[-1].write_text(text, encoding='utf-8')
        means = {}
        for metric in dict.fromkeys(['accuracy', *(m for row in rows for m in row['metrics'])]):
            found = [line[metric] for line in lines if metric in line]
            means[metric] = sum(found) / len(found)
        results[task] = {'alias': task, **{f'{m},none': mean for m, mean in means.items()}}
        counts[task] = {'original': len(lines), 'effective': len(lines)}
    files.append(out / 'results.json')
    content = {'results': results, 'n-samples': counts, 'config': {'model': name}}
    files[-1].write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    return files


def _vlmevalkit(by_set: Mapping[str, Sequence[Row]], out: Path, name: str) -> list[Path]:
    files = []
    for of_set, rows in by_set.items():
        first = [row for row in rows if row['sample'] == 0]
        lines = [vlmevalkit_row(i, row) for i, row in enumerate(first)]
        most = max(lines, key=len)  # questions of one set may differ in how many options they have
        letters = sorted({k for line in lines for k in line if len(k) == 1})
        columns = [k for k in most if len(k) > 1]
        columns[3:3] = letters
        stem = f'{name.replace("/", "_")}_{VLMEVALKIT_SETS.get(of_set, of_set)}'
        files.append(out / f'{stem}.tsv')
        with open(files[-1], 'w', encoding='utf-8', newline='') as file:
            table = csv.DictWriter(file, columns, delimiter='\t', restval='')
            table.writeheader()
            table.writerows(lines)
        if importlib.util.find_spec('openpyxl'):
            files.append(_xlsx(out / f'{stem}.xlsx', columns, lines))
    return files


def _xlsx(path: Path, columns: Sequence[str], lines: Sequence[Row]) -> Path:
    import openpyxl
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet('Sheet1')
    sheet.append(list(columns))
    for line in lines:
        cells = (line.get(column, '') for column in columns)
        sheet.append(
            [
                ILLEGAL_CHARACTERS_RE.sub('', c)[:_CELL_CHARS] if isinstance(c, str) else c
                for c in cells
            ]
        )
    book.save(path)
    return path


def _prompt(row: Row) -> str:
    options = (f'{letter}. {text}' for letter, text in zip(ascii_uppercase, row['choices']))
    return '\n'.join([row['question'], *options])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """The command: writes the files and prints their names."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('workdir', type=Path, help='of an evaluation; has results.jsonl')
    parser.add_argument('--format', choices=FORMATS, action='append', help='all if not given')
    parser.add_argument('--out', type=Path, help='folder; WORKDIR/export if not given')
    parser.add_argument('--name', default='policy', help='of the model, in names of files')
    given = parser.parse_args()
    for kind in given.format or FORMATS:
        folder = (given.out or given.workdir / 'export') / kind
        for file in export(given.workdir, kind, folder, given.name):
            print(file)


if __name__ == '__main__':
    from sensesearch_jax.errors import UserError

    try:
        main()
    except UserError as error:
        sys.exit(str(error))
