"""Scripts import only names that exist: most of them no test starts. And those in experiments/ stay
few."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / 'experiments').rglob('*.py'))
BESIDE_TESTS = 'tools_server/load', 'tools_server/hostile', 'shared/kills', 'simulation/slow_run'
SCRIPTS = [*EXPERIMENTS, *(ROOT / f'tests/{name}.py' for name in BESIDE_TESTS)]


def defined(module, name):
    """Whether a module has the name, or is a package with a module of that name.

    Scripts are read and not imported: two may define the same flag.
    """
    if importlib.util.find_spec(module) is None:
        return False
    if module.startswith('experiments.'):
        file = ROOT / f'{module.replace(".", "/")}.py'
        return not file.is_file() or name in file.read_text()
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f'{module}.{name}') is not None


@pytest.mark.parametrize('file', SCRIPTS, ids=[str(file.relative_to(ROOT)) for file in SCRIPTS])
def test_imports_exist(file):
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module != '__future__'
        for alias in node.names
        if node.module.startswith(('sensesearch_jax', 'tools_server', 'experiments'))
    ]
    assert not [f'{module}.{name}' for module, name in imports if not defined(module, name)]


def test_experiments_stay_small():
    """Scripts for tables that documents cite, and no more: fewer lines than training and rollout."""
    assert sum(len(file.read_text().splitlines()) for file in EXPERIMENTS) <= 2_500
