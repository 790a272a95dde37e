"""Runs of the command line with a toy policy (toy_policy.py), as processes of their own."""

import os
import runpy
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
XLA_FLAGS = ['--xla_llvm_disable_expensive_passes=true', '--xla_backend_optimization_level=0']
# Later ones have no other emitters, and a process with a flag that they do not know ends at once.
if tuple(map(int, version('jaxlib').split('.')[:3])) < (0, 11, 1):
    XLA_FLAGS.append('--xla_cpu_use_fusion_emitters=false')
QUICK = {  # to compile, in less than half of the time, into slower programs; all tests are
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'OMP_NUM_THREADS': '1',
    'XLA_FLAGS': ' '.join(XLA_FLAGS),
}


def pocket(split, **counts):
    """A field of sources: so many questions of each category of the pocket world."""
    return [
        {'name': 'pocket', 'split': split, 'category': category, 'limit': count}
        for category, count in counts.items()
    ]


# Local tools with so little to find that their server is ready at once.
TOOLS = 'tests/shared/toy_tools/tools.yaml'
SETTINGS = {  # of short trajectories
    'tools.config': TOOLS,
    'agent.turn_tokens': 8,
    'agent.max_turns': 4,
    'agent.passage_chars': 120,
    'rollout.groups': 2,
    'rollout.chunk': 4,
    'rollout.prompt_capacity': 384,
    'rollout.suffix_capacity': 768,
    'rl.members': 3,
    'rl.learning_rate': 1e-2,
}


def start(config, workdir, policy, settings, output, **environment):
    """The process, of those SETTINGS that the config has and these; what it says is added to the
    file `output`."""
    there = fields_of(config, SETTINGS)
    command = [
        sys.executable,
        'tests/shared/toy_policy.py',
        f'--config={config_file(config)}',
        f'--workdir={workdir}',
        f'--config.policy={policy}',
        *(f'--config.{name}={value}' for name, value in (there | settings).items()),
    ]
    with open(output, 'ab') as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | QUICK | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def fields_of(config, settings):
    """Those of the settings that the config has a field for."""
    name, _, argument = config.partition(':')
    get_config = runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']
    fields = get_config(argument) if argument else get_config()
    return {name: value for name, value in settings.items() if has(fields, name)}


def config_file(config):
    """The file of a config, whose name may have an argument: 'rl', 'pocket:smoke'."""
    name, _, argument = config.partition(':')
    return f'configs/{name}.py' + (f':{argument}' if argument else '')


def has(config, name):
    """Whether a config has a field of this dotted name."""
    part, _, last = name.partition('.')
    return part in config and (not last or has(config[part], last))


def several(config, workdir, policy, settings, output, count=2, devices=2):
    """Runs one program of several processes with as many devices each, to a good end."""
    address = free_address()
    processes = [start(config, workdir, policy, settings | {'multi_host': True}, output, JAX_COORDINATOR_ADDRESS=address,  # noqa: E501
                       JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(i), JAX_NUM_CPU_DEVICES=str(devices))
                 for i in range(count)]  # fmt: skip
    try:
        for process in processes:
            finish(process, output)
    finally:
        for process in processes:
            process.kill()


def free_address():
    """Where the processes of one program can meet."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def finish(process, output):
    """Waits for its end, which must be a good one."""
    code = process.wait(300)
    assert code == 0, output.read_text()[-3000:]
