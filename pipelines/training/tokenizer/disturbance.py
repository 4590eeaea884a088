"""Codes disturbed as a prior would draw them, for a decoder that is trained on (RobusTok's second step).

A decoder is trained on the codes of pictures, and is then given those that a prior draws, which are never quite right.
Qiu et al. 2025, https://arxiv.org/abs/2509.12474, train it on with encoder and codebook frozen: a part of each
picture's codes is replaced, by codes nearby or by a prior's own, and the decoder is to give the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.training.config import AS_IT_COMES, DisturbanceConfig, TokenizerTrainingConfig
from codegrid.prior import SequenceConfig
from codegrid.prior.architectures import architecture_of
from codegrid.prior.likelihood import code_logits
from codegrid.prior.sequence import to_codes, to_tokens
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.quantizers import Quantized, Quantizer

_DISTANCES_AT_ONCE = 2**24  # numbers, 64 MB

Replacements = Callable[[Tensor], Tensor]  # codes [B, h, w(, depth)] -> others of the same shape


def check_disturbance(config: TokenizerTrainingConfig) -> None:
    """Raises CodegridError: codes are to be disturbed in a training that disturbs none."""
    require(
        config.finetune_decoder or config.disturbance == AS_IT_COMES,
        "disturbance is set, and no codes are disturbed without finetune_decoder.",
        "Set --finetune-decoder, or leave disturbance out.",
    )


def disturb(model: VQModel, config: DisturbanceConfig, class_names: Sequence[str] | None) -> Disturbance:
    """Let the model's decoder be trained on disturbed codes; its quantizer and its codes stay what they are.

    Args:
        class_names: of the pictures, for a prior that follows classes.

    Raises:
        CodegridError: the prior cannot be loaded, does not belong to the tokenizer, or cannot be used here.
    """
    prior = None
    if config.prior is None:
        others = model.config.quantizer_config.codebook_size - 1
        require(others > 0, "The tokenizer has one code, which no other can take the place of.", "Take another one.")
        replacements = nearby(neighbours(model.quantize, min(config.neighbours, others)))
    else:
        replacements = prior = PriorDraws.load(config.prior, model, class_names)
    disturbance = Disturbance(model, config.share, replacements, prior)
    model.quantize.register_forward_hook(disturbance)
    return disturbance


class Disturbance:
    """A hook of the quantizer: in training, its features are those of disturbed codes. `codes` stay the pictures' own.

    All draws are of torch's global generators, which training seeds for each step.
    """

    def __init__(self, model: VQModel, share: float, replacements: Replacements, prior: PriorDraws | None) -> None:
        self.decoder, self.share, self.replacements, self.prior = model.decoder, share, replacements, prior

    def expect(self, labels: list[Tensor]) -> None:
        """The labels [B] of the pictures of the next forward passes, in their order; -1 where there is none."""
        if self.prior is not None:
            self.prior.labels = list(labels)

    @torch.no_grad()
    def __call__(self, module: Quantizer, args: Any, output: Quantized) -> Quantized | None:
        if not self.decoder.training:
            return None
        codes = disturbed(output.codes, self.share, self.replacements)
        return output._replace(features=module.codes_to_features(codes), chosen=None)


def disturbed(codes: Tensor, share: float, replacements: Replacements) -> Tensor:
    """Replace codes [B, h, w(, depth)]: in each picture another share of them, drawn evenly from 0 to `share`."""
    shares = share * torch.rand(len(codes), *[1] * (codes.dim() - 1), device=codes.device)
    chosen = torch.rand(codes.shape, device=codes.device) < shares
    return torch.where(chosen, replacements(codes), codes)


def neighbours(quantizer: Quantizer, number: int) -> Tensor:
    """The `number` nearest other codes of every code, at each place of a position: [depth, K, number] int64.

    With several codes at a position, the distance is that of the features if the others are the same.
    """
    size, depth = quantizer.config.codebook_size, quantizer.config.depth
    device = next((tensor.device for tensor in (*quantizer.parameters(), *quantizer.buffers())), torch.device("cpu"))
    every = torch.arange(size, device=device)
    tables = []
    for place in range(depth):
        codes = torch.zeros(size, 1, 1, depth, dtype=torch.int64, device=device)
        codes[..., place] = every[:, None, None]
        vectors = quantizer.codes_to_features(codes if depth > 1 else codes[..., 0]).flatten(1)  # [K, D]
        nearest = []
        for rows in every.split(max(1, _DISTANCES_AT_ONCE // size)):
            distances = torch.cdist(vectors[rows], vectors)
            distances[torch.arange(len(rows), device=device), rows] = torch.inf  # a code is no neighbour of itself
            nearest.append(distances.topk(number, largest=False).indices)
        tables.append(torch.cat(nearest))
    return torch.stack(tables)


def nearby(table: Tensor) -> Replacements:
    """Replacements by one of each code's neighbours, all equally likely; `table` is [depth, K, number]."""

    def replacements(codes: Tensor) -> Tensor:
        own = table.to(codes.device)
        place = torch.arange(len(own), device=codes.device) if len(own) > 1 else torch.zeros_like(codes)
        return own[place, codes, torch.randint(own.shape[2], codes.shape, device=codes.device)]

    return replacements


