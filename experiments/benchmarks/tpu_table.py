"""The table docs/tpu_memory.md: the shipped 7B configs on the slices that they are meant for,
compiled ahead of time.

    python -m experiments.benchmarks.tpu_table --results=tpu_memory.jsonl

What the results file holds already is not compiled again, so that the command goes on where it was
interrupted; `--only` compiles nothing and writes the table of what is there. Needs the extra `tpu`,
and minutes per program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.benchmarks.compiled import in_words

GIB = 2.0**30
# Config, part, slice, and what the slice changes in the config. A replica of the sampler is one
# host of such a slice; for four devices out of a v6e:8x8 the compiler dies (libtpu 0.0.52), for
# such a host alone it does not.
CASES = [
    ('sft_7b', 'training', 'v5e:8x8', ''),
    ('sft_7b', 'training', 'v5p:4x4x4', ''),
    ('sft_7b', 'training', 'v6e:8x8', ''),
    (
        'sft_7b',
        'training',
        'v5p:16x16x16',
        '--config.mesh.data=64 --config.mesh.fsdp=32 '  # 2048 divides no width
        '--config.sft.micro_batch=2048 --config.sft.batch=2048',
    ),
    ('rl_7b', 'training', 'v6e:8x8', ''),
    ('rl_7b', 'training', 'v5p:4x4x4', ''),
    ('rl_7b', 'training', 'tpu7x:4x4x4', '--config.rl.micro_batch=32'),  # 64 chips are 128 devices
    ('rl_7b', 'sampling', 'v6e:2x2', ''),
    ('rl_7b', 'sampling', 'v5p:4x4x4', ''),
    ('rl_7b', 'sampling', 'tpu7x:4x4x4', ''),
]

HEAD = """# The 7B programs on TPU slices, ahead of time

Made by `python -m experiments.benchmarks.tpu_table` with the TPU compiler and no TPU: the shipped configs' own programs, 28 layers,
compiled for a slice that was not there. Nothing here was run. GiB and seconds are per device as jax counts them (a chip
of tpu7x is two). "Arguments" are those and results, "beside" is what stays on the device while the program runs and is
none of its arguments (moments, a sum of gradients, the reference). "At least" is the time that published peak rates do
not let the program beat: FLOPs of the mathematics counted by hand (recomputation aside), bytes of memory that it cannot
help to move, and what its collectives bring into a device, loops counted as often as they run. The largest binds. The
compiler's own FLOPs count a loop's body once. A decode is a chunk of 64 tokens on every lane. "Compiled in" is wall time on
two cores, beside other work and with its pauses.

A heading names rows and mesh. A slice is named by its kind and topology, which tell its chips: v5p:4x4x4 has 64 (Google's
accelerator type for it, v5p-128, counts TensorCores).
"""  # noqa: E501


def row(found: dict[str, Any]) -> str:
    """A program's line."""
    start = f'| {found["topology"]} | {found["program"]} | {found["date"]} | '
    if 'total' not in found:
        return start + f'{found["sentence"]} |' + ' |' * 7

    def gib(name):
        return f'{found[name] / GIB:.1f}'

    least = found['least_s']
    moved = in_words(found['moved'])
    moved += f' ({found["unknown_loops"]} loops counted once)' if found['unknown_loops'] else ''
    kinds = ('compute', 'memory', 'network')
    cells = [
        f'{gib("total")} of {gib("limit")}' + ('' if found['fits'] else ': too much'),
        ' + '.join(map(gib, ('arguments', 'temporaries', 'beside'))),
        f'{found["compile_s"]:.0f} s',
        *(f'{found[flops]:.1e}' for flops in ('flops', 'compiler_flops')),
        moved,
        ' / '.join(f'{least[what]:.2g}' if what in least else '–' for what in kinds),
        found['binds'],
    ]
    return start + ' | '.join(cells) + ' |'


def done(name: str, part: str, topology: str, results: list[dict[str, Any]]) -> bool:
    """Whether a case's last program is among the results."""
    stage = name.removesuffix('_7b')
    last = name, topology, f'{stage} update' if part == 'training' else 'decode'
    return any((r.get('config'), r['topology'], r['program']) == last for r in results)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the newest result of each program on each slice, and of the cases without any."""
    newest = {(r['what'], r['topology'], r['program']): r for r in results}
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in newest.values():
        groups.setdefault(found['what'], []).append(found)
    lines = [HEAD]
    for what, rows in groups.items():
        lines += [
            f'\n## {what[0].upper() + what[1:]}\n',
            '| Slice | Program | Date | GiB of | arguments + temporaries + beside | Compiled in | FLOPs by hand | '
            'by the compiler | Collectives bring in | At least s: compute / memory / network | Binds |',
            '|' + '---|' * 11,
            *map(row, rows),
        ]
    missing = [
        f'{name} ({part}) on {topology}'
        for name, part, topology, _ in CASES
        if not done(name, part, topology, results)
    ]
    lines += ['\nNot compiled in full yet: ' + ', '.join(missing) + '.'] if missing else []
    return '\n'.join(lines) + '\n'


def read(path: Path) -> list[dict[str, Any]]:
    """All results so far, of the whole policy."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [r for r in found if r['layers'] == 28]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--results', type=Path, default=Path('tpu_memory.jsonl'), help='a line of JSON per program'
    )
    parser.add_argument('--only', action='store_true', help='compile nothing')
    parser.add_argument('--out', type=Path, default=Path('docs/tpu_memory.md'))
    asked = parser.parse_args()
    for name, part, topology, changes in CASES if not asked.only else ():
        if done(name, part, topology, read(asked.results)):
            continue
        command = [sys.executable, '-m', 'experiments.benchmarks.tpu_memory', *changes.split()]
        command += [f'--config=configs/{name}.py', f'--topology={topology}', f'--part={part}']
        subprocess.run([*command, f'--results={asked.results}'])
    asked.out.write_text(table(read(asked.results)))


if __name__ == '__main__':
    main()
