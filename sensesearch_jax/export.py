"""Writes a checkpoint of a run as a Hugging Face policy directory.

    python -m sensesearch_jax.export WORKDIR DST --step=best

WORKDIR is that of an SFT, RL or pocket run, which may be going on. STEP is the number of a checkpoint
that is kept, `last` (default), or `best` by validation. What DST holds can be given as --config.policy,
or to any program that reads such directories; to evaluate a checkpoint here it need not be exported:
--config.policy=WORKDIR/sft/checkpoints/STEP.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.checkpoint_policy import CHECKPOINTS, START, steps_in
from sensesearch_jax.recipes.session import load_policy_directory, save_policy_directory
from sensesearch_jax.recipes.validation import made_before, score_of
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.training.checkpointing import BestScored
from tools_server import command

STAGES = 'sft', 'rl'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status: 2 after a UserError, whose sentence it prints."""
    parser = command.parser('sensesearch_jax.export', __doc__)
    parser.add_argument('workdir', metavar='WORKDIR', type=Path)
    parser.add_argument('folder', metavar='DST', type=Path, help='directory that is written')
    parser.add_argument('--step', default='last', help='a number, last (default) or best')
    parser.add_argument('--stage', choices=STAGES, help='needed where the run has both')
    options = parser.parse_args(arguments)
    logging.getLogger('absl').setLevel(logging.WARNING)
    try:
        step = export(options.workdir, options.folder, options.step, options.stage)
    except UserError as error:
        print(f'export: {error}', file=sys.stderr)
        return 2
    print(f'{options.folder}: the policy after step {step}')
    return 0


def export(workdir: Path, folder: Path, step: str, stage: str | None) -> int:
    """Writes a checkpoint as a policy directory; returns its step.

    Args:
        workdir: of the run.
        folder: that is written.
        step: a number, 'last' or 'best'.
        stage: 'sft' or 'rl'; None for the only one.

    Raises:
        UserError: there is no such checkpoint.
    """
    stages = [name for name in STAGES if (workdir / name / START).is_file()]
    if not stages:
        raise UserError(f'{workdir} holds no checkpoints of a run; give the workdir of SFT or RL.')
    if stage is None and len(stages) > 1:
        raise UserError(f'{workdir} has checkpoints of {" and ".join(stages)}; choose by --stage.')
    stage = stage or stages[0]
    config = ConfigDict(json.loads((workdir / 'config.json').read_text()))
    number = chosen_step(workdir, stage, step, config)
    mesh = make_mesh({'fsdp': -1})
    checkpoint = workdir / stage / CHECKPOINTS / str(number)
    loaded = load_policy_directory(checkpoint, config, mesh, 'float32')
    save_policy_directory(loaded.policy, loaded, folder, config[stage].dtype)
    return number


def chosen_step(workdir: Path, stage: str, step: str, config: ConfigDict) -> int:
    """The number of a checkpoint that is kept.

    Args:
        workdir: of the run.
        stage: 'sft' or 'rl'.
        step: a number, 'last' or 'best'.
        config: the run's.

    Raises:
        UserError: there is none, or none was validated.
    """
    kept = steps_in(workdir / stage)
    if not kept:
        raise UserError(f'{workdir / stage} has no checkpoint yet.')
    if step == 'best':
        scores = {
            number: score
            for number, values in made_before(workdir, stage)
            if (score := score_of(values, config.validation)) is not None
        }
        best = BestScored(scores, 1).best(kept)
        if not best:
            raise UserError(
                f'No checkpoint in {workdir / stage} was validated ({stage}.validate_every); it has {kept}.'
            )
        return best[0]
    if step == 'last':
        return kept[-1]
    if not step.isdigit() or int(step) not in kept:
        raise UserError(f'--step={step} is not kept; {workdir / stage} has {kept}.')
    return int(step)


if __name__ == '__main__':
    sys.exit(main())
