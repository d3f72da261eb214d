"""Settings under the names they had in 0.1, translated in both directions."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lfmim.schema import InputError
from lfmim.text_files import read_yaml

RENAMED = {
    "model.width": "model.d_model",
    "model.heads": "model.num_heads",
    "model.layers": "model.num_layers",
    "model.ffn_multiple": "model.dim_feedforward",
    "train.schedule": "train.lr_scheduler",
    "train.warmup": "train.warmup_epochs",
    "train.ema": "train.ema_decay",
}
"""Names of 0.1 -> those of today. This release reads both. The multiple of d_model has become the
width itself: 4, the default of both, is 0."""
REMOVED = {
    "face_workers": "faces are found where clips are decoded, by as many workers: decode_workers",
}
"""Names that mean nothing any more, and why. They are read, and left out."""
FORMER = {new: old for old, new in RENAMED.items()}
D_MODEL = 128
"""model.width of 0.1 where a config does not say it: what a multiple is then taken of."""
SECTIONS = {"config": "", "model": "model.", "train": "train."}
"""Options that take a file or a mapping -> what precedes the names in it."""


def translate(
    raw: Mapping[str, Any], *, prefix: str = "", d_model: Any = None
) -> tuple[dict[str, Any], list[str]]:
    """`raw` under the names of today, and a line to say per name of 0.1 in it.

    `raw` is nested as a config is, or flat with dotted names (a search space, a trial's values);
    with `prefix` "model." or "train." it is that section alone. `d_model` is what a multiple is
    taken of; default: as `raw` has it. Raises InputError for a setting under both of its names.
    """
    raw = dict(raw)
    # Found before any name is translated: a multiple may stand before the width it is of.
    if d_model is None:
        d_model = _d_model(raw, prefix, D_MODEL)
    out: dict[str, Any] = {}
    lines: list[str] = []

    for key, value in raw.items():
        old = f"{prefix}{key}"
        if old in ("model", "train") and isinstance(value, Mapping):
            out[key], more = translate(value, prefix=f"{old}.", d_model=d_model)
            lines += more
        elif old in REMOVED:
            lines.append(f"{old} is no setting any more ({REMOVED[old]})")
        elif new := RENAMED.get(old):
            _refuse_both(old, new, [f"{prefix}{k}" for k in raw])
            line = f"{old} is now {new}"
            if old == "model.ffn_multiple":
                value = _feedforward(value, d_model)
                line += f", the width itself: {value or f'0, for 4 x {d_model}'}"
            out[new.removeprefix(prefix)] = value
            lines.append(line)
        else:
            out[key] = value
    return out, lines


def translate_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """`translate` for a command line: --model.width 64, --model.width=64, and the files and
    mappings given to --config, --model and --train, which take the place of their file's name.

    A later option overrides a config under whichever name. Raises InputError for an option given
    under both names, and for a file as `read_yaml`.
    """
    found: list[tuple[int, str, dict[str, Any]]] = []
    d_model: Any = D_MODEL
    for i, (arg, after) in enumerate(zip(args, [*args[1:], ""], strict=False)):
        option, equals, value = arg.partition("=")
        value, name = value if equals else after, option.removeprefix("--")
        if name == option:
            continue
        if name in RENAMED or name in FORMER or name in REMOVED:
            fields = {name: value}
        elif name in SECTIONS:
            fields = _content(name, value)
        else:
            continue
        found.append((i, name, fields))
        # The last one counts, as with the parser, also for a multiple that stands before it.
        d_model = _d_model(fields, SECTIONS.get(name, ""), d_model)

    # Of options alone: an option may override a file that says the same under the other name.
    names = [f"--{name}" for _, name, _ in found]
    for old, new in RENAMED.items():
        if f"--{old}" in names:
            _refuse_both(f"--{old}", f"--{new}", names)

    out: list[str | None] = list(args)
    said: list[str] = []
    for i, name, fields in found:
        fields, lines = translate(fields, prefix=SECTIONS.get(name, ""), d_model=d_model)
        if not lines:
            continue
        _, equals, value = args[i].partition("=")
        if name in SECTIONS:
            said.append(f"{value or args[i + 1]}: {', '.join(lines)}")
            text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=math.inf)
            out[i : i + 2 - len(equals)] = _option(name, equals, text)
        else:
            said += lines
            # None keeps the places of the options behind one that is gone.
            out[i : i + 2 - len(equals)] = [None] * (2 - len(equals))
            for name, now in fields.items():
                out[i : i + 2 - len(equals)] = _option(name, equals, str(now))
    return [argument for argument in out if argument is not None], said


def _option(name: str, equals: str, value: str) -> list[str | None]:
    return [f"--{name}={value}"] if equals else [f"--{name}", value]


def say_renamed(lines: Sequence[str], where: str = "") -> None:
    """One warning for what `translate` found; once a process for the same."""
    if lines:
        _say(f"{where}: " * bool(where) + "; ".join(lines))


@functools.cache
def _say(what: str) -> None:
    logging.getLogger(__name__).warning("%s. The next release reads the new names alone.", what)


def in_former_names(section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a whole section, "model" or "train", under the names of 0.1."""
    prefix = f"{section}."
    out = {FORMER.get(f"{prefix}{k}", k).removeprefix(prefix): v for k, v in fields.items()}
    if section == "model":
        width, d_model = out.pop("ffn_multiple"), fields["d_model"]
        # 0.1 could not say a width that is no multiple. And 4 x d_model written out is another
        # config than 0: under one hash the second of them would find the first one's run, and be
        # refused for its different setting.
        exact = width % d_model == 0 and width != 4 * d_model
        out |= {"ffn_multiple": width // d_model or 4} if exact else {"dim_feedforward": width}
    return out


def _refuse_both(old: str, new: str, given: Sequence[str]) -> None:
    if new in given:
        raise InputError(f"{old} and {new} are two names of one setting; keep {new}")


def _d_model(raw: Mapping[str, Any], prefix: str, default: Any) -> Any:
    """As `raw` has it under either name, nested or flat."""
    model = raw.get("model")
    section = model if isinstance(model, Mapping) else {}
    flat = {f"{prefix}{k}": v for k, v in raw.items()}
    flat |= {f"model.{k}": v for k, v in section.items()}
    return flat.get("model.d_model", flat.get("model.width", default))


def _feedforward(multiple: Any, d_model: Any) -> Any:
    """`multiple` times `d_model`, of each of a list."""
    if isinstance(multiple, list):
        return [_feedforward(k, d_model) for k in multiple]
    try:
        # Options and search spaces bring text; int(1.5) would quietly be another multiple.
        k, width = int(str(multiple)), int(str(d_model))
    except ValueError as error:
        raise InputError(
            f"model.ffn_multiple: {multiple!r} of {d_model!r} is no whole number; it is "
            "model.dim_feedforward now, the width itself"
        ) from error
    if k < 1:
        raise InputError(f"model.ffn_multiple: {k} must be at least 1")
    return 0 if k == 4 else k * width


def _content(option: str, value: str) -> dict[str, Any]:
    """The mapping that a config option names or holds; {} if it is something else."""
    if os.path.isfile(value) and (option == "config" or value.endswith((".yaml", ".yml", ".json"))):
        raw = read_yaml(value)
    else:
        try:
            raw = yaml.safe_load(value) if value.lstrip().startswith("{") else None
        except yaml.YAMLError:
            # The parser's to tell, in its words and with the option's name.
            raw = None
    return raw if isinstance(raw, dict) else {}
