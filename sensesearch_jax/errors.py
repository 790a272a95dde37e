"""The error that a run's user can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input of a run: a config field, a file, a directory. Its message is one sentence that
    says what to do.

    `main` shows it without a traceback; every other error keeps its own, as it is a fault of the
    code.
    """


@contextlib.contextmanager
def field(name: str) -> Iterator[None]:
    """Within it, a ValueError becomes a UserError that begins with `name`, of a config field or a
    file.

    For calls that do nothing but validate what stands there.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'{name}: {error}') from error
