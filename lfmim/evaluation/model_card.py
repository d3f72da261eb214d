"""The Markdown card that goes with every registered model version."""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import to_dict
from lfmim.models import build_model
from lfmim.schema import EMOTIONS, HEADS, MODALITIES, REPORT_ORDER
from lfmim.training.checkpoint import CheckpointMeta


def model_card(meta: CheckpointMeta, *, name: str, run_id: str, tags: Mapping[str, str]) -> str:
    """What the model is, on what it was trained, how good it is on validation, and what it is not for."""
    c, best = meta.config, meta.history[meta.best_epoch]
    model = build_model(c.model, meta.spec.dims)
    parameters = sum(p.numel() for p in model.parameters())
    encoders = "\n".join(
        f"| {m} | {e.name} | {e.dim} | `{e.weights_sha256[:12]}` |" for m, e in meta.spec.encoders.items()
    )
    beta = ", ".join(f"{h} {v:g}" for h, v in c.train.beta.as_dict().items())
    counts = "\n".join(f"| {h} | {best['train'][h]['count']} | {best['valid'][h]['count']} | "
                       + " | ".join(str(sum(best['valid'][h]['confusion'][EMOTIONS.index(e)])) for e in REPORT_ORDER)
                       + " |" for h in HEADS if best["valid"][h]["count"])
    figures = "\n".join(
        f"| {h} | {m['accuracy']:.3f} | {m['majority']:.3f} | {m['weighted_f1']:.3f} | {m['macro_f1']:.3f} | "
        + " | ".join(f"{m['f1'][e]:.3f}" for e in REPORT_ORDER) + " |"
        for h, m in best["valid"].items() if m["count"] and h in model.answers
    )
    emotions, rule = " | ".join(REPORT_ORDER), "---|" * len(REPORT_ORDER)
    absent = ("takes utterances that lack modalities" if model.accepts_absent
              else "needs text, audio and vision of every utterance")
    return f"""# {name}

## What it is
`{c.model.name}` (width {c.model.width}, {c.model.layers} layers, {c.model.heads} heads, {parameters:,} parameters):
from feature sequences of {', '.join(MODALITIES)} to probabilities over {', '.join(EMOTIONS)}, for the heads
{', '.join(model.answers)}. It {absent}. Trained for {meta.epoch} epochs with {c.train.optimizer} at lr
{c.train.lr:g}, loss weights β {beta}, seed {c.train.seed}; the checkpoint is epoch {meta.best_epoch + 1}, chosen on
validation accuracy of the {c.train.selection} head ({meta.best_score:.4f}).

It reads features of exactly these encoders (FeatureSpec `{tags['feature_spec']}`); others are refused.

| modality | encoder | width | weights |
|---|---|---|---|
{encoders}

## Data
Feature store with data hash `{tags['data']}`. Labelled utterances per head, and validation labels per emotion:

| head | training | validation | {emotions} |
|---|---|---|{rule}
{counts}

## Figures on validation
Each head against its own label; majority is what always guessing the most frequent emotion scores. The checkpoint was
chosen on this split, so the figures are optimistic; `jobs/evaluate.py` reads the test split.

| head | accuracy | majority | weighted F1 | macro F1 | F1 {' | F1 '.join(REPORT_ORDER)} |
|---|---|---|---|---|{rule}
{figures}

## Intended uses
Research on multimodal emotion recognition; describing in aggregate the emotion *expressed* in utterances like those it
was trained on, with a person looking at what matters.

## Unsuitable uses
Decisions about a person (hiring, school, insurance, credit, policing, border control, health); watching people without
their knowledge and consent; inferring what somebody feels, as opposed to what an observer would label; anything that
law forbids, such as emotion recognition at work or in education in the EU.

## Limits
- Labels are observers' judgements; they differ between observers and cultures.
- It knows the speakers, language, recording conditions and acting of its training data only; no figure here is by
  speaker group, so fairness between groups is untested.
- Probabilities are softmax outputs, not calibrated. Emotions without validation labels above are untested.
- One utterance at a time: no context, no change of emotion within it.

## How it was made
Run `{run_id}`, commit `{tags.get('git_commit', 'unknown')}`. Config, curves and figures are in the run; `config.yaml`
there trains it again. Sizes and recipe: `{to_dict(c.model)}`, `{to_dict(c.train)}`.
"""
