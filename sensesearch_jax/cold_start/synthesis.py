"""Synthesis: an expert's trajectories with real tool calls, as text."""

from collections.abc import Callable, Sequence

from sensesearch_jax.agent.actions import Answer, FormatError
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.tool_client import ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef, Question, SampleState, Trajectory, Turn
from sensesearch_jax.cold_start.expert import Expert
from sensesearch_jax.data.images import upload_all


def synthesise(
    question: Question,
    expert: Expert,
    environment: Environment,
    max_turns: int = 10,
    done: Sequence[Turn] = (),
    note: Callable[[Turn], None] = lambda turn: None,
) -> Trajectory:
    """One trajectory of an expert as text; `agent.chat_template.tokenise` fills its token lists.

    Args:
        question: to solve.
        expert: writes the turns.
        environment: runs the tool calls.
        max_turns: turns after which the trajectory is truncated.
        done: turns that an earlier process has noted; the trajectory goes on from them.
        note: takes every turn after which the trajectory goes on.

    Returns:
        A trajectory in state OK if it ends with an answer, TRUNCATED if `max_turns` ran out or the
        expert wrote no valid action, INFRA_FAILED if a tool, the upload or the expert failed.
        Rewards are not set. Never raises for a failure.
    """
    trajectory = Trajectory(question, 0, 0, [], SampleState.TRUNCATED, [], [], {}, None)
    images = upload_all(environment.client, question.images)
    if isinstance(images, ToolFailure):
        trajectory.state, trajectory.failure = SampleState.INFRA_FAILED, images.message
        return trajectory
    trajectory.images += images
    for turn in done:
        trajectory.turns.append(turn)
        trajectory.images += _images(turn)
    for _ in range(max_turns - len(done)):
        move = expert.next_turn(question, images, trajectory.turns)
        if isinstance(move, ToolFailure):
            trajectory.state, trajectory.failure = SampleState.INFRA_FAILED, move.message
            return trajectory
        thought, action = move
        text = thought
        if not isinstance(action, FormatError):
            try:
                text = environment.protocol.render_action(thought, action)
            except ValueError as error:
                action = FormatError('cannot_be_written', str(error))
        observation = environment.execute(action, indexed_images(images, trajectory.turns))
        turn = Turn([], [], text, action, observation, [])
        trajectory.turns.append(turn)
        if isinstance(action, Answer):
            trajectory.state, trajectory.answer = SampleState.OK, action.text
            return trajectory
        if isinstance(action, FormatError):
            return trajectory
        trajectory.images += _images(turn)
        if observation.infra_failed:
            trajectory.state = SampleState.INFRA_FAILED
            return trajectory
        note(turn)
    return trajectory


def _images(turn: Turn) -> list[ImageRef]:
    return [part for part in turn.observation.parts if isinstance(part, ImageRef)]