class PriorDraws:
    """Replacements that a prior draws at each position, given the picture's own codes before it: temperature 1, no
    guidance."""

    def __init__(self, model: PreTrainedModel, sequence: SequenceConfig, classes: Sequence[int]) -> None:
        """`classes` are the prior's classes of the pictures' labels, -1 where it has none."""
        self.model, self.sequence = model.eval().requires_grad_(False), sequence
        self.classes = torch.tensor([*classes, -1])  # a label of -1 takes the last
        self.labels: list[Tensor] = []

    @classmethod
    def load(cls, name: str, tokenizer: VQModel, class_names: Sequence[str] | None) -> PriorDraws:
        """Raises CodegridError: it is no prior of the tokenizer's codes, or it cannot predict each code in one pass."""
        model, sequence = load_prior_and_sequence(name)
        called = f"the prior {shown(name)}"
        sentence = misfits(tokenizer, sequence, "the tokenizer", called)
        require(not sentence, sentence, "Name a prior that was trained on this tokenizer's codes.")
        record = architecture_of(model)
        require(
            sequence.condition is None and (record is None or record.reads != "around"),
            f"{called[0].upper()}{called[1:]} is masked, or follows another condition than classes.",
            "Name a prior that predicts one code after the other, or leave disturbance.prior out.",
        )
        known = {name: label for label, name in enumerate(sequence.class_names or ())}
        classes = [known.get(name, -1) for name in class_names or ()]
        require(
            not known or sequence.null_class or (classes and min(classes) >= 0),
            f"{called[0].upper()}{called[1:]} needs a class for every picture, and the pictures have others or none.",
            "Take pictures of its classes, or a prior that was trained with class_dropout above 0.",
        )
        return cls(model, sequence, classes)

    def __call__(self, codes: Tensor) -> Tensor:
        model = self.model.to(codes.device)
        labels = drop = None
        if self.sequence.class_names is not None:
            own = self.labels.pop(0).cpu() if self.labels else torch.full((len(codes),), -1)
            classes = self.classes[own]
            labels = classes.clamp(min=0).to(codes.device)
            drop = (classes < 0).to(codes.device) if self.sequence.null_class else None
        tokens = to_tokens(codes, labels, drop, self.sequence, validate=False)
        with torch.autocast(codes.device.type, enabled=False):
            chances = code_logits(model, tokens, self.sequence).float().softmax(-1)  # [B, L, K]
        drawn = torch.multinomial(chances.flatten(0, 1), 1).view(chances.shape[:2])
        return to_codes(drawn, self.sequence)
