"""Scripts of a checkout import this checkout, installed or not: `ray job submit --working-dir .`
needs no installation."""

import sys
from pathlib import Path

# in front: `python jobs/x.py` puts only jobs/ there, and an installed lfmim would be found instead
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
