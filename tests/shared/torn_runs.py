"""A run that was stopped or killed beside one that was left alone."""

import json
from collections import Counter
from pathlib import Path

from safetensors.numpy import load_file

from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.storage import local_input

# Of a step, without clocks and what depends on how much of it was still to be sampled.
COMPARED = {
    'rl': ('loss', 'grad_norm', 'reward', 'turns', 'entropy', 'sampler_gap', 'trained_share'),
    'sft': ('loss', 'grad_norm', 'learning_rate', 'entropy', 'response_length'),
}


def of_all(workdir: Path) -> list[Path]:
    """The workdirs of all processes."""
    return [workdir, *workdir.parent.glob(f'{workdir.name}-process-*')]


def differences(folder: Path, torn: str, whole: str, stage: str = 'rl') -> list[str]:
    """Sentences on what a run has otherwise than the undisturbed one, to the last bit.

    Args:
        folder: where copies of workdirs in a store are kept.
        torn: the run's workdir, a path or an address.
        whole: the other's.
        stage: that both have made.
    """
    name, runs = Path(torn).name, [Path(local_input(w, f'{folder}/read')) for w in (torn, whole)]
    ours, theirs = (load_file(run / stage / 'policy' / 'model.safetensors') for run in runs)
    other = [key for key in theirs if ours[key].tobytes() != theirs[key].tobytes()]
    steps, their_steps = (
        [
            [r['values'][key] for key in COMPARED[stage]]
            for r in read_metrics(run / 'metrics.jsonl', stage)
        ]
        for run in runs
    )
    found = [f'{name}: {len(other)} of {len(theirs)} tensors differ'] if other else []
    found += [f'{name}: the metrics differ'] if steps != their_steps else []
    for file in (file for path in of_all(runs[0]) for file in path.glob('rl/trajectories/*.jsonl')):
        times = Counter((t['question']['id'], t['member']) for t in map(json.loads, file.open()))
        found += [f'{name}: {key} is twice in {file.name}' for key in times if times[key] > 1]
    return found
