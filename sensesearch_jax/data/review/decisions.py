"""Decisions of a review, on disk as soon as they are made, and the file of accepted questions."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.data.plain_format import to_record
from sensesearch_jax.errors import UserError
from sensesearch_jax.runtime.journal import Journal
from sensesearch_jax.runtime.workdir import atomic_write

Verdict = Literal['accept', 'reject', '']  # '': none, or taken back


class Decisions:
    """Decisions about questions. Safe to share between threads, for one process at a time.

    A decision is about the question as it was seen: one that was changed since is open again.

    Args:
        questions: that are reviewed.
        path: file of decisions, which grows at its end alone.
        accepted: file that always holds the accepted questions, in the plain format.

    Raises:
        UserError: another review uses the file, or it cannot be written.
    """

    def __init__(self, questions: Sequence[Question], path: Path, accepted: Path):
        self.questions, self.accepted = {q.id: q for q in questions}, accepted
        self._digests = {name: digest(question) for name, question in self.questions.items()}
        self._lock = threading.Lock()
        try:
            self._held = open(path, 'a')
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._journal = Journal(path)
        except BlockingIOError:
            raise UserError(f'another review is at {path}; end it first') from None
        except OSError as error:
            raise UserError(f'{path} cannot be written: {error.strerror}') from None
        self._latest: dict[str, dict[str, Any]] = {}
        for entry in self._journal:
            if self._digests.get(entry['id']) == entry['of']:
                self._latest[entry['id']] = entry
        self._write_accepted()

    def close(self) -> None:
        """Lets another process review."""
        self._journal.close()
        self._held.close()

    def verdict(self, name: str) -> Verdict:
        """Of the question with this id."""
        return self._latest.get(name, {}).get('verdict', '')

    def note(self, name: str) -> str:
        """The person's words about it."""
        return self._latest.get(name, {}).get('note', '')

    def decide(self, name: str, verdict: Verdict, note: str) -> None:
        """Keeps a decision; it is on disk when this returns.

        Args:
            name: id of the question.
            verdict: the newest one counts.
            note: why, in a person's words.

        Raises:
            KeyError: there is no such question.
        """
        entry = {'id': name, 'verdict': verdict, 'note': note, 'of': self._digests[name]}
        with self._lock:
            self._journal.append(entry | {'time': round(time.time())}, sync=True)
            self._latest[name] = entry
            self._write_accepted()

    def _write_accepted(self) -> None:
        lines = (
            json.dumps(to_record(question), ensure_ascii=False) + '\n'
            for name, question in self.questions.items()
            if self.verdict(name) == 'accept'
        )
        atomic_write(self.accepted, ''.join(lines))


def digest(question: Question) -> str:
    """A hash of all that a question says, as text."""
    return hashlib.sha256(json.dumps(to_record(question), sort_keys=True).encode()).hexdigest()[:16]
