"""Scripts of a checkout import this checkout, installed or not: `ray job submit --working-dir .`
needs no installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
