"""Questions of one answer, which a toy policy learns by heart in a few steps, and trajectories that
answer them at once; all without pictures, so that no tower runs.
"""

import json
import runpy
from pathlib import Path

import jax

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.recipes.session import load_policy_directory
from sensesearch_jax.runtime.mesh import make_mesh

TURN = '<think>so</think>\n<answer>it</answer>'
CONFIG = Path(__file__).parents[2] / 'configs' / 'sft.py'
FEW_STEPS = {  # of one trajectory a row, with a checkpoint behind every other one
    'sft.epochs': 1,
    'sft.row_trajectories': 1,
    'sft.pack_step': 0,
    'sft.warmup': 1,
    'sft.checkpoint_every': 2,
}


def config_of_sft():
    return runpy.run_path(str(CONFIG))['get_config']()


def load(policy_folder, config):
    mesh = make_mesh({}, jax.devices()[:1])
    return load_policy_directory(policy_folder, config, mesh, 'float32')


def write_memorized(folder, loaded, tools, demonstrated, held_out):
    """Files of trajectories, and of as many other questions."""
    system, lines = DEFAULT.system_prompt(tools), []
    for number in range(demonstrated + held_out):
        text = f'What is number {number}?'
        question = Question(f'q{number}', text, (), ('it',), category='search', difficulty='1')
        if number < demonstrated:
            tokens = loaded.chat.assistant(TURN)
            turn = Turn(tokens, [0.0] * len(tokens), 'so', Answer('it'), None, [])
            prompt = loaded.chat.prompt(system, [text])
            trajectory = Trajectory(question, 0, 0, [turn], SampleState.OK, prompt, [], {}, 'it')
            lines.append(json.dumps(trajectory.to_json()) + '\n')
        else:
            record = {'id': question.id, 'question': text, 'images': [], 'answers': ['it']}
            lines.append(json.dumps(record) + '\n')
    (folder / 'kept.jsonl').write_text(''.join(lines[:demonstrated]))
    (folder / 'held.jsonl').write_text(''.join(lines[demonstrated:]))
    return folder / 'kept.jsonl', folder / 'held.jsonl'
