"""`lfmim labels` as a script, for `ray job submit -- python jobs/analyze_labels.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["labels", *sys.argv[1:]])
