"""One question that a policy answers by itself, as it happens."""

from __future__ import annotations

from collections.abc import Callable

from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import Question, Trajectory, Turn
from sensesearch_jax.data.images import upload_all
from sensesearch_jax.recipes.capacities import room_for
from sensesearch_jax.recipes.session import LoadedPolicy, Session
from sensesearch_jax.rollout.groups import Task
from sensesearch_jax.rollout.sampling import Sampling
from sensesearch_jax.rollout.vision_feature_cache import FeatureStore


def answer(
    session: Session,
    loaded: LoadedPolicy,
    features: FeatureStore,
    question: Question,
    on_turn: Callable[[Trajectory, Turn], None],
    on_tokens: Callable[[Trajectory, list[int]], None] = lambda trajectory, tokens: None,
    to_stop: Callable[[], object] = lambda: False,
) -> tuple[Trajectory, float] | ToolFailure:
    """Samples one trajectory.

    Args:
        session: of the run.
        loaded: the policy.
        features: of its vision tower.
        question: with its images.
        on_turn: called with each finished turn, its observation included.
        on_tokens: called with the tokens so far of a turn that is being written.
        to_stop: asked all the time; once it is true, the trajectory is given up.

    Returns:
        The trajectory and the seconds that it took, or why an image cannot be had.
    """
    config = session.config
    shown = upload_all(session.client, question.images)
    if isinstance(shown, ToolFailure):
        return shown
    # One question need not share its room with any other: the capacities follow it.
    parts = session.protocol.user_parts(question, shown)
    prompt = loaded.chat.prompt(session.environment().system_prompt, parts)
    room = room_for(len(prompt), shown, config, loaded.chat, loaded.preprocessor)
    # an earlier question's caches, of another size, take as much memory
    for key in [key for key in session.samplers if room not in key]:
        del session.samplers[key]
    engines = session.engines(
        loaded,
        asked=1,
        groups=1,
        members=1,
        sampling=Sampling(config.temperature, config.top_k, config.top_p),
        room=room,
    )
    hooks = {'on_turn': on_turn, 'on_tokens': on_tokens, 'to_stop': to_stop}
    stream = session.stream(engines, loaded, features, **hooks)
    groups, cost = stream.sample([Task(question, (config.seed,))], None)
    return groups[0][0], cost.seconds
