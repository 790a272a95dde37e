"""Step time of a config's RL on a machine that is not here: the run's own scheduler on a virtual
clock, and what changes would bring.

    python -m experiments.benchmarks.pod_simulation --config=configs/rl_7b.py --topology=v5p:4x4x4
    python -m experiments.benchmarks.pod_simulation --measured=runs/rl --against=runs/slow

The first takes the time of programs from published rates and the shares of them that the 7B programs
reached on one H200 (sensesearch_jax/simulation/rates.py), and trajectories from drawn lengths. It
prints a table and draws a timeline of each host. The second fits rates to a run of RL that was made
here, and compares with other runs on the same machine what it says of them. Two cores: minutes.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments.benchmarks.work import markdown
from sensesearch_jax.model.config import RELEASED
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.simulation.changes import AT_ONCE, COLUMNS, changes, row, simulated
from sensesearch_jax.simulation.measured import comparison, read_run
from sensesearch_jax.simulation.plans import Latency, drawn
from sensesearch_jax.simulation.rates import ON_H200, Rates, slice_of
from sensesearch_jax.simulation.run import Pod
from sensesearch_jax.simulation.timeline import draw_timeline

FLAGS = flags.FLAGS if __name__ == '__main__' else flags.FlagValues()
OURS = {'flag_values': FLAGS}
CONFIG = config_flags.DEFINE_config_file('config', 'configs/rl_7b.py', 'Of RL.', **OURS)
TOPOLOGY = flags.DEFINE_string('topology', 'v5p:4x4x4', 'Kind and shape, or h200:8.', **OURS)
SIZE = flags.DEFINE_enum('size', '7B', list(RELEASED), 'Of the released policies.', **OURS)
STEPS = flags.DEFINE_integer('steps', 6, 'That are simulated; the first does not count.', **OURS)
TOOL = flags.DEFINE_list('tool_s', ['2', '11'], 'Median and 99th percentile of a call.', **OURS)
JUDGE = flags.DEFINE_list('judge_s', ['1', '5.5'], 'The same of a verdict.', **OURS)
COMPILE = flags.DEFINE_float('compile_s', 0.0, 'Of a program, where none is cached.', **OURS)
TURNS = flags.DEFINE_float('turns', 0.0, 'Mean of a trajectory; 0: 1 to agent.max_turns.', **OURS)
PICTURE = flags.DEFINE_string('picture', '', 'A PNG of the first row and the best.', **OURS)
MEASURED = flags.DEFINE_string('measured', '', 'Workdir of a run with fast tools.', **OURS)
AGAINST = flags.DEFINE_multi_string('against', [], 'Workdir of another run.', **OURS)


def project(config: ConfigDict, tool: Latency, judge: Latency) -> None:
    """The table of changes, and the picture of the first and the last."""
    chip, devices, host = slice_of(TOPOLOGY.value)
    sizes, tensor = RELEASED[SIZE.value], config.mesh.tensor
    pixels = config.min_pixels, config.max_pixels
    cut = Preprocessor(*pixels, sizes.vision.patch_size, sizes.vision.merge_size)
    rates = Rates(sizes, chip, ON_H200, devices, tensor, tensor, config.rl.dtype)
    pod = Pod(config, cut, rates, devices // host, host // tensor, compile_s=COMPILE.value)
    runs = {}
    drawn_steps = drawn(config, cut, tool, judge, config.seed, TURNS.value)
    steps = list(itertools.islice(drawn_steps, STEPS.value))
    print(f'{SIZE.value}: {devices} devices, {pod.hosts} hosts; {ON_H200}\n', flush=True)
    print(*markdown(COLUMNS, []), sep='\n')
    for name, run in simulated(changes(pod), steps, config.seed):
        runs[name] = run
        print(*markdown(row(name, run, runs['as it is']), [])[:1], flush=True)
    if PICTURE.value:
        shown = {name: runs[name] for name in ('as it is', 'all of these')}
        draw_timeline(shown, 2 * runs['as it is'].step_s, Path(PICTURE.value))


def compare(tool: Latency, judge: Latency) -> None:
    """The table of measured and simulated times."""
    others = [read_run(folder, judge, 0) for folder in AGAINST.value]
    rows = comparison(read_run(MEASURED.value, AT_ONCE, 0), others, tool, judge)
    columns = 'Trajectories and latencies', 'Time', 'Measured', 'Simulated', 'Error'
    print(*markdown(columns, rows), sep='\n')


def main(_: list[str]) -> None:
    tool, judge = (Latency(*map(float, flag.value)) for flag in (TOOL, JUDGE))
    compare(tool, judge) if MEASURED.value else project(CONFIG.value, tool, judge)


if __name__ == '__main__':
    app.run(main)
