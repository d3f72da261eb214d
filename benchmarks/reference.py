"""(a): a straightforward training loop in the manner of the published script, written for this
comparison.

Three .npy files per sample and epoch through a DataLoader with workers, padding in the collate
function, float32, nn.MultiheadAttention, `loss.item()` at every step, evaluation of test and train
splits after every epoch. The architecture and its sizes are LFMIM's as in docs/model.md, so both
sides do the same arithmetic; a rival is this project's own module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lfmim.config import ModelConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.models import build_model
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, Modality, default_labels


class Block(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c.d_model), nn.LayerNorm(c.d_model)
        self.attention = nn.MultiheadAttention(
            c.d_model, c.num_heads, dropout=c.dropout_attention, batch_first=True
        )
        self.ffn = nn.Sequential(
            nn.Linear(c.d_model, c.feedforward),
            nn.ReLU(),
            nn.Dropout(c.dropout_ffn),
            nn.Linear(c.feedforward, c.d_model),
        )
        self.dropout = nn.Dropout(c.dropout_ffn)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, y, key_padding_mask=padding)[0])
        return x + self.dropout(self.ffn(self.norm2(x)))


class PlainLFMIM(nn.Module):
    def __init__(self, c: ModelConfig, dims: dict[Modality, int]) -> None:
        super().__init__()
        names = [*(m.value for m in MODALITIES), MULTIMODAL]
        self.project = nn.ModuleDict({m: nn.Conv1d(dims[m], c.d_model, 1) for m in MODALITIES})
        self.position = nn.Parameter(
            torch.randn(max(c.max_lengths.values()), c.d_model), requires_grad=False
        )
        self.dropout = nn.Dropout(c.dropout_embedding)
        self.stacks = nn.ModuleDict(
            {n: nn.ModuleList(Block(c) for _ in range(c.num_layers)) for n in names}
        )
        self.norms = nn.ModuleDict({n: nn.LayerNorm(c.d_model) for n in names})
        self.heads = nn.ModuleDict(
            {
                n: nn.Sequential(
                    nn.Linear(c.d_model, c.d_model // 2),
                    nn.ReLU(),
                    nn.Linear(c.d_model // 2, len(default_labels().classes)),
                )
                for n in names
            }
        )
        self.fex = nn.Parameter(torch.randn(c.fex_tokens, c.d_model) * 0.02)
        self.alpha = nn.Parameter(torch.ones(c.num_layers, 3))
        self.alpha_bar = nn.Parameter(torch.ones(c.num_layers, 3))
        self.layers = c.num_layers

    def forward(self, x: dict[str, Tensor], padding: dict[str, Tensor]) -> dict[str, Tensor]:
        z = {m: self.project[m](x[m].transpose(1, 2)).transpose(1, 2) for m in MODALITIES}
        z = {m: self.dropout(v + self.position[: v.shape[1]]) for m, v in z.items()}
        batch = len(z["text"])
        fex = self.fex.expand(batch, -1, -1)
        padding_m = torch.cat(
            [
                torch.zeros(batch, fex.shape[1], dtype=torch.bool, device=fex.device),
                *(padding[m] for m in MODALITIES),
            ],
            dim=1,
        )
        lengths = [fex.shape[1], *(z[m].shape[1] for m in MODALITIES)]
        bar: list[Tensor] = []
        for layer in range(self.layers):
            mixed = [
                self.alpha[layer, i] * z[m] + (self.alpha_bar[layer, i] * bar[i] if bar else 0)
                for i, m in enumerate(MODALITIES)
            ]
            out = self.stacks[MULTIMODAL][layer](torch.cat([fex, *mixed], dim=1), padding_m)
            fex, *bar = out.split(lengths, dim=1)
            z = {m: self.stacks[m][layer](z[m], padding[m]) for m in MODALITIES}
        logits = {}
        for h, (y, pad) in {
            **{m.value: (z[m], padding[m]) for m in MODALITIES},
            MULTIMODAL: (out, padding_m),
        }.items():
            keep = (~pad)[..., None].float()
            logits[h] = self.heads[h]((self.norms[h](y) * keep).sum(1) / keep.sum(1).clamp(min=1))
        return logits


class PlainRival(nn.Module):
    def __init__(self, c: ModelConfig, dims: dict[Modality, int]) -> None:
        super().__init__()
        self.model = build_model(c, dims)

    def forward(self, x: dict[str, Tensor], padding: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model(x, {m: ~p for m, p in padding.items()}).logits


def write_files(data: UtteranceTensors, folder: Path) -> None:
    """The corpus as the published features lie: one .npy per sample and modality, and a label
    file."""
    for m in MODALITIES:
        (folder / m).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(data.ids):
            np.save(folder / m / f"{name}.npy", data.sequence(m, i).cpu().numpy())
    labels = [
        {"id": n, **dict(zip(HEADS, row, strict=True))}
        for n, row in zip(data.ids, data.labels.tolist(), strict=True)
    ]
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


class Files(Dataset[Any]):
    def __init__(self, folder: Path, limits: dict[Modality, int]) -> None:
        self.folder, self.limits = folder, limits
        self.rows = json.loads((folder / "labels.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[Tensor], list[int]]:
        row, features = self.rows[i], []
        for m in MODALITIES:
            x = np.load(self.folder / m / f"{row['id']}.npy")
            if len(x) > self.limits[m]:  # text is cut, audio and vision are sampled uniformly
                x = (
                    x[: self.limits[m]]
                    if m == "text"
                    else x[np.linspace(0, len(x) - 1, self.limits[m]).round().astype(int)]
                )
            features.append(torch.from_numpy(x).float())
        return features, [row[h] for h in HEADS]


def collate(
    rows: list[tuple[list[Tensor], list[int]]],
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    x, padding = {}, {}
    for k, m in enumerate(MODALITIES):
        parts = [r[0][k] for r in rows]
        x[m.value] = pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(p) for p in parts])
        padding[m.value] = torch.arange(x[m.value].shape[1])[None] >= lengths[:, None]
    return x, padding, torch.tensor([r[1] for r in rows])


class Reference:
    """The loop over one folder of files."""

    def __init__(
        self,
        config: ModelConfig,
        dims: dict[Modality, int],
        folder: Path,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.model = (PlainLFMIM if config.name == "lfmim" else PlainRival)(config, dims).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.005)
        self.loader = DataLoader(
            Files(folder, config.max_lengths),
            batch_size,
            shuffle=True,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
        )

    def batches(self) -> Iterator[Any]:
        for x, padding, labels in self.loader:
            yield (
                {m: v.to(self.device) for m, v in x.items()},
                {m: v.to(self.device) for m, v in padding.items()},
                labels.to(self.device),
            )

    def step(self, batch: Any) -> float:
        x, padding, labels = batch
        logits = self.model(x, padding)
        loss = sum(
            nn.functional.cross_entropy(logits[h], labels[:, i]) for i, h in enumerate(HEADS)
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(self) -> None:
        self.model.train()
        for batch in self.batches():
            self.step(batch)

    @torch.no_grad()
    def evaluate(self) -> None:
        self.model.eval()
        hits = 0
        for x, padding, labels in self.batches():
            logits = self.model(x, padding)
            hits += sum(
                int((logits[h].argmax(1) == labels[:, i]).sum()) for i, h in enumerate(HEADS)
            )
