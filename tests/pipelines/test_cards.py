"""Cards: their metadata as the Hub's own library reads it, and what each says."""

from __future__ import annotations

import math

from huggingface_hub import DatasetCard, ModelCard

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.cards import (
    CardFacts,
    codes_card,
    completed,
    pipeline_card,
    prior_card,
    tokenizer_card,
)
from codegrid.prior import SequenceConfig
from codegrid.prior.codes import read_manifest
from codegrid.tokenizer import VQModel

SEQUENCE = SequenceConfig(32, (4, 4), class_names=("disc", "ring"))


def test_metadata_of_each_kind(tiny_vqmodel, codes):
    for card in (tokenizer_card(tiny_vqmodel.config), prior_card(SEQUENCE), pipeline_card(SEQUENCE)):
        data = ModelCard(completed(card, CardFacts("me/it", license="mit", base_tokenizer="me/tok"))).data
        assert (data.library_name, data.license, data.base_model) == ("codegrid", "mit", "me/tok")
    assert data.pipeline_tag == "unconditional-image-generation"
    card = completed(codes_card(read_manifest(codes)), CardFacts("me/it", license="mit", base_tokenizer="me/tok"))
    data = DatasetCard(card).data
    assert data.license == "mit"
    assert data.configs[0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "library_name" not in data.to_dict()
    assert "base_model" not in data.to_dict()
    assert "[me/tok](https://huggingface.co/me/tok)" in card


def test_what_was_trained_on_what_comes_along(pipeline_folder, tokenizer_folder, prior_folder, codes, tmp_path):
    card = (pipeline_folder / "README.md").read_text()
    for part in (tokenizer_folder, prior_folder):
        for line in (part / "README.md").read_text().partition("## Training")[2].partition("\n## ")[0].splitlines():
            assert line in card
    assert f"`{codes}`" in card
    assert "| psnr |" in card
    # and goes with it when it is loaded and saved again
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    assert (pipe.save_pretrained(tmp_path / "again") / "README.md").read_text() == card


def test_a_tokenizer_of_the_hub_is_linked():
    def base_model(tokenizer):
        card = prior_card(SEQUENCE, "codes", {}, tokenizer)
        return ModelCard(card).data.base_model, ModelCard(pipeline_card(SEQUENCE, {"prior": card})).data.base_model

    assert base_model("me/tokenizer") == ("me/tokenizer", "me/tokenizer")
    for local in (None, "/tmp/tokenizer", "runs/quickstart/tokenizer", "tests/pipelines"):
        assert base_model(local) == (None, None)


def test_scores_that_are_no_numbers_are_left_out(tiny_vqmodel):
    card = tokenizer_card(tiny_vqmodel.config, "me/images", {"psnr": 20.126, "lpips": math.nan})
    assert "Trained on the images `me/images`." in card
    assert "| psnr | 20.13 |" in card
    assert "lpips" not in card
    assert "Training" not in tokenizer_card(tiny_vqmodel.config)


def test_completing_keeps_what_a_person_wrote(tiny_vqmodel: VQModel):
    by_hand = "---\nlicense: cc0-1.0\ntags: [mine]\n---\n\n# Mine\n\nText.\n\n![grid](a.png)\n\n## Licence\n\nFree.\n"
    card = completed(by_hand, CardFacts("me/it", pictures=("a.png", "b.png")))
    data = ModelCard(card).data
    assert (data.license, data.tags, data.library_name) == ("cc0-1.0", ["mine"], "codegrid")
    assert card.count("a.png") == 1
    assert card.index("Text.") < card.index("![b](b.png)") < card.index("## Licence")
    assert card.count("## Licence") == 1
    assert "Not stated" in completed("# No metadata\n", CardFacts("me/it"))
