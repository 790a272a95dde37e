"""Does a run's memory stay where it is? Many steps of RL of a toy policy, with pictures and tools,
and what they hold.

    python -m experiments.memory_over_steps [--steps=200] [--picture=memory.png]

Trains the toy policy (experiments/toy.py) on pocket questions by `configs/rl.py` with the true tool
server: prompts with pictures, crops and searches that bring more. Every question comes again and
again, with other crops. After WARM steps, which compile, resident memory must stay within BAR of
its median, and the last quarter's median within BAR of the second's. Prints both, draws the memory
of each step (extra `world`), and exits with 1 beyond the bar. Machine: 2 cores, 2 minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from experiments.toy import write_toy_policy
from sensesearch_jax.runtime.metrics import read_metrics

WARM, BAR = 0.25, 0.05  # a share of the steps, and of memory

STEPS = flags.DEFINE_integer('steps', 200, 'Of RL.')
PICTURE = flags.DEFINE_string('picture', 'memory.png', "Where memory is drawn; '' draws nothing.")
SETTINGS = {
    'questions.rl.search': 6,
    'questions.rl.perception': 2,
    'questions.rl.search_only': 2,
    'agent.turn_tokens': 8,
    'agent.max_turns': 4,
    'agent.passage_chars': 120,
    'rollout.groups': 4,
    'rollout.chunk': 8,
    'rollout.prompt_capacity': 384,
    'rollout.suffix_capacity': 380,
    'rl.questions_per_step': 4,
    'rl.members': 4,
    'rl.learning_rate': 1e-3,
    'rl.checkpoint_every': 20,
}


def memory(steps: int, folder: Path) -> list[float]:
    """MiB resident after each step."""
    write_toy_policy(folder / 'policy')
    settings = SETTINGS | {'rl.steps': steps, 'policy': folder / 'policy'}
    subprocess.run(
        [
            sys.executable,
            '-m',
            'experiments.toy',
            '--config=configs/rl.py',
            f'--workdir={folder / "run"}',
            *(f'--config.{name}={value}' for name, value in settings.items()),
        ],
        check=True,
    )
    return [
        row['values']['memory_mib'] for row in read_metrics(folder / 'run' / 'metrics.jsonl', 'rl')
    ]


def draw(held: list[float], path: str) -> None:
    """Memory over steps, with the bar around its median."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    middle = statistics.median(held[int(WARM * len(held)) :])
    figure, axes = plt.subplots(figsize=(7, 2.5), layout='constrained')
    axes.axhspan(
        (1 - BAR) * middle, (1 + BAR) * middle, color='#8a8f98', alpha=0.2, label=f'± {BAR:.0%}'
    )
    axes.plot(range(1, len(held) + 1), held, color='#c44e1b')
    axes.set_xlabel('step')
    axes.set_ylabel('resident, MiB')
    axes.set_ylim(0, None)
    axes.legend(loc='lower right', frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        held = memory(STEPS.value, Path(folder))
    quarter = len(held) // 4
    later = held[int(WARM * len(held)) :]
    middle = statistics.median(later)
    furthest = max(abs(value / middle - 1) for value in later)
    grown = statistics.median(held[-quarter:]) / statistics.median(held[quarter : 2 * quarter]) - 1
    print(
        f'{len(held)} steps: {middle:.0f} MiB after the first {len(held) - len(later)}, at most {furthest:.1%} from it; '  # noqa: E501
        f'the last quarter holds {grown:+.1%} of what the second does.'
    )
    if PICTURE.value:
        draw(held, PICTURE.value)
    sys.exit(furthest > BAR or abs(grown) > BAR)


if __name__ == '__main__':
    app.run(main)
