"""What an extraction did; and a finished one that is run again, known without Ray, torch or a look
at the rows."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from feature_service.pipeline.plan import Plan, Shard, finished_plan
from feature_service.pipeline.stages import STAGES, build_feature_spec, source_of
from feature_service.pipeline.writer import Tally
from lfmim.config import ExtractConfig, to_dict
from lfmim.data.manifest import manifest_labels
from lfmim.data.store import write_spec
from lfmim.storage import as_path

ENCODING = ("encoders", "precision", "segments", "frames_per_segment", "seed", "max_frame_side")
"""Settings that the FeatureSpec follows from, with the modalities and whether there is a GPU."""


@dataclasses.dataclass(frozen=True)
class ExtractSummary:
    """What a run did. rows_in = already_done + stored + quarantined (of this run)."""

    rows_in: int
    already_done: int
    stored: int
    quarantined: dict[str, int]
    """Count per 'stage: error'."""
    seconds: float
    utterances_per_second: dict[str, float]
    """Per stage and worker: utterances / busy seconds."""
    nodes: dict[str, dict[str, int]]
    """Per stage: Ray node id -> utterances."""
    all_quarantined: int
    """Rows of the manifest that are quarantined, by this run or an earlier one."""
    texts_cut: int = 0
    """Texts of which only the first tokens were read."""
    longest_text: int = 0
    """Tokens of the longest of them."""
    labels: Sequence[str] = ()
    """What merges and drops of the manifest's LabelSpec changed (`label_report`)."""

    @property
    def error_fraction(self) -> float:
        """Share of the manifest that is quarantined, by this run or an earlier one."""
        return self.all_quarantined / self.rows_in

    def __str__(self) -> str:
        lines = [
            f"rows in {self.rows_in}: {self.stored} stored, {sum(self.quarantined.values())} "
            f"quarantined, {self.already_done} done before; {self.seconds:.1f} s",
            *(f"  {line}" for line in self.labels),
        ]
        lines += [
            f"  quarantined {count} x {why}" for why, count in sorted(self.quarantined.items())
        ]
        if self.texts_cut:
            lines.append(
                f"  {self.texts_cut} texts cut: they have more tokens than the text encoder reads; "
                f"the longest has {self.longest_text}"
            )

        rates = ", ".join(
            f"{stage} {rate:.1f}" for stage, rate in self.utterances_per_second.items()
        )
        lines += [f"  utterances/s per worker: {rates}"] if rates else []
        # on one machine the ids of its only node would be noise
        if len({node for where in self.nodes.values() for node in where}) > 1:
            lines += [
                f"  {stage} ran on "
                + ", ".join(f"node {n} ({count})" for n, count in sorted(where.items()))
                for stage, where in self.nodes.items()
            ]
        return "\n".join(lines)


def summarize(plan: Plan, todo: Sequence[Shard], total: Tally, seconds: float) -> ExtractSummary:
    """Of a run that had these shards to do."""
    rows = sum(shard.rows for shard in todo)
    nodes: dict[str, dict[str, int]] = {stage: {} for stage in STAGES}
    for (stage, node), count in total.nodes.items():
        nodes[stage][node] = count
    return ExtractSummary(
        rows_in=plan.rows_in,
        already_done=plan.rows_in - rows,
        stored=total.stored,
        quarantined=dict(total.reasons),
        seconds=seconds,
        utterances_per_second={
            s: sum(nodes[s].values()) / total.busy[s] for s in STAGES if total.busy[s]
        },
        nodes=nodes if todo else {},
        all_quarantined=plan.quarantined + total.reasons.total(),
        texts_cut=total.texts_cut,
        longest_text=total.longest_text,
        labels=plan.labels,
    )


def encoders_state(config: ExtractConfig) -> str:
    """What the FeatureSpec follows from: settings, and the encoders' files by name, size and when
    they were written. "" where only loading the encoders tells: what a hub's name stands for may
    change."""
    raw = to_dict(config)
    state = [[raw[name] for name in ENCODING], config.extracted, bool(config.gpus_per_worker)]
    for m in config.extracted:
        source = source_of(m, config.encoders)
        # A family that needs no files. Its source is no path: "" would be the working directory.
        if not source:
            continue
        path = Path(source)
        if not path.exists():
            return ""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            about = file.stat()
            state.append([str(file), about.st_size, about.st_mtime_ns])
    return json.dumps(state)


def nothing_to_do(config: ExtractConfig) -> ExtractSummary | None:
    """The summary of a rerun of a finished extraction; None if there may be something to do, or
    only `extract_features` can tell. Raises InputError as it does of another store's encoders."""
    started = time.perf_counter()
    store = as_path(config.store)
    labels = manifest_labels(config.manifest, config.labels)
    found = finished_plan(store, config, labels)
    if found is None:
        return None
    plan, encoders = found
    # Loading them takes longer than all the rest.
    if not encoders or encoders != encoders_state(config):
        write_spec(store, build_feature_spec(config), labels)
    return summarize(plan, [], Tally(), time.perf_counter() - started)
