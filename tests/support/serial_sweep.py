"""A sweep as plain code: one trial after the other, no Ray; what the sweep on Ray must equal."""

from __future__ import annotations

from pathlib import Path

from lfmim.config import ModelConfig, RunConfig, TrainConfig, to_dict
from lfmim.data.loading import load_split
from lfmim.distributed.order import successive_halving
from lfmim.experiments.search import TrialRecord, TuneConfig, with_params
from lfmim.schema import FeatureSpec, InputError
from lfmim.training.loop import NonFiniteLossError, train


class Stop(Exception):
    """Leaves the loop as the scheduler would."""


def tiny_tune(store: Path, folder: Path, *, epochs: int = 6, **fields) -> TuneConfig:
    return TuneConfig(
        store=str(store),
        model=ModelConfig(
            d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8
        ),
        train=TrainConfig(
            optimizer="adamw",
            lr=0.003,
            lr_scheduler="constant",
            epochs=epochs,
            batch_size=16,
            selection="text",
        ),
        run=RunConfig(storage=str(folder / "runs"), cpus_per_worker=1),
        **{"grace": 1, "reduction": 2, "trials": 9, "seeds": 2, **fields},
    )


def serial_sweep(config: TuneConfig, plan, total: int) -> list[TrialRecord]:
    store, records = Path(config.store), []
    spec = FeatureSpec.load(store)
    for number in range(total):
        earlier = records[: max(0, number - config.window + 1)]
        params, reports, state = plan(number, earlier), [], "finished"
        behind = successive_halving(config, earlier)
        last = config.train.epochs

        def on_epoch(report, save, reports=reports, behind=behind, last=last):
            reports.append(report)
            if (
                config.scheduler == "asha"
                and behind(report.epoch + 1, report.score)
                and report.epoch + 1 < last
            ):
                raise Stop

        try:
            experiment = with_params(config, params)
            train(
                experiment,
                spec,
                *(load_split(store, s, config.model) for s in ("train", "valid")),
                on_epoch=on_epoch,
            )
        except Stop:
            state = "stopped"
        except NonFiniteLossError:
            state = "diverged"
        except InputError:
            state = "failed"
        best = max(reports, key=lambda r: r.score, default=None)  # the first of equal ones
        records.append(
            TrialRecord(
                number=number,
                params=params,
                state=state,
                score=best and best.score,
                config=to_dict(config),
                loss=best and best.valid[config.train.selection].loss,
                best_epoch=best.epoch if best else -1,
                history=[r.as_dict() for r in reports],
            )
        )
    return records
