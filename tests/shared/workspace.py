"""A folder with what the commands of the pages take, in which they are run as they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import toy_runs
from page_commands import ROOT, Command
from PIL import Image

COLOURS = 'red', 'green', 'blue', 'yellow', 'purple', 'orange', 'white', 'black', 'brown', 'grey'
SMALL = {  # what a config has a field for, unless the command sets it
    'policy': 'toy',
    'tools.config': 'world/tools.yaml',
    'agent.turn_tokens': 4,
    'agent.max_turns': 2,
    'agent.passage_chars': 120,
    'rollout.groups': 2,
    'rollout.chunk': 4,
    'rollout.engines': 1,
    'rollout.prompt_capacity': 384,
    'rollout.suffix_capacity': 384,
    'rollout.warm_up': False,
    'rl.members': 2,
    'rl.questions_per_step': 2,
    'rl.micro_batch': 1,
    'rl.threads': 1,
    'sft.micro_batch': 1,
    'sft.threads': 1,
    'mine.answer_tokens': 4,
    'evaluate.lanes': 2,
}


def write_questions(folder: Path) -> None:
    """my.jsonl: ten questions, of one picture, of two, of none, and with options."""
    (folder / 'pictures').mkdir()
    records = []
    for number, colour in enumerate(COLOURS):
        Image.new('RGB', (120, 90), colour).save(folder / 'pictures' / f'{number}.png')
        record = {'id': f'mine-{number}', 'question': 'What colour is it?', 'answers': [colour]}
        records.append(record | {'images': [f'pictures/{number}.png']})
    records[1]['images'].append('pictures/0.png')
    records[2]['images'] = []
    records[3] |= {'choices': ['red', 'yellow'], 'answers': ['B']}
    (folder / 'my.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))


def write_world(folder: Path) -> None:
    """world/tools.yaml: a tool server of one passage and one picture, which is there at once."""
    (folder / 'world').mkdir()
    passage = {'id': 'red', 'title': 'Red', 'text': 'Red is a colour.'}
    (folder / 'world' / 'passages.jsonl').write_text(json.dumps(passage))
    picture = {'id': 'red', 'title': 'Red', 'file': '../pictures/0.png'}
    (folder / 'world' / 'gallery.jsonl').write_text(json.dumps(picture))
    (folder / 'world' / 'tools.yaml').write_text(
        'text_search: {backend: local, passages: passages.jsonl}\n'
        'image_search: {backend: local, gallery: gallery.jsonl}\n'
        'judge: {backend: rules}\n'
    )


@dataclasses.dataclass
class Workspace:
    """The folder, and the commands that a test has to start in it.

    It has configs/, the ten questions of `write_questions`, the tools of `write_world`, and `toy`, a policy.
    """

    folder: Path
    commands: list[Command]
    started: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def at(cls, folder: Path, policy: Path, commands: list[Command]) -> Workspace:
        """Puts everything into an empty folder."""
        for name, there in ('configs', ROOT / 'configs'), ('toy', policy):
            (folder / name).symlink_to(there)
        write_questions(folder)
        write_world(folder)
        return cls(folder, commands)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def link(self, name: str, there: str) -> None:
        """Puts a name for a file or folder of the workspace that is there already."""
        (self / name).parent.mkdir(parents=True, exist_ok=True)
        (self / name).symlink_to(self / there)

    def arguments(self, words: str, fields: dict | None, names: dict[str, str]) -> list[str]:
        """The command that has these words, as a shell splits it, and fields that make it small.

        Args:
            words: that only one of the commands has.
            fields: of its config, beside those of SMALL.
            names: what stands for a name in capitals.
        """
        command = min((c for c in self.commands if words in c.text), key=lambda c: len(c.text))
        self.started.add(command.text)
        text = command.text
        for name, value in names.items():
            text, count = re.subn(rf'\b{re.escape(name)}\b', str(value), text)
            assert count, f'{command.text} has no {name}'
        given = shlex.split(text)
        config = re.search(r'--config=configs/(\S+)\.py(\S*)', text)
        small = {}
        if config and 'sensesearch_jax.data' not in text:
            there = toy_runs.fields_of(config[1] + config[2], SMALL)
            small = {k: v for k, v in there.items() if f'--config.{k}=' not in text}
        return given + [f'--config.{k}={v}' for k, v in (small | (fields or {})).items()]

    def start(self, words: str, fields: dict | None = None, **names: str) -> subprocess.Popen:
        """The process of a command, see `arguments`."""
        arguments = self.arguments(words, fields, names)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        # A job in the background of a script ignores the signal, and so would its children.
        heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                arguments,
                cwd=self.folder,
                env=os.environ | toy_runs.QUICK | {'PATH': path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, heeded)

    def run(self, words: str, fields: dict | None = None, status: int = 0, **names: str) -> str:
        """Runs a command to its end, which has to have this status; gives what it said."""
        process = self.start(words, fields, **names)
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == status, f'{words}:\n{said[-3000:]}'
        return said

    @contextlib.contextmanager
    def served(self, words: str, fields: dict | None = None, **names: str) -> Iterator[str]:
        """The address that a command prints; interrupted, it has to end well."""
        process = self.start(words, fields, **names)
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if address := re.search(r'http://(127\.0\.0\.1|localhost):\d+', line):
                    break
            else:
                raise AssertionError(f'{words}:\n' + ''.join(said)[-3000:])
            yield address[0]
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGINT, 130), rest[-3000:]
        finally:
            process.kill()
            process.wait()
