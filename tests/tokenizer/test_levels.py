"""What residual and grouped quantization have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegrid.tokenizer.quantizers import (
    GroupedQuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
    make_quantizer,
)
from codegrid.tokenizer.quantizers.gradients import rotation
from codegrid.tokenizer.quantizers.levels import mean_losses

PLAIN = VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)
CONFIGS = {
    "residual": ResidualQuantizerConfig(depth=3, inner=PLAIN),
    "shared": ResidualQuantizerConfig(depth=3, shared=True, inner=PLAIN),
    "grouped": GroupedQuantizerConfig(groups=2, inner=VectorQuantizerConfig(codebook_size=16, code_dim=2)),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_revival_is_the_same_for_the_same_draw_and_names_the_rows_that_it_moved(kind):
    quantizer, twin, before = (make_quantizer(CONFIGS[kind]) for _ in range(3))
    for other in (twin, before):
        other.load_state_dict(quantizer.state_dict())
    z = torch.randn(3, 4, 5, 6)
    rows = z.movedim(1, -1).reshape(-1, 4)
    moved, again = (one.revive(one.encode(z), rows, torch.Generator()) for one in (quantizer, twin))
    assert moved.keys() == again.keys() == dict(quantizer.named_parameters()).keys()
    for name, parameter in quantizer.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name))
        changed = (parameter != before.get_parameter(name)).any(1).nonzero().flatten()
        assert torch.equal(changed, moved[name])


def test_losses_are_means_over_the_levels_that_have_the_term():
    one, two = {"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, {"a": torch.tensor(3.0)}
    assert mean_losses([one, two]) == {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_codebooks_of_running_means_move_onto_what_each_level_quantized(kind):
    config = CONFIGS[kind]
    quantizer = make_quantizer(
        replace(config, inner=replace(config.inner, codebook_update="ema", codebook_decay=0.0, l2_normalize=False))
    )
    assert not list(quantizer.parameters())
    assert {"levels.0.usage", "levels.0.cluster_sum"} <= set(quantizer.training_buffers)
    z = torch.randn(3, 4, 5, 6)
    codes = quantizer.encode(z)  # [B, h, w, depth]
    inputs: dict[int, list] = {}  # of each codebook: codes [N] and what was quantized [N, D]
    left = z.movedim(1, -1).flatten(0, 2)
    for index, chosen in enumerate(codes.flatten(0, 2).unbind(-1)):
        book = 0 if kind == "shared" else index
        rows = left[:, 2 * index : 2 * index + 2] if kind == "grouped" else left
        inputs.setdefault(book, []).append((chosen, rows))
        if kind != "grouped":
            left = left - quantizer.levels[book].embedding.weight[chosen]
    quantizer.update(quantizer.statistics(codes, z))
    for book, parts in inputs.items():
        chosen, rows = (torch.cat(part) for part in zip(*parts, strict=True))
        for code in chosen.unique():
            expected = rows[chosen == code].mean(0)
            torch.testing.assert_close(quantizer.levels[book].embedding.weight[code], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_rotation_of_an_inner_quantizer_is_not_lost(kind):
    config = CONFIGS[kind]
    quantizer = make_quantizer(replace(config, inner=replace(config.inner, gradient="rotation", l2_normalize=False)))
    z, weight = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(2, 4, 3, 3)
    output = quantizer(z)
    (found,) = torch.autograd.grad((output.features * weight).sum(), z)
    e, width = quantizer.codes_to_features(output.codes), config.inner.code_dim
    turned = torch.cat([rotation(*pair) for pair in zip(z.split(width, 1), e.split(width, 1), strict=True)], 1)
    torch.testing.assert_close(found, torch.autograd.grad((turned * weight).sum(), z)[0])
