"""Each quantizer at its defaults beside its authors' way, trained alike on real pictures.

A quantizer may be right by every formula and not learn: by its start, its weights, or the optimizer's group that it is
in. The others' classes are vector-quantize-pytorch's; where it has none, the paper's method is written out.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from codegrid.pipelines.comparison.twins import twin
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.tokenizer.presets import quickstart_tokenizer, small64_tokenizer
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.metrics import code_counts
from codegrid.tokenizer.quantizers import (
    BinarySphericalQuantizerConfig,
    FiniteScalarQuantizerConfig,
    GumbelConfig,
    IBQConfig,
    LookupFreeQuantizerConfig,
    Quantized,
    Quantizer,
    QuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
)

STEPS, BATCH = 300, 16


class PlainIBQ(Quantizer):
    """arXiv:2412.02692, section 3: one-hot of the largest similarity, with the gradient of the softmax."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__()
        self.config, self.book = config, nn.Embedding(config.codebook_size, config.code_dim)  # N(0, 1)

    def forward(self, features: Tensor) -> Quantized:
        rows = features.movedim(1, -1).flatten(0, 2)  # [N, D]
        logits = rows @ self.book.weight.t()
        soft, codes = logits.softmax(1), logits.argmax(1)
        hard = F.one_hot(codes, logits.shape[1]) + soft - soft.detach()
        e, plain = hard @ self.book.weight, self.book(codes)
        loss = F.mse_loss(e, rows) + F.mse_loss(plain.detach(), rows) + 0.25 * F.mse_loss(plain, rows.detach())
        p = (logits / 0.01).softmax(1)
        mean, each = p.mean(0), -(p * (p + 1e-9).log()).sum(1).mean()
        loss = loss + 0.05 * (each + (mean * (mean + 1e-9).log()).sum())
        shape = (len(features), *features.shape[2:])
        return Quantized(e.view(*shape, -1).movedim(-1, 1), codes.view(shape), {"theirs": loss})


class PlainGumbel(Quantizer):
    """arXiv:1611.01144 with DALL-E's term: scores of a 1x1 convolution, one code drawn, the draw's gradient."""

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__()
        self.config = config
        self.scores = nn.Conv2d(config.code_dim, config.codebook_size, 1)
        self.scores.no_decay = True
        self.book = nn.Embedding(config.codebook_size, config.code_dim)

    def forward(self, features: Tensor) -> Quantized:
        scores = self.scores(features)  # [B, K, h, w]
        draw = F.gumbel_softmax(scores, tau=1.0, dim=1, hard=True) if self.training else None
        codes = (scores if draw is None else draw).argmax(1)
        e = self.book(codes).movedim(-1, 1) if draw is None else torch.einsum("bkhw,kd->bdhw", draw, self.book.weight)
        q = scores.softmax(1)
        loss = 5e-4 * (q * (q * q.shape[1] + 1e-10).log()).sum(1).mean()
        return Quantized(e, codes, {"theirs": loss})


PLAIN = VectorQuantizerConfig(codebook_size=512, code_dim=8, l2_normalize=False)
# Ours, and theirs of the same size with the weights that their authors recommend.
CASES = {
    "vq": (
        VectorQuantizerConfig(codebook_size=512, code_dim=8),
        twin("VectorQuantize", 512, 8, dim=8, codebook_size=512, use_cosine_sim=True),
    ),
    "simvq": (SimVQConfig(codebook_size=512, code_dim=32), twin("SimVQ", 512, 32, dim=32, codebook_size=512)),
    "ibq": (IBQConfig(codebook_size=512, code_dim=32), None),
    "gumbel": (GumbelConfig(codebook_size=512, code_dim=32), None),
    "fsq": (FiniteScalarQuantizerConfig(levels=(8, 8, 8)), twin("FSQ", 512, 3, levels=[8, 8, 8])),
    "lfq": (
        LookupFreeQuantizerConfig(num_bits=9),
        twin("LFQ", 512, 9, dim=9, entropy_loss_weight=0.1, diversity_gamma=1.0, commitment_loss_weight=0.25),
    ),
    "bsq": (
        BinarySphericalQuantizerConfig(num_bits=9),
        twin("LFQ", 512, 9, dim=9, spherical=True, entropy_loss_weight=0.1, commitment_loss_weight=0.0),
    ),
    "residual": (
        ResidualQuantizerConfig(depth=2, inner=replace(PLAIN, codebook_size=32)),
        twin("ResidualVQ", 32, 8, 2, dim=8, codebook_size=32, num_quantizers=2),
    ),
}


def theirs(config: QuantizerConfig, made: QuantizerConfig | None) -> Quantizer:
    if made is None:
        return PlainIBQ(config) if config.type == "ibq" else PlainGumbel(config)
    return made.build()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Fashion-MNIST, 28x28 padded to 32x32: [2000, 1, 32, 32] in [-1, 1]."""
    column = pq.read_table(EMBEDDED_IMAGES, columns=["image"])["image"].slice(0, 2000).to_pylist()
    found = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L")) for row in column])
    return F.pad(torch.from_numpy(found)[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)


def learned(config: QuantizerConfig, quantizer: Quantizer | None, pictures: Tensor, folder) -> tuple[float, float]:
    """PSNR in dB and the share of the codes in use, on 400 pictures that training has not seen."""
    torch.manual_seed(0)
    base = quickstart_tokenizer("none", str(folder))
    # Muon, as small64 has it: the group that a parameter is in then matters most.
    base = replace(base, quantizer=config, optimizer=small64_tokenizer("none", "").optimizer, max_steps=STEPS)
    model = VQModel(VQModelConfig(backbone=base.backbone, quantizer=config, preprocessing=base.preprocessing)).train()
    if quantizer is not None:
        model.quantize = quantizer
    accelerator = make_accelerator("cpu")
    learners = make_learners(model, base.objective, base.optimizer, base.discriminator_optimizer, 0.0, accelerator)
    draws, last = torch.Generator().manual_seed(1), pictures[-400:]
    for step in range(STEPS):
        chosen = torch.randint(len(pictures) - 400, (BATCH,), generator=draws)
        train_step(learners, base, [pictures[chosen]], step, accelerator)
    model.eval()
    with torch.no_grad():
        outputs = [model(batch) for batch in last.split(100)]
    made = torch.cat([output.reconstruction for output in outputs]).clamp(-1, 1)
    errors = ((made - last) / 2).square().mean((1, 2, 3))
    counts = code_counts(torch.cat([output.codes for output in outputs]), config.codebook_size, config.depth)
    return float(-10 * errors.log10().mean()), float((counts > 0).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_it_learns_as_its_authors_does(kind, pictures, tmp_path):
    config, made = CASES[kind]
    torch.manual_seed(0)
    other = theirs(config, made)
    ours, ours_used = learned(config, None, pictures, tmp_path / "ours")
    them, them_used = learned(config, other, pictures, tmp_path / "theirs")
    print(f"\n{kind}: ours {ours:.2f} dB, {100 * ours_used:.1f}% in use; theirs {them:.2f} dB, {100 * them_used:.1f}%")
    assert ours > them - 0.4
    # That none collapses: the faults that this was written for left 41% of LFQ's codes in use, and 52% of SimVQ's.
    assert ours_used > 0.6 * them_used
