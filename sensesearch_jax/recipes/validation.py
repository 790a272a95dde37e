"""Validation of a policy in training: held-out questions, asked every so many steps with the run's
tools, through the same path as an evaluation, and the checkpoint that did best.

A step is saved first and validated then; its trajectories lie in
workdir/validation/STAGE/STEP/NAME.jsonl as they end. So a run that is killed meanwhile goes on in the
middle of the validation.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.data.questions import questions_of
from sensesearch_jax.evaluation.behaviour import behaviour
from sensesearch_jax.evaluation.modes import AGENT
from sensesearch_jax.recipes.evaluated_agents import PolicyAgent
from sensesearch_jax.recipes.evaluated_samples import Setting, evaluate
from sensesearch_jax.recipes.resume import recorded, restore
from sensesearch_jax.recipes.session import LoadedPolicy, Session
from sensesearch_jax.rewards.scorer import is_usable
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost, stopping
from sensesearch_jax.training.checkpointing import Checkpoints
from sensesearch_jax.training.trainer import Learner

FOLDER = 'validation'
SCORES = 'accuracy', 'avg@k', 'loss'  # by which one checkpoint can be better than another
# Where tools or judge failed on more than a tenth, what is left is another set of questions.
USABLE = 0.9


@dataclass(frozen=True)
class Series:
    """Trajectories of a validation that are sampled alike: a file of their own, and metrics.

    Args:
        name: of the file.
        setting: how the questions are asked.
        sampling: of the tokens.
    """

    name: str
    setting: Setting
    sampling: Sampling

    def metrics(self, found: Sequence[Trajectory]) -> dict[str, float]:
        """Its part of the metrics, all of them of the trajectories that count.

        Args:
            found: the trajectories, all samples of a question one after another.
        """
        if self.name == 'greedy':
            values = behaviour([[t] for t in found])
            values['usable_share'] = float(np.mean([is_usable(t) for t in found]))
            return values
        right: dict[tuple[str, str], list[float]] = {}
        for t in filter(is_usable, found):
            right.setdefault((t.question.source, t.question.id), []).append(t.reward['accuracy'])
        if not right:
            return {}
        mean = float(np.mean([value for values in right.values() for value in values]))
        if self.name != 'sampled':
            return {f'{self.name}/accuracy': mean}
        k = self.setting.samples
        return {f'avg@{k}': mean, f'pass@{k}': float(np.mean([max(v) for v in right.values()]))}


def all_series(config: ConfigDict) -> Iterator[Series]:
    """The series that the config's `validation` asks for: greedy; sampled; without each tool.

    Args:
        config: the run's.
    """
    settings, tools = config.validation, tuple(config.agent.tools)
    greedy = Sampling(0.0)
    yield Series('greedy', Setting(AGENT, 1, tools), greedy)
    if settings.samples:
        sampling = Sampling(settings.temperature)
        yield Series('sampled', Setting(AGENT, settings.samples, tools), sampling)
    for tool in settings.without:
        left = tuple(other for other in tools if other != tool)
        yield Series(f'without_{tool}', Setting(AGENT, 1, left), greedy)


class Validation:
    """The validations of one stage, and the scores of its checkpoints.

    All processes call every method together. Metrics are written as those of the stage, at the step
    whose policy they are of: 0 is the policy that training starts from.

    Args:
        session: of the run.
        stage: 'sft' or 'rl'.
        steps: of the stage, of which the last one is validated too.
        loaded: the policy that is trained from.
        features: of its vision tower.
        learner: whose policy is validated.
        checkpoints: of the stage; they are given the scores.
        loss: the mean loss on rows that are held out; None where there are none.
    """

    def __init__(
        self,
        session: Session,
        stage: str,
        steps: int,
        loaded: LoadedPolicy,
        features: FeatureStore,
        learner: Learner,
        checkpoints: Checkpoints,
        loss: Callable[[], float] | None = None,
    ):
        self.session, self.stage, self.steps = session, stage, steps
        self.loaded, self.features, self.learner = loaded, features, learner
        self.checkpoints, self.loss = checkpoints, loss
        self.every = session.config[stage].validate_every
        self.made: set[int] = set()
        if self.every:
            self.questions = questions_of(session.workdir, session.config.data, 'validation')
            for step, values in made_before(session.workdir.path, stage):
                self._note(step, values)

    def due(self, step: int) -> bool:
        """Whether the policy after so many steps is validated."""
        return bool(self.every) and (step % self.every == 0 or step == self.steps)

    def __call__(self, step: int) -> None:
        """Validates the learner's policy, if it is due and not done, and scores its checkpoint.

        Args:
            step: steps after which it is the policy.

        Raises:
            Stopped: a process was told to stop; what was finished is on disk.
        """
        if not self.due(step) or step in self.made:
            return
        began, values = time.monotonic(), {}
        settings, parameters = (self.session.config.validation, self.learner.validated_parameters)
        for series in all_series(self.session.config):
            agent = PolicyAgent(
                self.session,
                self.loaded,
                self.features,
                series.sampling,
                settings.lanes,
                parameters,
            )
            folder = f'{FOLDER}/{self.stage}/{step:06d}'
            found = evaluate(
                self.session, agent, self.questions, folder, series.name, series.setting
            )
            stopping.check()  # or only a part of the trajectories would be counted
            if multihost.is_main():  # which has the trajectories of all processes
                values |= series.metrics(found)
        if self.loss:
            values['loss'] = self.loss()
        values['seconds'] = time.monotonic() - began
        values = json.loads(multihost.allgather_texts(json.dumps(values))[0])
        values = {f'{FOLDER}/{name}': value for name, value in values.items()}
        self.session.metrics.write(self.stage, step, values)
        self._note(step, values)

    def restore_best(self) -> int | None:
        """Puts the best checkpoint's state into the learner; returns its step, None without one."""
        best = self.checkpoints.best_step()
        if best is not None:
            restore(self.learner, self.checkpoints, best)
        elif multihost.is_main():
            print(
                f'sensesearch_jax: no validation of {self.stage} could be scored, since tools or judge failed; '
                'the last policy is saved.',
                file=sys.stderr,
            )
        return best

    def _note(self, step: int, values: dict[str, float]) -> None:
        self.made.add(step)
        score = score_of(values, self.session.config.validation)
        if score is not None:
            self.checkpoints.score(step, score)


def score_of(values: dict[str, float], settings: ConfigDict) -> float | None:
    """The score of a validation, more is better; None where too much failed to compare it.

    Args:
        values: its metrics.
        settings: the config's `validation`.
    """
    name = settings.best_by.replace('@k', f'@{settings.samples}')
    value = values.get(f'{FOLDER}/{name}', math.nan)
    if not math.isfinite(value):
        return None
    if settings.best_by == 'loss':
        return -value
    return value if values[f'{FOLDER}/usable_share'] >= USABLE else None


def made_before(workdir: Path, stage: str) -> list[tuple[int, dict[str, float]]]:
    """Steps and metrics of the validations that the main process's metrics.jsonl has of a stage.

    Args:
        workdir: of this process.
        stage: of the run.
    """
    return [
        (record['step'], record['values'])
        for record in recorded(workdir, stage)
        if any(name.startswith(f'{FOLDER}/') for name in record['values'])
    ]
