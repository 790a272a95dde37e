"""A workspace for the commands that a test names by `pytest.mark.commands(PAGE, WORDS, …)`."""

import pytest
from page_commands import find_command
from workspace import Workspace


@pytest.fixture
def workspace(request, policy_folder, tmp_path):
    """The folder in which the test's commands are run; it has to start each of them."""
    commands = [
        find_command(page, words)
        for mark in request.node.iter_markers('commands')
        for page, *pieces in [mark.args]
        for words in pieces
    ]
    workspace = Workspace.at(tmp_path, policy_folder, commands)
    yield workspace
    left = [c.text for c in commands if c.text not in workspace.started]
    assert not left, left
