"""A decoder that is trained on by itself: pictures keep their codes, so that code data sets and priors stay valid."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_runs import prior_run, tokenizer_run, write_pictures

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.training.config import DisturbanceConfig
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.disturbance import disturb, disturbed, nearby, neighbours
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior.codes import read_manifest
from codegrid.tokenizer import VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import QUANTIZERS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Pictures, a tokenizer, its codes and a prior on them."""
    folder = tmp_path_factory.mktemp("runs")
    pictures = write_pictures(folder / "pictures", number=12)
    tokenizer = train_tokenizer(tokenizer_run(folder / "tokenizer", pictures))
    codes = tokenize_dataset(
        TokenizationConfig(str(tokenizer), DataConfig(str(pictures)), str(folder / "codes"), device="cpu")
    )
    return pictures, tokenizer, codes, train_prior(prior_run(folder / "prior", codes))


def trained_on(runs, folder, **changes):
    pictures, tokenizer, *_ = runs
    return train_tokenizer(tokenizer_run(folder, pictures, init_from=str(tokenizer), max_steps=3, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune_decoder": True},
        {"finetune_decoder": True, "disturbance": "prior"},
        {"finetune_decoder": True, "ema_decay": 0.9, "class_conditional": True},
        {"freeze": ("quantizer", "encoder")},
    ],
)
def test_codes_and_priors_stay_valid(changes, runs, tmp_path):
    pictures, tokenizer, codes, prior = runs
    if changes.get("disturbance") == "prior":
        changes = {**changes, "disturbance": DisturbanceConfig(prior=str(prior))}
    run = trained_on(runs, tmp_path / "run", **changes)
    before, after = load_tokenizer(tokenizer), load_tokenizer(run)
    assert after.fingerprint() != before.fingerprint()
    assert after.codes_fingerprint() == before.codes_fingerprint() == before.fingerprint()
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.equal(before.encode(images), after.encode(images))
    labels = torch.tensor([0, 1, 0]) if changes.get("class_conditional") else None
    assert not torch.equal(before.decode(before.encode(images)), after.decode(after.encode(images), labels))
    verify_codes(VerificationConfig(str(codes), str(run), PicturesConfig(str(pictures))))
    folder = make_pipeline(str(run), str(prior), str(tmp_path / "pipeline"), context=str(codes))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    assert len(pipe(num_images=2, seed=0, progress=False).images) == 2
    again = tokenize_dataset(
        TokenizationConfig(str(run), DataConfig(str(pictures)), str(tmp_path / "codes"), device="cpu")
    )
    assert read_manifest(again).fingerprint() == read_manifest(codes).fingerprint()


def test_a_second_finetuning_keeps_the_first_fingerprint(runs, tmp_path):
    first = trained_on(runs, tmp_path / "first", finetune_decoder=True)
    second = train_tokenizer(tokenizer_run(tmp_path / "second", runs[0], init_from=str(first), finetune_decoder=True))
    assert load_tokenizer(second).codes_fingerprint() == load_tokenizer(runs[1]).fingerprint()


def test_a_trained_encoder_has_codes_of_its_own(runs, tmp_path):
    first = trained_on(runs, tmp_path / "first", finetune_decoder=True)
    run = train_tokenizer(tokenizer_run(tmp_path / "run", runs[0], init_from=str(first), freeze=("quantizer",)))
    model = load_tokenizer(run)
    assert model.codes_fingerprint() == model.fingerprint()
    with pytest.raises(CodegridError, match="do not fit each other"):
        make_pipeline(str(run), str(runs[3]), str(tmp_path / "pipeline"))
    with pytest.raises(CodegridError, match="encoders or quantizers"):
        model.keep_codes_of(load_tokenizer(runs[1]))


def test_the_record_survives_saving_and_casting_and_no_change_of_weights(tiny_vqmodel, tmp_path):
    own = tiny_vqmodel.fingerprint()
    tiny_vqmodel.save_pretrained(tmp_path / "plain")
    assert "codes_from" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    tuned = copy.deepcopy(tiny_vqmodel)
    with torch.no_grad():
        tuned.last_layer.mul_(1.5)
    assert tuned.codes_fingerprint() == tuned.fingerprint() != own
    tuned.keep_codes_of(tiny_vqmodel)
    whole = tuned.fingerprint()
    for folder, dtype in {"half": torch.bfloat16, "double": torch.float64}.items():
        tuned.to(dtype).save_pretrained(tmp_path / folder)
        again = VQModel.from_pretrained(tmp_path / folder)
        assert (again.fingerprint(), again.codes_fingerprint()) == (whole, own)
    with torch.no_grad():
        next(tuned.encoder.parameters()).add_(1)
    assert tuned.codes_fingerprint() == tuned.fingerprint() != own


