"""Published datasets, feature dumps and raw annotations -> manifests and feature stores.

python jobs/import_dataset.py cherma --source CHERMA --store features
python jobs/import_dataset.py mmsa --source unaligned_39.pkl --store features
python jobs/import_dataset.py sims --source CH-SIMS --output clips.csv
python jobs/import_dataset.py emotiontalk --source labels.parquet --output emotiontalk.csv
python jobs/import_dataset.py annotations --source votes.csv --output clips.csv
python jobs/import_dataset.py char_ngrams --source clips.csv --store features
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli

from lfmim.data.importers.base import IMPORTERS


def main() -> int:
    lines = auto_cli({name: IMPORTERS[name] for name in IMPORTERS}, as_positional=False)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    cli.run(main)
