"""README and docs: length and links. Their commands: tests/commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r'(?m)^#+ (.+)$', page.read_text())
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_the_readme_can_be_read_at_once():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if target.startswith('http'):
            continue
        file, _, anchor = target.partition('#')
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
