"""What a label may be: a class of the corpus's LabelSpec, or a score of sentiment."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lfmim.schema.columns import LABELS_FILE
from lfmim.schema.errors import InputError

SHIPPED = Path(__file__).parents[1] / "configs" / "labels"
"""The label specs that come with the package, a YAML file each."""
DEFAULT_LABELS = "cherma"
"""Of a manifest that names none, and of every store made before stores kept theirs."""

SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        "anger angry mad 愤怒 生气 气愤",
        "disgust disgusted 厌恶 讨厌",
        "fear fearful afraid scared 恐惧 害怕",
        "happiness happy joy joyful 高兴 开心 快乐 喜悦",
        "neutrality neutral 中性 中立",
        "sadness sad 悲伤 难过 伤心 悲哀",
        "surprise surprised 惊奇 惊讶",
        "calm calmness",
        "excitement excited 兴奋 激动",
        "frustration frustrated 沮丧",
        "worry worried 担心 担忧",
        "contempt contemptuous 轻蔑",
    )
)
"""Words of one meaning in the languages of the field. Whichever of them a spec has as a class, the
others are read as it; what is near but not the same (calm, neutral) only a spec's `merges` may
join."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """The classes of a corpus and the words that stand for them; a file of `configs/labels`, or a
    user's own YAML, with these fields."""

    name: str
    """As reports call it."""
    classes: tuple[str, ...]
    """Class names in index order: that of a model's probabilities."""
    report_order: tuple[str, ...] = ()
    """The same names in the order of tables and figures; (): as `classes`."""
    neutral: str = ""
    """The class of no emotion, if there is one."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """This corpus's own words and codes -> class, besides the SYNONYMS of a class's name."""
    merges: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Words of another meaning that this spec counts as a class; told with their number when a
    corpus is read."""
    dropped: tuple[str, ...] = ()
    """Words of the corpus that are no class here: left empty, and their number told."""
    sentiments: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Words of the second task -> score in [-1, 1]."""
    sentiment_range: tuple[float, float] = (-1.0, 1.0)
    """Range of the second task's scores (sentiment, valence, arousal) as the corpus gives them;
    stored as [-1, 1]."""

    def __post_init__(self) -> None:
        # YAML gives lists; equal specs must compare equal, and so be of one type.
        for field in ("classes", "report_order", "dropped", "sentiment_range"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "report_order", self.report_order or self.classes)
        for field in ("aliases", "merges", "sentiments"):
            words = {_word(k): v for k, v in getattr(self, field).items()}
            object.__setattr__(self, field, words)
        object.__setattr__(self, "dropped", tuple(_word(w) for w in self.dropped))

        where = f"labels {self.name!r}"
        if len(set(map(_word, self.classes))) != len(self.classes) or len(self.classes) < 2:
            raise InputError(f"{where}, field 'classes': two or more different names are needed")
        if sorted(self.report_order) != sorted(self.classes):
            raise InputError(f"{where}, field 'report_order': must hold each of 'classes' once")
        # They become names of metrics, which MLflow takes of no other characters.
        if odd := [c for c in self.classes if not re.fullmatch(r"[\w. -]+", c)]:
            raise InputError(
                f"{where}, field 'classes': {odd[0]!r} holds other than letters, digits, ' ._-'"
            )
        if self.neutral and self.neutral not in self.classes:
            raise InputError(f"{where}, field 'neutral': {self.neutral!r} is no class")

        for field in ("aliases", "merges"):
            for word, target in getattr(self, field).items():
                if target not in self.classes:
                    raise InputError(f"{where}, field '{field}': {word!r}: {target!r} is no class")
        read = [*map(_word, self.classes), *self.aliases, *self.merges, *self.dropped]
        twice = [w for w in read if read.count(w) > 1]
        if twice:
            raise InputError(f"{where}: {twice[0]!r} stands for two things; keep one of them")

        low, high = self.sentiment_range
        if not low < high:
            raise InputError(f"{where}, field 'sentiment_range': {low} is not below {high}")
        if any(not -1 <= score <= 1 for score in self.sentiments.values()):
            raise InputError(f"{where}, field 'sentiments': scores lie in [-1, 1]")

    @functools.cached_property
    def _class_of(self) -> dict[str, str]:
        """Every word that `parse` takes -> its class."""
        found = {**self.aliases, **self.merges, **{_word(name): name for name in self.classes}}
        for group in SYNONYMS:
            named = [name for name in self.classes if _word(name) in group]
            # Of two classes of one meaning, no third word can tell which is meant.
            if len(named) == 1:
                # The spec's own words come first: a corpus may mean another thing by one of them.
                own = {*found, *self.dropped}
                found |= dict.fromkeys(group - own, named[0])
        return found

    def parse(self, value: object, *, where: str) -> str | None:
        """The class that a cell names; None if it is empty or names what the spec drops.

        Raises InputError naming `where`, the nearest class and the words that are known.
        """
        word = "" if value is None or value != value else _word(value)
        if not word or word in self.dropped:
            return None

        if word in self._class_of:
            return self._class_of[word]

        # 0.5, where difflib's default is 0.6: words of two characters that share one are alike by
        # just that.
        near = difflib.get_close_matches(word, self._class_of, n=1, cutoff=0.5)
        hint = f"; did you mean {self._class_of[near[0]]}?" if near else "."
        raise InputError(
            f"{where}: unknown emotion {str(value).strip()!r}{hint} Known to the labels "
            f"{self.name!r} are {', '.join(self.classes)}. Other classes: --labels NAME or FILE"
        )

    def knows(self, value: object) -> bool:
        """Whether `parse` takes the cell."""
        word = "" if value is None or value != value else _word(value)
        return not word or word in self._class_of or word in self.dropped

    def parse_sentiment(self, value: object, *, where: str) -> float | None:
        """A score or word of the second task -> [-1, 1]; missing -> None. Raises InputError naming
        `where` for anything else."""
        word = "" if value is None or value != value else _word(value)
        if not word:
            return None
        if word in self.sentiments:
            return float(self.sentiments[word])

        low, high = self.sentiment_range
        try:
            score = float(word)
        except ValueError:
            # Fails the range below, as "nan" itself does: one message for all that is no score.
            score = float("nan")
        if not low <= score <= high:
            words = f" or one of {', '.join(self.sentiments)}" if self.sentiments else ""
            raise InputError(
                f"{where}: {value!r} is not a sentiment score in [{low:g}, {high:g}]{words}"
            )
        # Untouched where there is nothing to scale, to the last digit.
        return score if (low, high) == (-1, 1) else 2 * (score - low) / (high - low) - 1

    def differences(self, other: LabelSpec) -> list[str]:
        """What makes labels of `other` no labels of `self`; [] if nothing. Words that stand for the
        classes do not count."""
        if self.classes == other.classes:
            return []
        return [
            f"labels: {', '.join(self.classes)} ({self.name}) vs {', '.join(other.classes)} "
            f"({other.name})"
        ]

    def check(self, other: LabelSpec, *, have: str, want: str) -> None:
        """Raise InputError where labels of `other`, those of `have`, are none of `self`, those of
        `want`: it shows both and says how to map them."""
        if differences := self.differences(other):
            raise InputError(
                f"{want} has other classes than {have}. {differences[0]}. To map the words of the "
                f"one to the classes of the other, write a label spec (YAML) with the classes "
                f"{', '.join(self.classes)} in this order and `merges:` lines WORD: CLASS "
                "(`dropped:` for words without a class), and give it to lfmim extract --labels "
                "FILE for a new store"
            )

    @property
    def fingerprint(self) -> str:
        """Hex digest over what `differences` compares."""
        return hashlib.sha256(json.dumps(self.classes).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, dicts, strings and numbers."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_dict(cls, raw: object, *, source: str) -> LabelSpec:
        """What `to_dict` or a YAML file gives. Raises InputError naming `source` and the field."""
        if not isinstance(raw, Mapping):
            raise InputError(f"{source}: not a label spec: it has no fields")
        fields = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(str(k) for k in raw if k not in fields)
        missing = sorted({"name", "classes"} - set(raw))
        if unknown or missing:
            problem = f"unknown field '{unknown[0]}'" if unknown else f"no field '{missing[0]}'"
            raise InputError(f"{source}: {problem}; a label spec has {', '.join(sorted(fields))}")

        for field in ("classes", "report_order", "dropped", "sentiment_range"):
            if not isinstance(raw.get(field, []), list | tuple):
                raise InputError(f"{source}, field '{field}': a list is needed")
        for field in ("aliases", "merges", "sentiments"):
            if not isinstance(raw.get(field, {}), Mapping):
                raise InputError(f"{source}, field '{field}': WORD: CLASS lines are needed")
        # YAML reads `no`, `01` and `1.0` as what they look like; a class name is a text.
        if not all(isinstance(name, str) and name.strip() for name in raw["classes"]):
            raise InputError(f"{source}, field 'classes': names are texts; put them in quotes")
        try:
            return cls(**raw)
        except (TypeError, ValueError) as error:
            said = str(error) if isinstance(error, InputError) else f"not a label spec ({error})"
            raise InputError(f"{source}: {said}") from error

    @classmethod
    def from_yaml(cls, text: bytes, *, source: str) -> LabelSpec:
        """A YAML file with the fields. Raises InputError naming `source`."""
        try:
            raw = yaml.safe_load(text.decode("utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(f"{source}: cannot be read as YAML in UTF-8 ({error})") from error
        return cls.from_dict(raw, source=source)

    def to_yaml(self) -> str:
        """What `from_yaml` reads, without the fields that say nothing."""
        said = {k: v for k, v in self.to_dict().items() if v not in ("", [], {})}
        return str(yaml.safe_dump(said, allow_unicode=True, sort_keys=False))

    @classmethod
    def load(cls, store: Path) -> LabelSpec:
        """`label_spec.json` of the feature store; without one, as in stores of before, CHERMA's
        seven emotions."""
        path = store / LABELS_FILE
        if not path.is_file():
            return default_labels()
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not a label spec ({error})") from error
        return cls.from_dict(raw, source=str(path))


def _word(value: object) -> str:
    return str(value).strip().lower()


@functools.cache
def shipped_labels() -> tuple[str, ...]:
    """Names of the label specs that come with the package."""
    return tuple(sorted(p.stem for p in SHIPPED.glob("*.yaml")))


def read_label_spec(name: str) -> LabelSpec:
    """A shipped label spec by its name, or a local YAML file. Raises InputError."""
    path = Path(name)
    if name in shipped_labels():
        path = SHIPPED / f"{name}.yaml"
    elif path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise InputError(
            f"labels: {name!r} is neither a YAML file nor one of {', '.join(shipped_labels())}"
        )

    return LabelSpec.from_yaml(path.read_bytes(), source=str(path))


@functools.cache
def default_labels() -> LabelSpec:
    """CHERMA's seven emotions: of stores and checkpoints that do not say what their classes are."""
    return read_label_spec(DEFAULT_LABELS)


def fitting_labels(values: set[str]) -> list[str]:
    """The shipped specs that know all of the words; of several those that neither merge nor drop
    any, if there are."""
    known = {n: read_label_spec(n) for n in shipped_labels()}
    fitting = [n for n, spec in known.items() if all(map(spec.knows, values))]

    words = set(map(_word, values))
    keeping = [n for n in fitting if not words & {*known[n].merges, *known[n].dropped}]
    return keeping or fitting
