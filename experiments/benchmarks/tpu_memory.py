"""The programs of a config, compiled ahead of time for TPUs that are not here: do they fit, and
what binds?

    python -m experiments.benchmarks.tpu_memory --config=configs/sft_7b.py --topology=v5e:8x8

For the config's stage (`sft` or `rl`), mesh, remat policy and type: memory per device against its
limit, compile time, FLOPs counted by hand and by the compiler, bytes that collectives bring in, and
the time that published peak rates do not let the program beat, with what binds. RL has the
sampler's prefill, extend and decode too. A program that does not fit is reported with what to
change, and the exit status is 1. Needs the extra `tpu` (the compiler alone, no TPU).
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from experiments.benchmarks.compiled import collectives, in_words
from experiments.benchmarks.tpu_programs import Lengths, Program, sampling, training
from experiments.benchmarks.work import GIB, clock, with_layers
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.simulation.rates import CHIPS, Chip

# The program's own: who imports this file, as the tests do, has flags of another program.
FLAGS = flags.FLAGS if __name__ == '__main__' else flags.FlagValues()
OURS = {'flag_values': FLAGS}
PARTS = {'training': training, 'sampling': sampling}
CONFIG = config_flags.DEFINE_config_file('config', 'configs/sft_7b.py', 'With a stage.', **OURS)
TOPOLOGY = flags.DEFINE_string('topology', 'v5e:8x8', 'Kind and shape of the slice.', **OURS)
SIZE = flags.DEFINE_enum('size', '7B', list(RELEASED), 'Of the released policies.', **OURS)
LAYERS = flags.DEFINE_integer('layers', 0, 'Fewer decoder layers, to try; 0 keeps all.', **OURS)
PROMPT = flags.DEFINE_integer('prompt', 10_580, 'Prompt tokens: 4K picture, question.', **OURS)
VISUAL = flags.DEFINE_integer('visual', 10_549, 'Visual tokens of a row.', **OURS)
SUFFIX = flags.DEFINE_integer('suffix', 16_000, 'Tokens of a trajectory after it.', **OURS)
PART = flags.DEFINE_multi_enum('part', [*PARTS], [*PARTS], 'SFT has no sampling.', **OURS)
RESULTS = flags.DEFINE_string('results', '', 'A line of JSON per program is added.', **OURS)


VERSIONS = ', '.join(
    f'{name} {d.version}' for name in ('jax', 'libtpu') for d in metadata.distributions(name=name)
)
COLUMNS = (
    'Program', 'GiB of', 'arguments + temporaries + beside', 'Compiled in', 'FLOPs by hand',
    'by the compiler', 'Collectives bring in', 'At least s: compute / memory / network', 'Binds',
)  # fmt: skip
ADVICE = {
    'training': "take fewer rows (micro_batch), remat 'full', more devices along mesh.fsdp, or a larger "
    'mesh.tensor or mesh.sequence',
    'sampling': 'take fewer rollout.groups, a smaller rollout.suffix_capacity, or a larger mesh.tensor',
}


def measured(program: Program, part: str, chip: Chip) -> dict[str, Any]:
    """Compiles one program: what it needs, moves and cannot beat; without these where it does not
    fit.
    """
    found: dict[str, Any] = {'program': program.name, 'fits': False}
    try:
        seconds, (compiled, text) = clock(compiled_with_text, program.lowered)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        if vmem := re.search(r'size (\S+) and limit (\S+) exceeded scoped vmem', str(error)):
            return found | {'sentence': f'one operation wants {vmem[1]} of {vmem[2]} vmem.'}
        used = re.search(r'[Uu]sed ([\d.]+\w) of ([\d.]+\w) hbm', str(error))
        how = f' ({used[1]} of {used[2]})' if used else ''
        return found | {'sentence': f'does not fit{how}: {ADVICE[part]}.'}
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes + program.beside
    moved, unknown = collectives(text, program.steps)
    times = {
        'compute': program.flops / chip.flops,
        'memory': (held + program.weights) / chip.memory,
        'network': sum(moved.values()) / chip.network,
    }
    beside = f'({total / GIB:.1f} of {chip.size / GIB:.0f} GiB): {ADVICE[part]}.'
    sentence = f'does not fit beside what else is held {beside}'
    return found | {
        'fits': total <= chip.size,
        'arguments': held,
        'temporaries': memory.temp_size_in_bytes,
        'beside': program.beside,
        'total': total,
        'limit': chip.size,
        'compile_s': seconds,
        'flops': program.flops,
        'compiler_flops': (compiled.cost_analysis() or {}).get('flops', 0.0),
        'moved': dict(moved),
        'unknown_loops': unknown,
        'least_s': times,
        'binds': max(times, key=times.get),
        'sentence': 'fits.' if total <= chip.size else sentence,
    }


def compiled_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text as the compiler writes it: jaxlib cannot read back all that
    a newer one made.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
        compiled = lowered.compile(compiler_options=dump)
        written = [path.read_text() for path in Path(folder).glob('*.after_optimizations.txt')]
        # There is none where it comes from a compilation cache.
        return compiled, written[0] if written else compiled.as_text()


def row(found: dict[str, Any]) -> list[str]:
    """A program's cells under COLUMNS."""
    if 'total' not in found:
        return [found['program'], found['sentence'], *[''] * 7]
    sizes = ('total', 'limit', 'arguments', 'temporaries', 'beside')
    gib = {name: f'{found[name] / GIB:.1f}' for name in sizes}
    loops = found['unknown_loops']
    return [
        found['program'],
        f'{gib["total"]} of {gib["limit"]}' + ('' if found['fits'] else ': too much'),
        f'{gib["arguments"]} + {gib["temporaries"]} + {gib["beside"]}',
        f'{found["compile_s"]:.0f} s',
        f'{found["flops"]:.1e}',
        f'{found["compiler_flops"]:.1e}',
        in_words(found['moved']) + (f' ({loops} loops counted once)' if loops else ''),
        ' / '.join(f'{found["least_s"][kind]:.2g}' for kind in ('compute', 'memory', 'network')),
        found['binds'],
    ]