def test_a_record_that_is_no_record_is_refused():
    with pytest.raises(CodegridError, match="codes_from is"):
        VQModelConfig(codes_from={"fingerprint": "x"})


QUANTIZER_KINDS = {
    "vq": VectorQuantizerConfig(codebook_size=16, code_dim=4),
    "fsq": QUANTIZERS["fsq"](levels=(4, 4)),
    "residual": QUANTIZERS["residual"](
        depth=3, inner=VectorQuantizerConfig(codebook_size=8, code_dim=4, l2_normalize=False)
    ),
    "grouped": QUANTIZERS["grouped"](groups=2, inner=VectorQuantizerConfig(codebook_size=8, code_dim=4)),
    "hierarchical": QUANTIZERS["hierarchical"](inner=VectorQuantizerConfig(codebook_size=8, code_dim=4)),
}


@pytest.mark.parametrize("kind", sorted(QUANTIZER_KINDS))
def test_replaced_codes_are_near_and_as_many_as_asked(kind):
    config = QUANTIZER_KINDS[kind]
    torch.manual_seed(3)
    quantizer, depth = config.build().eval(), config.depth
    table = neighbours(quantizer, 3)
    assert table.shape == (depth, config.codebook_size, 3)
    assert not (table == torch.arange(config.codebook_size)[None, :, None]).any()
    shape = (40, 4, 4) if depth == 1 else (40, 4, 4, depth)
    codes = torch.randint(config.codebook_size, shape)
    made = disturbed(codes, 1.0, nearby(table))
    changed = (made != codes).flatten(1).float().mean(1)  # a share of its own for each picture, evenly from 0 to 1
    assert 0.35 < changed.mean() < 0.65
    assert changed.std() > 0.15
    stay = made == codes
    among = (table[torch.arange(depth) if depth > 1 else 0, codes] == made[..., None]).any(-1)
    assert (stay | among).all()
    if kind == "vq":
        vectors = quantizer.codes_to_features(torch.arange(16).view(16, 1, 1)).flatten(1)
        far = torch.cdist(vectors, vectors) + torch.eye(16) * 1e9
        assert torch.equal(table[0].sort(-1).values, far.argsort(1)[:, :3].sort(-1).values)


def test_decoders_are_trained_on_disturbed_codes_and_scored_on_the_pictures_own(tiny_vqmodel):
    size = tiny_vqmodel.config.quantizer_config.codebook_size
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = tiny_vqmodel.encode(images)
    disturb(tiny_vqmodel, DisturbanceConfig(share=1.0, neighbours=size - 1), None)
    tiny_vqmodel.eval()
    assert torch.equal(tiny_vqmodel(images).reconstruction, tiny_vqmodel.decode(codes))
    tiny_vqmodel.decoder.train()
    torch.manual_seed(0)
    found = tiny_vqmodel(images)
    assert torch.equal(found.codes, codes)
    assert not torch.equal(found.reconstruction, tiny_vqmodel.decode(codes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finetune_decoder": True}, "without init_from"),
        ({"finetune_decoder": True, "init_from": "x", "freeze": ("decoder",)}, "freeze names it"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(changes, says, tmp_path):
    with pytest.raises(CodegridError, match=says):
        tokenizer_run(tmp_path / "run", tmp_path, **changes)


def test_a_disturbance_of_nothing_is_refused_before_the_folder_is_claimed(runs, tmp_path):
    with pytest.raises(CodegridError, match="without finetune_decoder"):
        trained_on(runs, tmp_path / "run", disturbance=DisturbanceConfig(share=0.1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("numbers", [{"share": 0.0}, {"share": 1.5}, {"neighbours": 0}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(CodegridError, match="disturbance"):
        DisturbanceConfig(**numbers)


def test_a_prior_of_another_tokenizer_is_refused_before_the_folder_is_claimed(runs, tmp_path):
    pictures = runs[0]
    other = train_tokenizer(tokenizer_run(tmp_path / "other", pictures, seed=1))
    config = tokenizer_run(
        tmp_path / "run",
        pictures,
        init_from=str(other),
        finetune_decoder=True,
        disturbance=DisturbanceConfig(prior=str(runs[3])),
    )
    with pytest.raises(CodegridError, match="do not fit each other"):
        train_tokenizer(config)
    assert not (tmp_path / "run").exists()


def test_the_same_run_draws_the_same(runs, tmp_path):
    changes = {"finetune_decoder": True, "disturbance": DisturbanceConfig(prior=str(runs[3]))}
    first, again = (trained_on(runs, tmp_path / name, **changes) for name in ("first", "again"))
    assert load_tokenizer(first).fingerprint() == load_tokenizer(again).fingerprint()
    other = trained_on(runs, tmp_path / "other", finetune_decoder=True)
    assert load_tokenizer(first).fingerprint() != load_tokenizer(other).fingerprint()
