"""The Markdown card that goes with every registered model version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lfmim.config import to_dict
from lfmim.evaluation.page import markdown_table, shown
from lfmim.metrics import Metrics, SentimentMetrics, labelled_f1, metrics_from_dict
from lfmim.models import build_model
from lfmim.schema import MODALITIES, SENTIMENTS, LabelSpec
from lfmim.training.checkpoint import CheckpointMeta

SOURCE = ("domain", "licences", "redistribution")
"""Tags of a version that tell where its data are from, if it has them."""


def model_card(meta: CheckpointMeta, *, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """What the model is, on what it was trained, how good it is on validation, and what it is not
    for."""
    c = meta.config
    # Built without its weights, for its size and its heads: which heads there are depends on the
    # modalities of the store as well as on the model's name.
    model = build_model(c.model, meta.spec.dims, len(meta.labels.classes))
    parameters = sum(p.numel() for p in model.parameters())
    encoders = "\n".join(
        f"| {m} | {e.name} | {e.dim} | `{e.weights_sha256[:12]}` |"
        for m, e in meta.spec.encoders.items()
    )

    beta = ", ".join(f"{h} {v:g}" for h, v in c.train.beta.as_dict().items())
    sentiment = c.model.task == "sentiment"
    answers = (
        "a sentiment score in [-1, 1]"
        if sentiment
        else f"probabilities over {', '.join(meta.labels.classes)}"
    )
    begun = f"from the weights of `{c.init}`\n" if c.init else ""
    # lr, β and seed of an imported checkpoint are defaults that nobody trained it with.
    made = (
        f"Trained {begun}for {meta.epoch + len(meta.later or ())} epochs with "
        f"{c.train.optimizer} at lr\n{c.train.lr:g}, loss weights β {beta}, "
        f"seed {c.train.seed}; the checkpoint is epoch {meta.best_epoch + 1}, chosen on\n"
        f"the validation score of the {c.train.selection} head ({meta.best_score:.4f})."
        if meta.history
        else "Imported, not trained here."
    )
    absent = (
        "takes utterances that lack modalities"
        if model.accepts_absent
        else "needs text, audio and vision of every utterance"
    )

    heads = ", ".join(f"{h} {t:.2f}" for h, t in meta.temperature.items())
    calibrated = (
        f"Probabilities are calibrated on validation, by temperatures: {heads}."
        if heads
        else "Probabilities are softmax outputs, not calibrated."
    )

    told = [f"- {key.capitalize()}: {tags[key]}\n" for key in SOURCE if key in tags]
    source = "\n" + "".join(told) if told else ""

    return f"""# {name}

## What it is
`{c.model.name}` (width {c.model.d_model}, {c.model.num_layers} layers,
{c.model.num_heads} attention heads, {parameters:,} parameters):
from feature sequences of {", ".join(MODALITIES)} to {answers},
for the heads {", ".join(model.answers)}. It {absent}. {made}

It reads features of exactly these encoders (FeatureSpec `{tags["feature_spec"]}`); others are
refused.

| modality | encoder | width | weights |
|---|---|---|---|
{encoders}

## Data
Feature store with data hash `{tags["data"]}`.
{source}{_figures(meta, model.answers)}
## Intended uses
Research on multimodal emotion recognition; describing in aggregate the emotion *expressed* in
utterances like those it was trained on, with a person looking at what matters.

## Unsuitable uses
Decisions about a person (hiring, school, insurance, credit, policing, border control, health);
watching people without their knowledge and consent; inferring what somebody feels, as opposed to
what an observer would label; anything that law forbids, such as emotion recognition at work or in
education in the EU.

## Limits
- Labels are observers' judgements; they differ between observers and cultures.
- It knows the speakers, language, recording conditions and acting of its training data only; no
  figure here is by speaker group, so fairness between groups is untested.
- {calibrated} Emotions without validation labels above are
  untested.
- One utterance at a time: no context, no change of emotion within it.

## How it was made
Run `{run_id}`, commit `{tags.get("git_commit", "unknown")}`. Config, curves and figures are in the
run; `config.yaml` there trains it again. Sizes and recipe: `{to_dict(c.model)}`,
`{to_dict(c.train)}`.
"""


def _figures(meta: CheckpointMeta, answers: Sequence[str]) -> str:
    """Labelled utterances and validation figures per head."""
    if not meta.history:
        return "\nNo figures: the weights were imported.\n"

    best = meta.history[meta.best_epoch]
    # A head without validation labels has NaN for every figure.
    heads = [h for h in answers if best["valid"][h]["count"]]
    figures = {h: _shown(metrics_from_dict(best["valid"][h]), meta.labels) for h in heads}
    sentiment = meta.config.model.task == "sentiment"
    classes = (
        [(name, i) for i, name in enumerate(SENTIMENTS)]
        if sentiment
        else [(name, meta.labels.classes.index(name)) for name in meta.labels.report_order]
    )
    # Label counts per class are the confusion's row sums, so no split has to be read again.
    counts = [
        [
            h,
            best["train"][h]["count"],
            best["valid"][h]["count"],
            *(sum(best["valid"][h]["confusion"][i]) for _, i in classes),
        ]
        for h in heads
    ]
    names = list(figures[heads[0]])
    scores = [[h, *(shown(v) for v in figures[h].values())] for h in heads]

    return f"""
Labelled utterances per head, and validation labels per class:

{markdown_table(["head", "training", "validation", *(name for name, _ in classes)], counts)}
## Figures on validation
Each head against its own label; majority is what always guessing the most frequent emotion scores.
The checkpoint was chosen on this split, so the figures are optimistic; `lfmim evaluate` reads the
test split.

{markdown_table(["head", *names], scores)}"""


def _shown(metrics: Metrics, labels: LabelSpec) -> dict[str, float]:
    if isinstance(metrics, SentimentMetrics):
        return metrics.scalars()
    f1 = labelled_f1(vars(metrics))
    return {
        "accuracy": metrics.accuracy,
        "majority": metrics.majority,
        "UAR": metrics.uar,
        "weighted F1": metrics.weighted_f1,
        "macro F1": metrics.macro_f1,
        **{f"F1 {e}": f1[e] for e in labels.report_order},
    }
