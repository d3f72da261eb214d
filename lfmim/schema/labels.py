"""What a label may be: an emotion of seven, or a score of sentiment."""

from __future__ import annotations

import difflib

from lfmim.schema.errors import InputError

EMOTIONS: tuple[str, ...] = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutrality",
    "sadness",
    "surprise",
)
"""Class index order: that of the published data."""

REPORT_ORDER: tuple[str, ...] = (
    "happiness",
    "sadness",
    "fear",
    "anger",
    "surprise",
    "disgust",
    "neutrality",
)
"""Column order of the paper's tables."""

EMOTIONS_ZH: dict[str, str] = {
    "愤怒": "anger",
    "厌恶": "disgust",
    "恐惧": "fear",
    "高兴": "happiness",
    "平静": "neutrality",
    "悲伤": "sadness",
    "惊奇": "surprise",
}
"""The published data's label words -> emotion names."""

_NEAR_EMOTIONS: dict[str, str] = {
    "joy": "happiness",
    "开心": "happiness",
    "快乐": "happiness",
    "喜悦": "happiness",
    "难过": "sadness",
    "伤心": "sadness",
    "悲哀": "sadness",
    "生气": "anger",
    "害怕": "fear",
    "惊讶": "surprise",
    "讨厌": "disgust",
    "calm": "neutrality",
    "中性": "neutrality",
    "中立": "neutrality",
    **EMOTIONS_ZH,
    **{e: e for e in EMOTIONS},
}
"""Words to suggest an emotion for; they are no labels: whoever labelled decides what was meant."""

SENTIMENTS: tuple[str, ...] = (
    "negative",
    "weakly negative",
    "neutral",
    "weakly positive",
    "positive",
)
"""CH-SIMS' five classes of a sentiment score in [-1, 1]."""

IGNORE_LABEL = -100
"""Class index (or sentiment score) of a missing label; `torch.nn.functional.cross_entropy` skips it
by default."""


def parse_emotion(value: object, *, where: str) -> str | None:
    """Emotion name (English or the published Chinese word) -> English name; missing -> None.

    Raises InputError naming `where` for anything else.
    """
    # NaN is what pandas makes of an empty cell; it alone is unequal to itself.
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        return None

    name = EMOTIONS_ZH.get(text, text.lower())
    if name not in EMOTIONS:
        # 0.5, where difflib's default is 0.6: words of two characters that share one are like by
        # just that.
        near = difflib.get_close_matches(name, _NEAR_EMOTIONS, n=1, cutoff=0.5)
        hint = f" did you mean {_NEAR_EMOTIONS[near[0]]}?" if near else ""
        known = ", ".join(f"{english} ({chinese})" for chinese, english in EMOTIONS_ZH.items())
        raise InputError(f"{where}: unknown emotion {value!r};{hint} Known are {known}")
    return name


def parse_sentiment(value: object, *, where: str) -> float | None:
    """Sentiment score in [-1, 1]; missing -> None. Raises InputError naming `where` for anything
    else."""
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        return None
    try:
        score = float(text)
    except ValueError:
        # Fails the range below, as "nan" itself does: one message for all that is no score.
        score = float("nan")
    if not -1 <= score <= 1:
        raise InputError(f"{where}: {value!r} is not a sentiment score in [-1, 1]")
    return score
