"""Muon against torch's own, which takes matrices alone, and AdamW on the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from codegrid.pipelines.training import optim
from codegrid.pipelines.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from codegrid.pipelines.training.muon import orthogonalized
from codegrid.pipelines.training.optim import OptimizerConfig, make_optimizer, set_learning_rate
from codegrid.pipelines.training.prior.presets import PRIOR_PRESETS
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.discriminators import PatchGANConfig, StyleGANConfig, make_discriminator
from codegrid.tokenizer.quantizers import GumbelConfig, HierarchicalQuantizerConfig, SimVQConfig, make_quantizer

CONFIG = OptimizerConfig(type="muon", learning_rate=1e-2, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.conv_in.not_hidden = True
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        return self.linear(self.conv(self.conv_in(x).tanh()).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


def train(model: Net, optimizer, steps: int, begin: int = 0) -> None:
    for step in range(begin, begin + steps):
        images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_singular_values_end_near_one_and_directions_stay():
    matrix = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    for given, polar in ((matrix, u @ v), (matrix.t(), (u @ v).t())):
        found, other = orthogonalized(torch.stack([given, 3 * torch.ones_like(given)]))
        assert torch.linalg.matrix_rank(other) == 1  # each by itself
        assert (torch.linalg.svdvals(found) - 1).abs().max() < 0.35
        # The iteration is an odd polynomial of the matrix: it keeps both sets of singular vectors.
        assert torch.allclose(polar.t() @ found, found.t() @ polar, atol=1e-8)


def test_hidden_matrices_step_as_with_torchs_muon_and_the_rest_as_with_adamw():
    """Gradients are drawn: of a network's, nearly singular, torch's iteration in bfloat16 is a poor measure."""
    model, start = net(), dict(net().named_parameters())
    ours = make_optimizer(model, CONFIG)
    hidden = {name: nn.Parameter(start[name].detach().flatten(1).clone()) for name in ("conv.weight", "linear.weight")}
    rest = {name: nn.Parameter(one.detach().clone()) for name, one in start.items() if name not in hidden}
    muon = torch.optim.Muon(hidden.values(), lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    vectors = [one for name, one in rest.items() if name != "conv_in.weight"]
    groups = [{"params": [rest["conv_in.weight"]], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    theirs = {**hidden, **rest}
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            # In the parameter's memory format, as backward passes give it: the fused AdamW takes that for granted.
            parameter.grad = torch.empty_like(parameter).copy_(drawn)
            theirs[name].grad = torch.empty_like(theirs[name]).copy_(drawn.view(theirs[name].shape))
        for optimizer in (ours, muon, adamw):
            set_learning_rate(optimizer, 1e-2 / (step + 1))
            optimizer.step()
    for name, one in model.named_parameters():
        two, before = (each.view(one.shape) for each in (theirs[name], start[name]))
        bound = 0.02 if name in hidden else 1e-5
        assert (one - two).norm() < bound * (two - before).norm(), name


def test_the_state_goes_through_a_checkpoint_bit_for_bit():
    straight, resumed = net(), net()
    train(straight, make_optimizer(straight, CONFIG), 4)
    first = make_optimizer(resumed, CONFIG)
    train(resumed, first, 2)
    second = make_optimizer(resumed, CONFIG)
    load_optimizer_tensors(second, resumed, {k: v.clone() for k, v in optimizer_tensors(first, resumed).items()})
    train(resumed, second, 2, begin=2)
    assert all(torch.equal(one, two) for one, two in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("positions", "ends"), [("rotary", "_proj.weight"), ("learned", ("attn.weight", "c_proj.weight", "c_fc.weight"))]
)
def test_a_priors_tables_are_left_to_adamw(positions, ends):
    model = make_prior(PriorConfig(32, 1, 2, positions=positions), SequenceConfig(16, (2, 2)))
    optimizer = make_optimizer(model, OptimizerConfig(type="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = {names[id(p)] for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    assert hidden == {name for name in names.values() if name.endswith(ends)}
    assert len(hidden) == (7 if positions == "rotary" else 4)


def groups_of(model: nn.Module) -> list[set[str]]:
    """Names of the parameters that decay, that do not, and that Muon steps."""
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[set[str]] = [set(), set(), set()]
    for group in optimizer.param_groups:
        place = 2 if "momentum" in group else int(not group["weight_decay"])
        found[place] |= {names[id(parameter)] for parameter in group["params"]}
    return found


def groups_by_names(model: nn.Module) -> list[set[str]]:
    """As version 0.1.0 took them, from parts of names."""
    found: list[set[str]] = [set(), set(), set()]
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or any(part in name for part in ("embed", "wte", "wpe")):
            found[1].add(name)
        else:
            ends = ("lm_head", "conv_in", "conv_out", "quant_conv")
            found[0 if any(part in name for part in ends) else 2].add(name)
    return found


@pytest.mark.parametrize("preset", ["quickstart", "small64"])
def test_tokenizers_and_priors_keep_the_groups_that_their_names_gave_them(preset):
    config = TOKENIZER_PRESETS[preset]("images", "run")
    shape = VQModelConfig(
        backbone=config.backbone, quantizer=config.quantizer, preprocessing=config.preprocessing, num_classes=2
    )
    sequence = SequenceConfig(16, (4, 4), class_names=("a", "b"))
    priors = [PRIOR_PRESETS[preset]("codes", "run").model]
    priors += [PriorConfig(32, 1, 2, positions="learned"), PriorConfig(32, 1, 2, positions="rotary_2d")]
    for model in (VQModel(shape), *(make_prior(each, sequence) for each in priors)):
        assert groups_of(model) == groups_by_names(model)
        assert all(groups_of(model))


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        (PatchGANConfig(ndf=8, n_layers=2, conditional=True), {"main.0", "main.8"}),
        (StyleGANConfig(channels=8, max_channels=16, num_blocks=2, conditional=True), {"stem", "verdict"}),
    ],
)
def test_a_discriminators_first_and_last_layers_are_left_to_adamw(config, ends):
    decayed, others, hidden = groups_of(make_discriminator(config, 3, num_classes=2))
    assert decayed == {f"{name}.weight" for name in ends}
    assert "projection.class_embedding" in others
    assert hidden


@pytest.mark.parametrize(
    ("config", "table"),
    [
        (SimVQConfig(codebook_size=16, code_dim=4), "projection.weight"),
        (GumbelConfig(codebook_size=16, code_dim=4), "logits.weight"),
    ],
)
def test_a_quantizers_own_map_is_a_table(config, table):
    """SimVQ's projection is its codebook: by Muon the codes stayed far shorter than the features."""
    decayed, others, hidden = groups_of(make_quantizer(config))
    assert table in others
    assert not decayed
    assert not hidden
    levels = groups_of(make_quantizer(HierarchicalQuantizerConfig(channels=8, inner=config)))
    assert f"levels.0.{table}" in levels[1]
    assert "narrow.weight" in levels[2]


