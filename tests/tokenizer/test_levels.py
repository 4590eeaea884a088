"""What residual and grouped quantization have in common."""

from __future__ import annotations

import pytest
import torch

from tokenizer.quantizers import (
    GroupedQuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
    make_quantizer,
)
from tokenizer.quantizers.levels import mean_losses

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
