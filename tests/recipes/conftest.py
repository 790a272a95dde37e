"""RL of three questions on a toy policy with scripted tools, in this process: a step, or a run."""

import contextlib
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from scripted_tools import noise_file
from toy_policy import by_chance, reward

from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.mixing import Pool
from sensesearch_jax.recipes import rl
from sensesearch_jax.recipes.rl_samplers import StepwiseSampler
from sensesearch_jax.recipes.rows import suppressed_mask
from sensesearch_jax.recipes.session import Session, load_policy_directory
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.optimizer import make_optimizer
from sensesearch_jax.training.trained_part import decoder
from sensesearch_jax.training.trainer import Learner


@pytest.fixture(scope='module')
def world(policy_folder, tmp_path_factory):
    """A policy, a learner that every test starts anew, and a function that runs a step with given
    tools."""
    config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'rl.py'))['get_config']()
    config.rl.update(
        members=3, questions_per_step=3, micro_batch=2, steps=2, warmup=0, learning_rate=1e-2
    )
    config.agent.update(
        max_turns=3, turn_tokens=6, passage_chars=30, text_results=2, image_results=2
    )
    config.rollout.update(chunk=4, prompt_capacity=256, suffix_capacity=384)
    folder = tmp_path_factory.mktemp('world')
    questions = [
        Question(
            f'q{i}',
            f'What is {i}?',
            (noise_file(folder / f'{i}.png', 56 + 28 * i, 56, i),),
            ('it',),
            category='search',
            difficulty='1',
        )
        for i in range(3)
    ]
    pools, one_device = [Pool('', questions, 0.0)], make_mesh({}, jax.devices()[:1])
    loaded = load_policy_directory(policy_folder, config, one_device, 'float32')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Environment, 'parse', by_chance)
        monkeypatch.setattr(Scorer, 'scored', reward)
        learner = Learner(
            loaded.policy,
            make_optimizer(config.rl, 4),
            suppressed=suppressed_mask(loaded),
            objective=rl.make_objective(config.rl),
        )
        reference, samplers = nnx.state(loaded.policy, decoder), {}

        def step(path, tools):
            with (
                Workdir.open(path, config) as workdir,
                MetricWriter(workdir / 'metrics.jsonl') as metrics,
            ):
                session = Session(config, workdir, tools, metrics, one_device, samplers)
                learner.parameters = jax.tree.map(jax.numpy.copy, reference)
                learner.moments = learner.optimizer.init(learner.parameters)
                engines = session.engines(
                    loaded,
                    asked=3,
                    groups=3,
                    members=3,
                    sampling=Sampling(),
                    parameters=learner.all_parameters,
                )
                features = session.features(loaded)
                return rl.rl_step(
                    session,
                    loaded,
                    features,
                    StepwiseSampler(session, loaded, features, engines),
                    learner,
                    reference,
                    questions,
                    0,
                )

        def moved():
            after, before = (nnx.to_flat_state(state) for state in (learner.parameters, reference))
            return max(
                float(np.abs(a[...] - b[...]).max())
                for (_, a), (_, b) in zip(after, before, strict=True)
            )

        @contextlib.contextmanager
        def session(path, tools, mesh=one_device, **settings):
            changed = config.copy_and_resolve_references()
            changed.rl.update(checkpoint_every=1, threads=1, averaged=False, **settings)
            changed.rollout.update(warm_up=False, engines=min(2, mesh.size), groups=3)
            with (
                Workdir.open(path, changed) as workdir,
                MetricWriter(workdir / 'metrics.jsonl') as metrics,
            ):
                kept = samplers if mesh is one_device else {}
                yield Session(changed, workdir, tools, metrics, mesh, kept)

        def run(path, tools, loaded=loaded, mesh=one_device, **settings):
            with session(path, tools, mesh, **settings) as opened:
                return rl.rl(opened, loaded, opened.features(loaded), pools)

        step.moved, step.config, step.run, step.samplers = moved, config, run, samplers
        step.session, step.loaded, step.pools = session, loaded, pools
        yield step
