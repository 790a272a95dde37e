"""Whoever takes the package alone reads its docstrings: everything public has one, and it names its
errors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'tools_server'
FILES = sorted(PACKAGE.rglob('*.py'))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public(parent: ast.AST, about: str = '') -> Iterator[tuple[ast.AST, str]]:
    """Public classes, functions and methods, each with its docstring; a constructor has its
    class's."""
    for node in parent.body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            continue
        constructor = node.name == '__init__' and bool(about)
        if not node.name.startswith('_') or constructor:
            text = about if constructor else ast.get_docstring(node) or ''
            yield node, text
            if isinstance(node, ast.ClassDef):
                yield from public(node, text)


def raised(function: ast.AST) -> set[str]:
    """Names of the package's own errors that a function's own lines raise, without functions inside
    it."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(getattr(node.exc.func, 'id', ''))
        if not isinstance(node, FUNCTIONS):
            found |= raised(node)
    return found & {'ToolError', 'ConfigError', 'StoreError', 'ToolServerError'}


@pytest.mark.parametrize('path', FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_public_things_say_what_they_are_and_what_they_raise(path):
    module = ast.parse(path.read_text(encoding='utf-8'))
    assert ast.get_docstring(module)
    for node, text in public(module):
        where = f'{path.name}, line {node.lineno}, {node.name}'
        assert text, f'{where} has no docstring'
        # Methods that stand for one of an interface refer to it; its docstring says the errors.
        if isinstance(node, FUNCTIONS) and not text.startswith('See `'):
            assert all(name in text for name in raised(node)), (
                f'{where} does not name {raised(node)}'
            )
