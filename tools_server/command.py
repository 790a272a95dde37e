"""The commands' options."""

from __future__ import annotations

import argparse


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Options of `python -m MODULE`.

    Args:
        module: its name.
        description: its own text, which keeps its lines.
    """
    return argparse.ArgumentParser(
        prog=f'python -m {module}',
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
