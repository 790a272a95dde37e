"""The session that every recipe with an agent runs in: tool server and client, policy directory,
engines, metrics and files of trajectories.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sensesearch_jax.agent.chat_template import ChatTokenizer
from sensesearch_jax.agent.environment import Environment
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import Protocol
from sensesearch_jax.agent.released import protocol_of
from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import SampleState, Trajectory
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.hf_checkpoint import save_policy
from sensesearch_jax.model.image_processor import Preprocessor
from sensesearch_jax.model.lora import Lora
from sensesearch_jax.model.peft_files import save_adapters
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.recipes.capacities import Room, feature_cache_bytes, read_preprocessor
from sensesearch_jax.recipes.checkpoint_policy import policy_files, read_policy
from sensesearch_jax.rewards.accuracy import client_judge
from sensesearch_jax.rewards.scorer import Scorer
from sensesearch_jax.rollout.engine import Engine
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.scheduler import RolloutLimits, Stream
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore
from sensesearch_jax.runtime import multihost
from sensesearch_jax.runtime.mesh import make_mesh, replica_axes, replica_count, replicas
from sensesearch_jax.runtime.metric_sinks import Sinks
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir
from sensesearch_jax.training.trainer import Learner
from tools_server.launch import ToolServer

# Results that are on disk and asked again when a run goes on: the tools had failed, or the judge,
# or there was no room.
ASKED_AGAIN = (SampleState.INFRA_FAILED, SampleState.UNSCORABLE, SampleState.TOO_LONG)


@dataclass
class LoadedPolicy:
    """A policy from its directory, with the tokenizer and preprocessor that lie beside it."""

    folder: Path
    policy: Policy
    chat: ChatTokenizer
    preprocessor: Preprocessor


@dataclass
class Session:
    """A run's config, tools, outputs and engines."""

    config: ConfigDict
    workdir: Workdir
    client: ToolClient
    metrics: MetricWriter
    mesh: Mesh
    samplers: dict[Any, list[Engine]] = field(default_factory=dict)

    @property
    def protocol(self) -> Protocol:
        """The text form that the run's policy, expert and scorer share."""
        return protocol_of(self.config.agent)

    def scorer(self, step: int | None = None) -> Scorer:
        """The run's scorer, with the tool server's judge; without RL weights are the paper's.

        Args:
            step: of RL, from 0; before `rl.price_from_step`, which counts from 1, calls are free.
        """
        weights = {'prices': {}, 'format_weight': 0.5, 'evidence_weight': 0.0}
        if 'rl' in self.config:
            rl = self.config.rl
            priced = step is None or step + 1 >= rl.price_from_step
            weights = {
                'prices': rl.tool_prices.to_dict() if priced else {},
                'format_weight': rl.format_weight,
                'evidence_weight': rl.evidence_weight,
            }
        return Scorer(self.protocol, client_judge(self.client), **weights)

    def environment(self, tools: Sequence[str] | None = None) -> Environment:
        """The agent's environment, with the config's tools or fewer."""
        agent = self.config.agent
        return Environment(
            self.client,
            self.protocol,
            agent.tools if tools is None else tools,
            observation_limits(agent),
        )

    def features(self, loaded: LoadedPolicy) -> FeatureStore:
        """A store of visual features from the policy's (frozen) tower."""
        return FeatureStore(
            loaded.policy,
            loaded.preprocessor,
            self.client,
            batch=self.config.rollout.tower_batch,
            capacity_bytes=feature_cache_bytes(
                self.config, loaded.policy, loaded.preprocessor, replica_count(self.mesh)
            ),
        )

    def stream(
        self,
        engines: Sequence[Engine],
        loaded: LoadedPolicy,
        features: FeatureStore,
        *,
        environment: Environment | None = None,
        limits: RolloutLimits | None = None,
        **hooks: Callable[..., Any],
    ) -> Stream:
        """Rollouts with the config's threads.

        Args:
            engines: that sample.
            loaded: the policy.
            features: of its vision tower.
            environment: the agent's by default.
            limits: the agent's by default.
            **hooks: `on_turn`, `on_tokens`, `to_stop` and `enough`, as of `Stream`.
        """
        rollout = self.config.rollout
        return Stream(
            engines,
            loaded.chat,
            environment or self.environment(),
            features,
            limits or rollout_limits(self.config.agent),
            tool_threads=rollout.tool_threads,
            judge_threads=rollout.get('judge_threads', 1),  # without a judge there is no such field
            **hooks,
        )

    def engines(
        self,
        loaded: LoadedPolicy,
        *,
        asked: int,
        groups: int,
        members: int,
        sampling: Sampling,
        parameters: nnx.State | None = None,
        room: Room | None = None,
    ) -> list[Engine]:
        """Engines that sample from a policy, `rollout.engines` on each replica of it.

        A replica is a copy of the weights on some of this process's devices (`replica_axes`), with
        caches of its own. Policies of one structure share the engines, so that a stage does not
        compile what another one has.

        Args:
            loaded: the policy.
            asked: groups that this process has to sample; of fewer than there are replicas each has
                one, and some replicas have none.
            groups: groups sampled at once by a replica; fewer where its share of `asked` is less.
            members: G, trajectories of a group.
            sampling: temperature, top-k and top-p.
            parameters: to sample with, and in whose dtype; the policy's own by default, in the
                config's `rollout.dtype`.
            room: their capacities in tokens; those of the config's `rollout` by default.
        """
        graph, own = nnx.split(loaded.policy)
        rollout = self.config.rollout
        if parameters is None:
            parameters = jax.tree.map(lambda x: x.astype(rollout.dtype), own)
        copies = replicas(parameters, self.mesh, replica_axes(self.mesh))[: max(asked, 1)]
        groups = max(1, min(groups, -(-asked // len(copies))))
        room = room or Room(rollout.prompt_capacity, rollout.suffix_capacity)
        key = len(copies), groups, members, sampling, loaded.policy.sizes, room
        # One group needs one engine; a config that asks a single question does not say how many.
        count = min(rollout.engines, groups) if groups > 1 else 1
        if key not in self.samplers:
            first = Engine(
                nnx.merge(graph, copies[0]),
                groups=-(-groups // count),
                members=members,
                prompt_capacity=room.prompt,
                suffix_capacity=room.suffix,
                chunk=rollout.chunk,
                sampling=sampling,
                extend_lanes=rollout.extend_lanes,
                extend_tokens=rollout.extend_tokens,
                stop=loaded.chat.stop_ids,
                suppressed=unsampled(loaded),
                cache_dtype=rollout.cache_dtype,
            )
            others = (first.twin() for _ in range(len(copies) * count - 1))
            self.samplers[key] = [first, *others]
        for i, engine in enumerate(self.samplers[key]):
            engine.set_parameters(copies[i // count])
        return self.samplers[key]


def observation_limits(agent: ConfigDict) -> ObservationLimits:
    """Limits of a tool's result as the policy sees it, by the config's `agent`."""
    return ObservationLimits(
        text_results=agent.text_results,
        image_results=agent.image_results,
        thumbnails=agent.thumbnails,
        passage_chars=agent.passage_chars,
    )


def rollout_limits(agent: ConfigDict) -> RolloutLimits:
    """When a trajectory of the config's `agent` ends without an answer."""
    return RolloutLimits(agent.max_turns, agent.turn_tokens, agent.max_malformed)


def unsampled(loaded: LoadedPolicy) -> list[int]:
    """Ids that are never sampled: vision placeholders, and rows unknown to the tokenizer."""
    vocabulary = loaded.policy.sizes.language.vocabulary
    return [*loaded.chat.suppressed_ids, *range(loaded.chat.vocab_size, vocabulary)]


def load_policy_directory(
    folder: str | Path, config: ConfigDict, mesh: Mesh, dtype: DTypeLike
) -> LoadedPolicy:
    """A policy with its tokenizer, and its preprocessor with the config's pixel limits.

    Args:
        folder: a Hugging Face directory, or a checkpoint of a run, WORKDIR/sft/checkpoints/STEP; ''
            is the project's own base policy.
        config: with `min_pixels` and `max_pixels`.
        mesh: over which the parameters are sharded.
        dtype: of the parameters.

    Raises:
        UserError: not a Hugging Face directory of a policy with tokenizer and
            preprocessor.
    """
    files = policy_files(folder)
    folder = Path(folder) if str(folder) else files
    policy = read_policy(folder, dtype, mesh)
    preprocessor = read_preprocessor(files, config)
    return LoadedPolicy(folder, policy, load_tokenizer(str(folder), config), preprocessor)


def load_tokenizer(folder: str, config: ConfigDict) -> ChatTokenizer:
    """The tokenizer of a policy directory alone, with the config's pixel limits.

    Raises:
        UserError: not a Hugging Face directory with tokenizer and preprocessor.
    """
    path = policy_files(folder)
    chat = ChatTokenizer(path, read_preprocessor(path, config).merged_tokens)
    if 'agent' in config:
        chat.turn_newline = protocol_of(config.agent).turn_newline
    return chat


def save_policy_directory(policy: Policy, loaded: LoadedPolicy, folder: Path, dtype: str) -> None:
    """Writes a Hugging Face directory of a policy.

    Args:
        policy: whose parameters are written.
        loaded: whose tokenizer, and preprocessor with the run's pixel limits, are.
        folder: the directory.
        dtype: of the written parameters.
    """
    save_policy(policy, folder, copy_from=policy_files(loaded.folder), dtype=dtype)
    if jax.process_index() == 0:
        loaded.preprocessor.write_budget(folder)


def save_learned(learner: Learner, loaded: LoadedPolicy, folder: Path, config: ConfigDict) -> None:
    """Writes the policy of a stage, and where adapters were trained them too, in `adapter` beside it.

    Args:
        learner: whose policy it is.
        loaded: the policy that was trained from.
        folder: of the policy.
        config: the stage's.
    """
    save_policy_directory(learner.policy, loaded, folder, config.dtype)
    if learner.adapted:
        lora = Lora.of(config.lora)
        save_adapters(learner.unmerged, lora, loaded.folder, folder.with_name('adapter'))


@contextlib.contextmanager
def open_session(config: ConfigDict, workdir: Workdir) -> Iterator[Session]:
    """Starts the tool server (or takes the one at `config.tools.url`) and stops it at the end.

    Raises:
        UserError, ToolServerError: no server; the message says why.
    """
    with contextlib.ExitStack() as stack:
        url = config.tools.url
        if not url:
            # pictures in one place
            folder = config.tools.folder or multihost.shared_folder(workdir.path) / 'tools'
            url = stack.enter_context(
                ToolServer.start(
                    config.tools.config,
                    folder,
                    port=config.tools.port,
                    mode=config.tools.mode or None,
                    answers=config.tools.answers or None,
                )
            ).url
        client = ToolClient(url, config.tools.deadline_s)
        health = client.health()
        if isinstance(health, ToolFailure):
            raise UserError(f'No tool server answers at {url}: {health.message}')
        sinks = None
        if 'metrics' in config and multihost.is_main():
            sinks = Sinks(config.metrics.sinks, workdir.path, config.to_dict())
        metrics = stack.enter_context(MetricWriter(workdir / 'metrics.jsonl', sinks))
        yield Session(config, workdir, client, metrics, make_mesh(config.mesh))


def every_process(path: Path, session: Session) -> list[Path]:
    """The files of that name in the workdirs of all processes, of this start and earlier ones."""
    own = session.workdir.path
    within = path.relative_to(own)
    return [f / within for f in (*multihost.folders(own), *multihost.earlier_folders(own))]


def append_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Appends trajectories to a JSON-lines file; a killed process may leave a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(t.to_json()) + '\n' for t in trajectories)
    with open(path, 'a', encoding='utf-8') as file:
        file.write(text)
        file.flush()


def read_trajectories(path: Path, *, mend: bool = True) -> list[Trajectory]:
    """The trajectories of a file; none if it is missing.

    A last line that a killed process left torn is dropped.

    Args:
        path: of the file.
        mend: whether it is dropped in the file too; not in one that another process writes.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b'\n') + 1
    if mend and whole < len(data):
        with open(path, 'r+b') as file:
            file.truncate(whole)
    return [
        Trajectory.from_json(json.loads(line)) for line in data[:whole].decode('utf-8').splitlines()
    ]
