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

from experiments.benchmarks.tpu_memory import COLUMNS, row
from experiments.benchmarks.work import markdown
from sensesearch_jax.model.config import RELEASED

# Config, part, slice, and what the slice changes in the config. A replica of the sampler is one
# host of such a slice; for four devices out of a v6e:8x8 the compiler dies (libtpu 0.0.52), for
# such a host alone it does not. 2048 divides no width; 64 chips of tpu7x are 128 devices.
CASES = """
sft_7b training v5e:8x8
sft_7b training v5p:4x4x4
sft_7b training v6e:8x8
sft_7b:lora training v5e:2x4
sft_7b:lora training v5p:2x2x1 --config.mesh.fsdp=1 --config.mesh.tensor=1 --config.sft.micro_batch=1
sft_7b training v5p:16x16x16 --config.mesh.data=64 --config.mesh.fsdp=32 --config.sft.micro_batch=2048 --config.sft.batch=2048
rl_7b training v6e:8x8
rl_7b training v5p:4x4x4
rl_7b training tpu7x:4x4x4 --config.rl.micro_batch=32
rl_7b sampling v6e:2x2
rl_7b sampling v5p:4x4x4
rl_7b sampling tpu7x:4x4x4
rl_7b:lora training v5p:2x2x2
rl_7b:lora training v5p:2x2x1 --config.mesh.fsdp=1 --config.mesh.tensor=1 --config.rl.micro_batch=1 --suffix=6848
rl_7b:lora training v5e:2x4 --suffix=6848
rl_7b:lora sampling v5p:2x2x2
rl_7b:lora sampling v5e:2x4 --config.rollout.groups=1 --config.rollout.suffix_capacity=6848
rl_mars training v5p:4x4x4 --size=Qwen3-VL-8B
rl_mars training v6e:8x8 --size=Qwen3-VL-8B
rl_mars training v5p:2x2x2 --size=Qwen3-VL-8B --config.rl.micro_batch=2
rl_mars sampling v5p:4x4x4 --size=Qwen3-VL-8B
rl_mars sampling v6e:2x2 --size=Qwen3-VL-8B --config.rollout.groups=1
"""  # noqa: E501
HEAD = """# The 7B and 8B programs on TPU slices, ahead of time

Made by `python -m experiments.benchmarks.tpu_table` with the TPU compiler and no TPU (Machine: 2 cores, hours): the shipped configs' own programs, all layers,
compiled for a slice that was not there. Nothing here was run. GiB and seconds are per device as jax counts them (a chip
of tpu7x is two). "Arguments" are those and results, "beside" is what stays on the device while the program runs and is
none of its arguments (moments, a sum of gradients, the reference; with adapters the vision tower too, at an update the frozen
matrices, beside the sampler all that training holds). "At least" is the time that published peak rates do not let the program
beat: FLOPs of the mathematics counted by hand (recomputation aside), bytes of memory that it cannot help to move, and what its
collectives bring into a device, loops counted as often as they run. The largest binds. The compiler's own FLOPs count a loop's
body once. A decode is a chunk of 64 tokens on every lane. "Compiled in" is wall time on two cores, beside other work.

A heading names rows and mesh. A slice is named by its kind and topology, which tell its chips: v5p:4x4x4 has 64 (Google's
accelerator type for it, v5p-128, counts TensorCores).
"""  # noqa: E501


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of the newest result of each program on each slice."""
    newest = {(r['size'], r['what'], r['topology'], r['program']): r for r in results}
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in newest.values():
        groups.setdefault(f'{found["size"]}: {found["what"]}', []).append(found)
    lines, (program, *columns) = [HEAD], COLUMNS
    for what, rows in groups.items():
        cells = []
        for found in rows:
            name, *others = row(found)
            cells.append([found['topology'], name, found['date'], *others])
        head = ('Slice', program, 'Date', *columns)
        lines += [f'\n## {what}\n', *markdown(head, cells)]
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--results', type=Path, default=Path('tpu_memory.jsonl'), help='a line for each program')
    add('--only', action='store_true', help='compile nothing')
    add('--out', type=Path, default=Path('docs/tpu_memory.md'))
    asked = parser.parse_args()

    def results() -> list[dict[str, Any]]:
        asked.results.touch()
        every = map(json.loads, asked.results.read_text().splitlines())
        return [r for r in every if r['layers'] == RELEASED[r['size']].language.layers]

    for case in CASES.strip().splitlines() if not asked.only else ():
        name, part, topology, *changes = case.split()
        last = f'{name.partition("_")[0]} update' if part == 'training' else 'tower'
        case = name, topology
        done = [r['program'] for r in results() if (r['config'], r['topology']) == case]
        if not any(program.startswith(last) for program in done):
            command = [sys.executable, '-m', 'experiments.benchmarks.tpu_memory', *changes]
            file, colon, variant = name.partition(':')
            command += [f'--config=configs/{file}.py{colon}{variant}', f'--topology={topology}']
            subprocess.run([*command, f'--part={part}', f'--results={asked.results}'])
    asked.out.write_text(table(results()))


if __name__ == '__main__':
    main()
