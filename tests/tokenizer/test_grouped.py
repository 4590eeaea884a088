"""What is particular to grouped quantization; the contract is tested over the registry in test_quantizers.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import GroupedResidualVQ

from codegrid.tokenizer.quantizers import GroupedQuantizerConfig, VectorQuantizerConfig, make_quantizer


def make(groups: int = 3, l2_normalize: bool = True):
    inner = VectorQuantizerConfig(codebook_size=16, code_dim=2, l2_normalize=l2_normalize)
    return make_quantizer(GroupedQuantizerConfig(groups=groups, inner=inner))


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_each_group_is_its_inner_quantizer_on_its_channels(l2_normalize):
    quantizer, z = make(l2_normalize=l2_normalize), torch.randn(2, 6, 4, 5)
    assert (quantizer.config.code_dim, quantizer.config.depth, quantizer.config.codebook_size) == (6, 3, 16)
    output, losses = quantizer(z), []
    for group, level in enumerate(quantizer.levels):
        alone = level(z[:, 2 * group : 2 * group + 2])
        assert torch.equal(output.codes[..., group], alone.codes)
        assert torch.equal(output.features[:, 2 * group : 2 * group + 2], alone.features)
        losses.append(alone.losses["commitment"])
    torch.testing.assert_close(output.losses["commitment"], sum(losses) / 3)


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_codes_and_features_equal_vector_quantize_pytorch(l2_normalize):
    ours = make(l2_normalize=l2_normalize).eval()
    theirs = GroupedResidualVQ(
        dim=6, groups=3, num_quantizers=1, codebook_size=16, use_cosine_sim=l2_normalize
    ).eval()  # fmt: skip
    for rvq, level in zip(theirs.rvqs, ours.levels, strict=True):
        book = level.embedding.weight.detach()
        rvq.layers[0]._codebook.embed.data = (F.normalize(book) if l2_normalize else book)[None].clone()
    z = torch.randn(2, 6, 4, 4)
    quantized, codes, _ = theirs(z.flatten(2).mT)  # [B, N, D], [groups, B, N, 1]
    output = ours(z)
    assert torch.equal(output.codes.flatten(1, 2), codes[..., 0].movedim(0, -1))
    torch.testing.assert_close(output.features.flatten(2).mT, quantized, rtol=0, atol=1e-5)


def test_a_group_that_changes_changes_its_own_codes_alone():
    quantizer, z = make(), torch.randn(1, 6, 4, 4)
    codes = quantizer.encode(z)
    z[:, 2:4] = -z[:, 2:4]
    changed = (quantizer.encode(z) != codes).any(0).any(0).any(0)
    assert changed.tolist() == [False, True, False]


def test_each_group_revives_onto_its_own_channels():
    quantizer, rows = make(), torch.randn(100, 6)
    moved = quantizer.revive(torch.zeros(10, 3, dtype=torch.int64), rows, torch.Generator())
    assert {name: len(found) for name, found in moved.items()} == {f"levels.{i}.embedding.weight": 16 for i in range(3)}
    for group, level in enumerate(quantizer.levels):
        taken = (level.embedding.weight[:, None] == rows[:, 2 * group : 2 * group + 2]).all(-1).any(1)
        assert taken.all()


def test_one_group_is_refused():
    with pytest.raises(ValueError, match=r"quantizer\.groups is 1. Give at least 2.*type 'vq'"):
        GroupedQuantizerConfig(groups=1)
