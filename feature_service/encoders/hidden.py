"""Which of a transformer's hidden states are the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lfmim.config import LAYERS
from lfmim.schema import InputError


class Layers(NamedTuple):
    """The hidden states after block `first` to block `last`, averaged; 0: the embeddings."""

    first: int
    last: int

    @classmethod
    def chosen(cls, text: str, blocks: int, *, field: str, default: int) -> Layers:
        """`text`: "6", "4-8", or "" for block `default`.

        Raises InputError naming `field` where the model's `blocks` are fewer.
        """
        found = LAYERS.fullmatch(text or str(default))
        if found is None or int(found[2] or found[1]) > blocks:
            raise InputError(
                f"{field}: {text!r} is not in this model, which has the blocks 1 to {blocks} (0: "
                "its embeddings)"
            )
        return cls(int(found[1]), int(found[2] or found[1]))

    def __str__(self) -> str:
        return str(self.last) if self.first == self.last else f"{self.first}-{self.last}"

    def of(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, T, D] from those of the embeddings and of every block up to `last` or further."""
        states = hidden_states[self.first : self.last + 1]
        return states[0] if len(states) == 1 else torch.stack(list(states)).mean(dim=0)
