"""Format: whether every turn of a trajectory is in the protocol's format."""

from sensesearch_jax.agent.actions import Answer, FormatError
from sensesearch_jax.agent.protocol import TOOLS, Protocol
from sensesearch_jax.agent.trajectory import Trajectory
from sensesearch_jax.rewards.accuracy import final_answer


def format_is_right(trajectory: Trajectory, protocol: Protocol) -> bool:
    """Whether every turn has reasoning and one valid action, the last one a non-empty answer."""
    for i, turn in enumerate(trajectory.turns, 1):
        last = i == len(trajectory.turns)
        if isinstance(turn.action, FormatError) or isinstance(turn.action, Answer) != last:
            return False
        if turn.observation is not None and not turn.observation.ok:
            return False
        if not protocol.parse(turn.text, TOOLS).thought:
            return False
    answer = final_answer(trajectory)
    return bool(answer and answer.strip())
