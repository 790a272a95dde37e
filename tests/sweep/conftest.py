"""A tiny policy with random weights, in a Hugging Face directory like any other."""

import pytest
from toy_policy import write_toy_policy


@pytest.fixture(scope='session')
def policy_folder(tmp_path_factory):
    """One layer of width 32; pictures become at most 12 visual tokens."""
    folder = tmp_path_factory.mktemp('policy')
    write_toy_policy(folder)
    return folder
