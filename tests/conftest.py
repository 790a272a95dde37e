"""Makes the helpers in tests/shared importable for the tests of every room, and a CPU look like eight devices.

Whatever is not told a mesh runs on the first of them alone.
"""

import sys
from pathlib import Path

import jax

jax.config.update('jax_num_cpu_devices', 8)
sys.path.append(str(Path(__file__).parent / 'shared'))
sys.path.append(str(Path(__file__).parents[1]))  # for experiments