def shown(found: dict[str, Any]) -> str:
    """A program's lines for a terminal."""
    cells = (f'{name}: {cell}' for name, cell in zip(COLUMNS, row(found)) if cell)
    return '\n  '.join([*cells, found['sentence']])


def main(_: list[str]) -> None:
    config, slice_name = CONFIG.value, TOPOLOGY.value
    stage = next((name for name in ('sft', 'rl') if name in config), None)
    kind = slice_name.partition(':')[0]
    if stage is None or kind not in CHIPS:
        raise SystemExit(
            f'The config needs a stage sft or rl, and --topology a kind of {", ".join(CHIPS)}.'
        )
    # The compiler must not look for a TPU, nor ask the network what machine this is.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    try:
        devices = topologies.get_topology_desc(slice_name, 'tpu').devices
    except (RuntimeError, ImportError) as error:
        raise SystemExit(
            f'No TPU compiler, or no such slice ({error}); pip install -e ".[tpu]".'
        ) from None
    sizes = with_layers(RELEASED[SIZE.value], LAYERS.value)
    lengths, fits = Lengths(PROMPT.value, VISUAL.value, SUFFIX.value), True
    layers = sizes.language.layers
    for part in PART.value if stage == 'rl' else ['training']:
        words, programs = PARTS[part](config, stage, sizes, lengths, devices)
        on = f'{layers} layers, {slice_name} ({len(devices)} devices), {VERSIONS}'
        print(f'{SIZE.value}, {on}: {words}', flush=True)
        for program in programs:
            found = measured(program, part, CHIPS[kind])
            fits &= found['fits']
            print(shown(found), flush=True)
            if RESULTS.value:
                name = Path(config_flags.get_config_filename(FLAGS['config'])).name
                found |= {'config': name.replace('.py', ''), 'what': words, 'topology': slice_name}
                found |= {'layers': layers, 'size': SIZE.value, 'date': f'{datetime.date.today()}'}
                with Path(RESULTS.value).open('a') as file:
                    file.write(json.dumps(found | {'compiler': VERSIONS}) + '\n')
    sys.exit(not fits)


if __name__ == '__main__':
    app.run(main)
