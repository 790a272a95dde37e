"""Imports go down the list of rooms only, no room imports the demo, and files stay short."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'sensesearch_jax'
ROOMS = (
    'config', 'simulation', 'recipes', 'watch', 'evaluation', 'cold_start', 'training', 'rollout', 'rewards', 'data',
    'batching', 'model', 'agent', 'runtime', 'errors',
)  # fmt: skip
FREE = 'main', 'sweep', 'export', 'pocket'  # commands, and the demo, may import every room


def imports():
    """(file, room of the file, room that it imports) for all imports within the package."""
    for file in sorted(PACKAGE.rglob('*.py')):
        room = file.relative_to(PACKAGE).parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == 'sensesearch_jax':
                names = [f'sensesearch_jax.{alias.name}' for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or '']
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.startswith('sensesearch_jax.'):
                    yield str(file.relative_to(PACKAGE)), room, name.split('.')[1]


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    assert folders <= {*ROOMS, *FREE}


def test_imports_go_down_the_list_of_rooms():
    up = [
        f'{file} imports {target}'
        for file, room, target in imports()
        if room not in FREE
        and room != '__init__'
        and (target in FREE or ROOMS.index(target) < ROOMS.index(room))
    ]
    assert not up


def test_recipes_do_not_import_each_other():
    """Except for what several of them share."""
    shared = {
        'evaluated_agents',
        'evaluated_samples',
        'checkpoint_policy',
        'validation',
        'cold_start_results',
        'session',
        'capacities',
        'rows',
        'resume',
        'run_report',
        'answering',
        'ask_page',
        'item_metrics',
        'rl_rollout',
        'rl_samplers',
        'rl_update',
    }
    recipes = PACKAGE / 'recipes'
    for file in recipes.glob('*.py'):
        text = file.read_text()
        others = {other.stem for other in recipes.glob('*.py')} - {file.stem, '__init__', *shared}
        assert not [other for other in others if f'sensesearch_jax.recipes.{other} ' in text], (
            file.name
        )


def test_the_tool_server_imports_nothing_of_the_trainer():
    for file in (PACKAGE.parent / 'tools_server').rglob('*.py'):
        assert 'sensesearch_jax' not in {
            name.split('.')[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or '']
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
            )
        }, file


def test_no_file_is_long():
    """A file has one subject, and a reader sees all of it."""
    folders = 'sensesearch_jax', 'tools_server', 'configs', 'experiments', 'tests'
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for folder in folders
        for file in (ROOT / folder).rglob('*.py')
    }
    assert len(lines) > 300 and not {name: n for name, n in lines.items() if n > 450}


def test_files_of_tests_have_names_of_their_own():
    """Two of one name are one module to pytest, which then runs neither."""
    names = [file.name for file in (ROOT / 'tests').rglob('test_*.py')]
    assert sorted(names) == sorted(set(names))
