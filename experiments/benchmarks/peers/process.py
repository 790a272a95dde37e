"""A peer in a virtual environment of its own, working in turn with ours: a line to it, a line of
seconds back.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    'trl': ['torch==2.13.0', 'trl==1.16.0', 'transformers>=5.0', 'pillow'],
    'tunix': ['google-tunix==0.1.7'],
}


class Missing(Exception):
    """The peer cannot be had here; says why."""


def environment(name: str, folder: Path) -> Path:
    """The Python of the peer's environment, made if there is none.

    Raises:
        Missing: its packages cannot be installed.
    """
    place = folder / name
    python, done = place / 'bin' / 'python', place / 'installed'
    if not done.exists():
        venv.create(place, with_pip=True, clear=True)
        print(f'Installing {", ".join(PACKAGES[name])} into {place}.', file=sys.stderr)
        found = subprocess.run(
            [python, '-m', 'pip', 'install', '-q', *PACKAGES[name]], text=True, capture_output=True
        )
        if found.returncode:
            raise Missing((found.stderr.strip().splitlines() or ['pip failed'])[-1])
        done.touch()
    return python


class Peer:
    """A peer's script, waiting to be told to do its work once more."""

    def __init__(self, name: str, script: str, folder: Path, *arguments: object):
        python = environment(name, folder)
        self.log = (folder / f'{name}.log').open('w')
        self.process = subprocess.Popen(
            [python, Path(__file__).with_name(script), *map(str, arguments)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=folder,
        )
        self.hello = self._line()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise Missing(f'it stopped; {self.log.name} says why')
        return line.strip()

    def seconds(self) -> float:
        """Of its work, done once more."""
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Lets it end."""
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.log.close()
