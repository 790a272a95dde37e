"""Questions that are asked by hand, and on a page."""

import pytest
import requests


@pytest.mark.commands('README.md', 'configs/ask.py')
@pytest.mark.commands('docs/watch.md', 'configs/ask.py')
def test_questions_are_asked_by_hand_and_on_a_page(desk):
    desk.link('runs/pocket/rl/policy', 'toy')
    said = desk.run('--config.image=', FILE='pictures/0.png')
    assert '── turn 1 ──' in said
    with desk.served('--config.ask.page=True') as address:
        assert 'question' in requests.get(address, timeout=60).text
