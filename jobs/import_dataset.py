"""`lfmim import` as a script, for `ray job submit -- python jobs/import_dataset.py`."""

import sys

import _checkout  # noqa: F401

from lfmim.cli.main import main

main(["import", *sys.argv[1:]])
