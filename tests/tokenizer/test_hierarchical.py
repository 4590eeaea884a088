"""What is particular to hierarchical quantization; the contract is tested over the registry in test_quantizers.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import HierarchicalQuantizerConfig, make_quantizer
from codegrid.tokenizer.quantizers.hierarchical import pack, unpack

PLAIN = VectorQuantizerConfig(codebook_size=16, code_dim=3, l2_normalize=False)


def make(**inner):
    return make_quantizer(HierarchicalQuantizerConfig(channels=4, norm_groups=2, inner=replace(PLAIN, **inner)))


def walk(quantizer, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What each grid quantizes and what it is nearest to, step by step, with the codebooks read off."""
    books = [level.embedding.weight.detach() for level in quantizer.levels]

    def nearest(grid: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        return torch.cdist(grid.movedim(1, -1).flatten(0, 2).double(), book.double()).argmin(1).view(grid[:, 0].shape)

    top = quantizer.down(z)
    top_codes = nearest(top, books[0])
    said = quantizer.up(books[0][top_codes].movedim(-1, 1))
    bottom = quantizer.narrow(torch.cat([z, said], 1))
    bottom_codes = nearest(bottom, books[1])
    return top, top_codes, bottom, bottom_codes, said + quantizer.widen(books[1][bottom_codes].movedim(-1, 1))


def test_a_position_has_its_top_code_and_the_block_of_the_bottom_that_it_covers():
    top, bottom = torch.randint(16, (2, 3, 4)), torch.randint(16, (2, 6, 8))
    codes = pack(top, bottom)
    assert codes.shape == (2, 3, 4, 5)
    for row in range(3):
        for column in range(4):
            block = [bottom[:, 2 * row + i, 2 * column + j] for i in range(2) for j in range(2)]
            assert torch.equal(codes[:, row, column], torch.stack([top[:, row, column], *block], -1))
    assert all(torch.equal(*pair) for pair in zip(unpack(codes), (top, bottom), strict=True))


def test_the_bottom_is_quantized_beside_what_the_top_says():
    quantizer, z = make().eval(), torch.randn(2, 4, 6, 8)
    top, top_codes, bottom, bottom_codes, out = walk(quantizer, z)
    assert (top.shape, bottom.shape) == ((2, 3, 3, 4), (2, 3, 6, 8))
    output = quantizer(z)
    assert torch.equal(output.codes, pack(top_codes, bottom_codes))
    torch.testing.assert_close(output.features, out)
    errors = [
        F.mse_loss(level.codes_to_features(codes), grid)
        for level, codes, grid in zip(quantizer.levels, (top_codes, bottom_codes), (top, bottom), strict=True)
    ]
    torch.testing.assert_close(output.losses["commitment"], 0.25 * sum(errors) / 2)


def test_a_bottom_code_changes_its_place_alone_and_a_top_code_a_neighbourhood():
    quantizer, codes = make().eval(), torch.zeros(1, 4, 4, 5, dtype=torch.int64)
    before = quantizer.codes_to_features(codes)
    for entry, at_least in ((4, 1), (0, 4)):
        other = codes.clone()
        other[0, 1, 2, entry] = 7
        changed = (quantizer.codes_to_features(other) != before).any(1)[0].nonzero().tolist()
        assert [3, 5] in changed  # the lower right of the block
        assert changed == [[3, 5]] if entry else len(changed) >= at_least


def test_statistics_are_of_what_each_grid_quantizes():
    quantizer, z = make(codebook_update="ema", codebook_decay=0.0), torch.randn(2, 4, 6, 8)
    top, top_codes, bottom, bottom_codes, _ = walk(quantizer, z)
    quantizer.update(quantizer.statistics(quantizer.encode(z), z))
    for level, grid, codes in ((0, top, top_codes), (1, bottom, bottom_codes)):
        for code in codes.unique():
            expected = grid.movedim(1, -1)[codes == code].mean(0)
            found = quantizer.levels[level].embedding.weight[code]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert make().statistics(quantizer.encode(z), z) == {}


def test_each_grid_revives_onto_what_it_quantizes():
    quantizer, z = make(), torch.randn(2, 4, 6, 8)
    top, _, bottom, _, _ = walk(quantizer, z)
    rows = [grid.movedim(1, -1).flatten(0, 2) for grid in (top, bottom)]
    candidates = quantizer.candidates(z)
    assert candidates.shape == (96, 6)
    torch.testing.assert_close(candidates, torch.cat([rows[0].repeat(4, 1), rows[1]], 1))
    moved = quantizer.revive(quantizer.encode(z), candidates, torch.Generator())
    assert {name: len(found) for name, found in moved.items()} == {f"levels.{i}.embedding.weight": 16 for i in range(2)}
    for level, mine in enumerate(candidates.chunk(2, dim=1)):
        taken = (quantizer.levels[level].embedding.weight[:, None] == mine).all(-1).any(1)
        assert taken.all()


def test_a_model_in_bfloat16_gives_codes_and_images():
    backbone = BackboneConfig(
        resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, patch_size=2,
        norm_groups=4,
    )  # fmt: skip
    config = VQModelConfig(backbone=backbone, quantizer=HierarchicalQuantizerConfig(channels=8, inner=PLAIN))
    model = VQModel(config).eval()
    assert (config.grid_shape, config.codes_shape, config.pixels_per_position) == ((2, 2), (2, 2, 5), 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ValueError, match="no multiple of the downsampling factor 8"):
        VQModelConfig(backbone=replace(backbone, resolution=12), quantizer=config.quantizer)
    images = torch.randn(2, 3, 16, 24).clamp(-1, 1)
    assert model.decode(model.encode(images)).shape == images.shape
    model = model.bfloat16()
    codes = model.encode(images)
    assert codes.shape == (2, 2, 3, 5)
    assert model.decode(codes).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, r"quantizer\.channels is 0"),
        ({"channels": 6, "norm_groups": 4}, r"quantizer\.channels 6 cannot be split into quantizer\.norm_groups 4"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalQuantizerConfig(**fields)
