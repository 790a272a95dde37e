"""Docstrings of the rooms that a reader of the method opens: the noun first, and arguments described."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'sensesearch_jax'
ROOMS = 'training', 'rollout', 'model', 'batching', 'agent', 'rewards', 'recipes', 'simulation'
FILES = [file for room in ROOMS for file in sorted((PACKAGE / room).rglob('*.py'))]
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]


def public_functions(tree):
    """Functions of a module and methods of its classes whose names do not begin with an underscore."""
    for node in tree.body:
        for found in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(found, ast.FunctionDef) and not found.name.startswith('_'):
                yield found


def arguments(function):
    """Names of the arguments, but for self and cls."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ('self', 'cls')]


@pytest.mark.parametrize('file', FILES, ids=NAMES)
def test_no_docstring_begins_with_what(file):
    tree = ast.parse(file.read_text())
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    texts = [
        ast.get_docstring(node) or '' for node in ast.walk(tree) if isinstance(node, documented)
    ]
    assert not [text.split('\n')[0] for text in texts if text.startswith('What ')]


@pytest.mark.parametrize('file', FILES, ids=NAMES)
def test_functions_of_three_arguments_describe_them(file):
    functions = public_functions(ast.parse(file.read_text()))
    many = [function for function in functions if len(arguments(function)) >= 3]
    assert not [
        function.name for function in many if 'Args:' not in (ast.get_docstring(function) or '')
    ]
