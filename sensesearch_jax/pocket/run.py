"""The whole method on real pictures and facts: mine, synthesise, validate, SFT, RL, evaluation,
report.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from sensesearch_jax.agent.trajectory import Question, Trajectory
from sensesearch_jax.data.questions import pools_of, questions_of
from sensesearch_jax.pocket.report import ReportMeta, write_report
from sensesearch_jax.recipes.cold_start import cold_start, policy_answers
from sensesearch_jax.recipes.evaluate import policy_agent, write_summary
from sensesearch_jax.recipes.evaluated_samples import EVALUATION, Setting, evaluate
from sensesearch_jax.recipes.rl import rl
from sensesearch_jax.recipes.session import (
    LoadedPolicy,
    Session,
    load_policy_directory,
    open_session,
)
from sensesearch_jax.recipes.sft import sft
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime.machine import machine
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.workdir import Workdir, atomic_write


def run(config: ConfigDict, workdir: Workdir) -> None:
    """Every stage in turn; each goes on where an interrupted run stopped.

    Ends with a table and report.html.
    """
    mesh = make_mesh(config.mesh)

    def load(folder):
        return load_policy_directory(folder, config, mesh, 'float32')  # what is trained is float32

    base = load(config.policy)
    with open_session(config, workdir) as session:
        timed = Stopwatch(workdir)
        with timed('questions'):
            train = questions_of(workdir, config.data, 'train')
            fresh = pools_of(workdir, config.data, 'rl')
            test = questions_of(workdir, config.data, 'eval')
        features = session.features(base)
        with timed('cold start'):
            demonstrations = cold_start(
                session, base.chat, policy_answers(session, base, features), train
            )
        with timed('sft'):
            learned = load(sft(session, base, features, demonstrations))
        # The tower is frozen: its features outlive every update of the decoder.
        with timed('rl'):
            tuned = load(rl(session, learned, features, fresh))
        with timed('evaluation'):
            runs = evaluate_all(
                session, features, {'base': base, 'sft': learned, 'rl': tuned}, test
            )
        summary = write_summary(workdir, runs)
        size = write_report(
            workdir / 'report.html',
            summary,
            read_metrics(workdir / 'metrics.jsonl'),
            {name: [t.to_json() for t in found] for name, found in runs.items()},
            session.client.image,
            report_meta(session, timed.seconds),
            protocol=session.protocol,
        )
    print(
        f'\n{workdir / "report.html"} ({size / 1e6:.1f} MB): curves, results, and every kind of trajectory to look at.'
    )


def evaluate_all(
    session: Session,
    features: FeatureStore,
    policies: dict[str, LoadedPolicy],
    questions: Sequence[Question],
) -> dict[str, list[Trajectory]]:
    """The policies with all tools, and the last one without the crop on the questions that need it,
    if there are any.

    Args:
        session: the open session.
        features: of the images.
        policies: by name, the one that is evaluated without the crop last.
        questions: of the test split.
    """
    all_tools = Setting('agent', 1, tuple(session.config.agent.tools))

    def played(loaded, questions, name, setting):
        agent = policy_agent(session, loaded, features)
        return evaluate(session, agent, questions, EVALUATION, name, setting)

    runs = {name: played(loaded, questions, name, all_tools) for name, loaded in policies.items()}
    tools = tuple(tool for tool in session.config.agent.tools if tool != 'image_crop')
    name, loaded = list(policies.items())[-1]
    search = [q for q in questions if q.category == 'search']
    if search:
        without = f'{name} without crop'
        runs[without] = played(loaded, search, without, Setting('agent', 1, tools))
    return runs


def report_meta(session: Session, seconds: dict[str, float]) -> ReportMeta:
    """The report's account of the run: config, machine, time, and the cold start's funnel."""
    config, workdir = session.config, session.workdir
    cold = workdir.stage_result('cold_start')
    mined = (workdir / 'cold_start' / 'mined.jsonl').read_text().splitlines()
    hard = sum(json.loads(line)['right'] <= config.mine.most_right for line in mined)
    return ReportMeta(
        title='SenseSearch, pocket run',
        date=datetime.date.today().isoformat(),
        machine=machine(),
        command=f'python -m sensesearch_jax.main {" ".join(sys.argv[1:])}',
        config=config.to_dict(),
        durations=seconds,
        funnel={
            'questions': len(mined),
            'hard for the base policy': hard,
            'synthesised': cold['synthesised'],
            'kept': cold['kept'],
        },
        rejections=cold['rejected'],
    )


class Stopwatch:
    """Seconds per stage, over all starts of a run."""

    def __init__(self, workdir: Workdir):
        self.path = workdir / 'durations.json'
        self.seconds: dict[str, float] = (
            json.loads(self.path.read_text()) if self.path.is_file() else {}
        )

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measures the stage within `with`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
            atomic_write(self.path, json.dumps(self.seconds))