def test_a_checkpoint_of_a_parameter_that_changed_its_group_starts_anew_there():
    before, after, lines = net(), net(), []
    before.conv_in.not_hidden = False  # Muon took it
    first = make_optimizer(before, CONFIG)
    train(before, first, 2)
    saved = optimizer_tensors(first, before)
    assert "momentum_buffer/conv_in.weight" in saved
    second = make_optimizer(after, CONFIG)
    load_optimizer_tensors(second, after, saved, lines.append)
    assert len(lines) == 1
    assert "of conv_in.weight is" in lines[0]
    assert not second.state.get(after.conv_in.weight)
    assert torch.equal(second.state[after.conv.weight]["momentum_buffer"], saved["momentum_buffer/conv.weight"])
    train(after, second, 1)
    assert {"exp_avg", "exp_avg_sq", "step"} <= set(second.state[after.conv_in.weight])
    load_optimizer_tensors(make_optimizer(after, CONFIG), after, optimizer_tensors(second, after), lines.append)
    assert len(lines) == 1


def test_updates_may_be_orthogonalized_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """Singular values stay where the iteration brings them, up to the rounding of bfloat16."""
    given = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    exact, rounded = orthogonalized(given), orthogonalized(given, rounded=True)
    assert exact.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.svdvals(rounded), torch.linalg.svdvals(exact), rtol=0.1, atol=0.1)
    assert not make_optimizer(net(), CONFIG).rounded
    assert make_optimizer(net(), replace(CONFIG, muon_precision="bfloat16")).rounded
    for able in (True, False):
        monkeypatch.setattr(optim, "computes_bf16", lambda cpu, able=able: able and cpu)
        assert make_optimizer(net(), replace(CONFIG, muon_precision="auto")).rounded == able
