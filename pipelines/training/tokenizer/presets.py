"""Named configs of stage one (`training/prior/presets.py` has those of stage two).

Each docstring gives the command, the time on named hardware, and the expected result.

A preset takes the values that only the user knows. Every other field can be overridden on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from codegrid.errors import CodegridError, require
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import AugmentationConfig
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.discriminators import DISCRIMINATORS, PatchGANConfig
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.quantizers import QUANTIZERS


def quickstart_tokenizer(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """Grey 32x32 -> 8x8 codes of 768, no discriminator: what `make quickstart` trains on Fashion-MNIST.

    For grey pictures of up to 32 pixels, of any shape: they stand in the middle of a black square, and larger ones are
    scaled down.

    codegrid train-tokenizer quickstart --data.source IMAGES --output-dir RUN

    88 s on two cores of an AMD EPYC with AVX-512 and bf16; then 26.1 dB on unseen images (README, "Try it").
    """
    return TokenizerTrainingConfig(
        output_dir=output_dir,
        max_steps=2100,
        batch_size=16,
        log_every=50,
        eval_every=1050,
        save_every=500,
        data=DataConfig(source=source),
        preprocessing=Preprocessing(image_size=32, fit="pad"),
        backbone=BackboneConfig(
            in_channels=1,
            resolution=32,
            patch_size=2,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            mid_attention=False,
            z_channels=32,
            norm_groups=8,
            block="fused",
            downsample="wide",
            upsample="linear",
        ),
        quantizer=VectorQuantizerConfig(
            codebook_size=768, code_dim=3, l2_normalize=False, commitment_weight=1.0, isotropy_weight=0.003
        ),
        objective=ObjectiveConfig(l1_weight=0.0, l2_weight=1.0, perceptual_weight=0.0, adversarial_weight=0.0),
        optimizer=OptimizerConfig(
            type="muon", learning_rate=5e-3, base_batch_size=16, warmup_steps=20, weight_decay=0.01
        ),
    )


def small64_tokenizer(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """Colour 64x64 -> 8x8 codes of 1024, no discriminator, for small pictures on a CPU.

    For colour pictures of about 64 pixels, of which a square is cut. Smaller ones are scaled up to 64;
    `--preprocessing.smaller skip` leaves them out.

    codegrid train-tokenizer small64 --data.source IMAGES --output-dir RUN

    322 s on two cores of an AMD EPYC; on emoji64's validation split then 23.13 dB, SSIM .802, all codes in use
    (docs/benchmarks.md).
    """
    return TokenizerTrainingConfig(
        output_dir=output_dir,
        max_steps=3200,
        batch_size=16,
        eval_every=1000,
        save_every=500,
        data=DataConfig(source=source),
        preprocessing=Preprocessing(image_size=64, smaller="upscale"),
        backbone=BackboneConfig(
            resolution=64,
            patch_size=4,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            mid_attention=False,
            z_channels=64,
            norm_groups=8,
        ),
        quantizer=VectorQuantizerConfig(
            codebook_size=1024, code_dim=4, l2_normalize=False, commitment_weight=1.0, isotropy_weight=0.003
        ),
        objective=ObjectiveConfig(l1_weight=0.0, l2_weight=1.0, perceptual_weight=0.0, adversarial_weight=0.0),
        optimizer=OptimizerConfig(
            type="muon", learning_rate=5e-3, base_batch_size=16, warmup_steps=50, weight_decay=0.01
        ),
    )


def medium64_tokenizer(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """Colour 64x64 -> 8x8 codes of 1024: small64 with wider fused blocks, codes of eight channels, DSSIM, more steps.

    For colour pictures of about 64 pixels, of which a square is cut. Smaller ones are scaled up to 64;
    `--preprocessing.smaller skip` leaves them out.

    codegrid train-tokenizer medium64 --data.source IMAGES --output-dir RUN

    About 700 s of one core of an Intel Xeon with AVX-512 and bf16 (Emerald Rapids); on emoji64's validation split then
    24.81 dB, SSIM .879, all codes in use (docs/benchmarks.md). With a feature distance in the last quarter
    (docs/gallery.md) pictures and samples keep more of what makes them recognisable.
    """
    config = small64_tokenizer(source, output_dir)
    return replace(
        config,
        max_steps=7_000,
        eval_every=3_500,
        save_every=1_000,
        backbone=replace(config.backbone, ch=64, block="fused", downsample="wide", upsample="linear"),
        quantizer=replace(config.quantizer, code_dim=8, isotropy_weight=0.0),
        objective=replace(config.objective, dssim_weight=0.2),
        optimizer=replace(config.optimizer, muon_precision="auto"),
    )


def vqgan_f16_256(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """LlamaGen's VQ-16: colour 256x256 -> 16x16 codes of 16384 (width 8, on the sphere), LPIPS and PatchGAN.

    For colour pictures of 256 pixels and more, of which a square is cut. Smaller ones are scaled up to 256;
    `--preprocessing.smaller skip` leaves them out.

    accelerate launch -m codegrid train-tokenizer vqgan-f16-256 --data.source IMAGES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones (https://arxiv.org/abs/2406.06525); this project
    has not trained it: it needs days on several GPUs.
    """
    return TokenizerTrainingConfig(
        output_dir=output_dir,
        max_steps=400_000,
        batch_size=128,
        num_workers=8,
        ema_decay=0.9999,
        log_every=100,
        eval_every=5_000,
        save_every=5_000,
        data=DataConfig(source=source),
        preprocessing=Preprocessing(image_size=256, smaller="upscale"),
        augmentation=AugmentationConfig(flip=True, random_crop=True),
        backbone=BackboneConfig(),
        quantizer=VectorQuantizerConfig(codebook_size=16_384, code_dim=8),
        objective=ObjectiveConfig(
            adversarial_start=20_000, adversarial_warmup=1_000, discriminator=PatchGANConfig(n_layers=3)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, base_batch_size=128, beta2=0.95, weight_decay=0.05),
        discriminator_optimizer=OptimizerConfig(learning_rate=1e-4, base_batch_size=128, beta2=0.95, weight_decay=0.05),
    )


def vqvae_128(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """A plain VQ-VAE: colour 128x128 -> 16x16 codes of 4096, L1 and L2 alone; no discriminator, no perceptual net.

    For colour pictures of 128 pixels and more, of which a square is cut. Smaller ones are scaled up to 128;
    `--preprocessing.smaller skip` leaves them out.

    accelerate launch -m codegrid train-tokenizer vqvae-128 --data.source IMAGES --output-dir RUN

    This project has not trained it: it wants one GPU. Any preset becomes a plain VQ-VAE with
    `--objective.perceptual-weight 0 --objective.adversarial-weight 0`.
    """
    return TokenizerTrainingConfig(
        output_dir=output_dir,
        max_steps=100_000,
        batch_size=64,
        num_workers=8,
        ema_decay=0.999,
        log_every=100,
        eval_every=5_000,
        save_every=5_000,
        data=DataConfig(source=source),
        preprocessing=Preprocessing(image_size=128, smaller="upscale"),
        backbone=_backbone_128(),
        quantizer=VectorQuantizerConfig(codebook_size=4096, code_dim=8),
        objective=ObjectiveConfig(l1_weight=0.2, l2_weight=1.0, perceptual_weight=0.0, adversarial_weight=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-4, base_batch_size=64, warmup_steps=1_000, weight_decay=0.01),
    )


def vqgan_128(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """Colour 128x128 -> 16x16 codes of 4096 (width 8, on the sphere), LPIPS and PatchGAN.

    For colour pictures of 128 pixels and more, of which a square is cut. Smaller ones are scaled up to 128;
    `--preprocessing.smaller skip` leaves them out.

    accelerate launch -m codegrid train-tokenizer vqgan-128 --data.source IMAGES --output-dir RUN

    This project has not trained it: it wants one GPU.
    """
    config = vqvae_128(source, output_dir)
    return replace(
        config,
        max_steps=200_000,
        objective=ObjectiveConfig(
            adversarial_start=20_000, adversarial_warmup=1_000, discriminator=PatchGANConfig(n_layers=3)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, base_batch_size=64, beta2=0.95, weight_decay=0.05),
        discriminator_optimizer=OptimizerConfig(learning_rate=1e-4, base_batch_size=64, beta2=0.95, weight_decay=0.05),
    )


def _backbone_128() -> BackboneConfig:
    """Three levels on patches of 2x2: f8 without residual blocks at full resolution."""
    return BackboneConfig(resolution=128, patch_size=2, ch=96, ch_mult=(1, 2, 4), attn_resolutions=(), z_channels=256)


def taming_f16_256(source: str, output_dir: str) -> TokenizerTrainingConfig:
    """taming-transformers' shape: colour 256x256 -> 16x16 codes of 16384 (width 256, plain distances).

    For colour pictures of 256 pixels and more, of which a square is cut. Smaller ones are scaled up to 256;
    `--preprocessing.smaller skip` leaves them out.

    accelerate launch -m codegrid train-tokenizer taming-f16-256 --data.source IMAGES --output-dir RUN

    Layers, losses and learning rate are those of its imagenet_vqgan.yaml (https://arxiv.org/abs/2012.09841): 4.5e-6 an
    image, so 5.4e-5 at its batch of 12, by its linear rule; the codebook is its larger one. Kept from this project:
    AdamW with clipping, group norm in the discriminator, and revival of dead codes. It needs days on several GPUs and
    was not trained here.
    """
    optimizer = OptimizerConfig(
        learning_rate=5.4e-5, min_learning_rate=5.4e-5, base_batch_size=12, batch_scaling="linear", beta1=0.5, beta2=0.9
    )
    return TokenizerTrainingConfig(
        output_dir=output_dir,
        max_steps=1_000_000,
        batch_size=12,
        num_workers=8,
        log_every=100,
        eval_every=10_000,
        save_every=5_000,
        data=DataConfig(source=source),
        preprocessing=Preprocessing(image_size=256, smaller="upscale"),
        backbone=BackboneConfig(),
        quantizer=VectorQuantizerConfig(codebook_size=16_384, code_dim=256, l2_normalize=False),
        objective=ObjectiveConfig(adversarial_weight=0.8, adversarial_start=250_001, adversarial_warmup=0),
        optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )


# Parts of a config whose `type` selects the class: path of the field -> registry.
# (An outer part is chosen before its inner one.)
CHOICES: dict[str, dict[str, type]] = {
    "quantizer": QUANTIZERS,
    "quantizer.inner": QUANTIZERS,
    "objective.discriminator": DISCRIMINATORS,
}


def with_choice(config: TokenizerTrainingConfig, path: str, name: str) -> TokenizerTrainingConfig:
    """The config with the registry's member `name` at `path`; with its defaults if the config has another member.

    Args:
        path: one of `CHOICES`.

    Raises:
        CodegridError: the registry has no such name, or the config has no such part.
    """
    known = CHOICES[path]
    names = ", ".join(map(repr, known))
    require(name in known, f"{path}.type is {name!r}.", f"It must be one of {names}.")
    parents = [config]
    *outer, last = path.split(".")
    for field in outer:
        parents.append(getattr(parents[-1], field))
    if not hasattr(parents[-1], last):
        raise CodegridError(
            f"{path}.type is {name!r}, but a {'.'.join(outer)} of type {parents[-1].type!r} has no {last}.",
            f"Leave {path}.type out, or choose another {'.'.join(outer)}.type.",
        )
    if getattr(parents[-1], last).type == name:
        return config
    value = known[name]()
    for parent, field in zip(reversed(parents), (last, *reversed(outer)), strict=True):
        value = replace(parent, **{field: value})
    return value


def with_start(config: TokenizerTrainingConfig, tokenizer: str) -> TokenizerTrainingConfig:
    """The config of a run that starts from a saved tokenizer, with its backbone, quantizer and preprocessing.

    Raises:
        LoadingError: there is no tokenizer of that name.
    """
    shape = load_tokenizer(tokenizer).config
    return replace(
        config,
        init_from=tokenizer,
        class_conditional=config.class_conditional or bool(shape.num_classes),
        backbone=shape.backbone_config,
        quantizer=shape.quantizer_config,
        preprocessing=shape.preprocessing_config,
    )


TOKENIZER_PRESETS: dict[str, Callable[[str, str], TokenizerTrainingConfig]] = {
    "quickstart": quickstart_tokenizer,
    "small64": small64_tokenizer,
    "medium64": medium64_tokenizer,
    "vqvae-128": vqvae_128,
    "vqgan-128": vqgan_128,
    "vqgan-f16-256": vqgan_f16_256,
    "taming-f16-256": taming_f16_256,
}
