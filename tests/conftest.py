"""Makes the helpers in tests/shared importable for the tests of every room."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / 'shared'))
