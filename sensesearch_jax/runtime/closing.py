"""Things that are closed at the end of a `with`."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager


class Closing(AbstractContextManager):
    """Something whose `close` the end of a `with` calls."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""

    def __exit__(self, *_: object) -> None:
        self.close()
