"""Named configs of stage two. Each docstring gives the command and, if measured, the time on named hardware.

A preset takes the values that only the user knows. Every other field can be overridden on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.prior import PriorConfig


def quickstart_prior(codes: str, output_dir: str) -> PriorTrainingConfig:
    """A small Llama for the quickstart's 64 codes an image.

    codegrid train-prior quickstart --codes CODES --output-dir RUN

    106 s on two cores of an AMD EPYC with AVX-512 and bf16; then 4.1 to 4.6 bits a code held out on the quickstart's
    codes (three seeds, docs/figures.md).
    """
    return PriorTrainingConfig(
        output_dir=output_dir,
        codes=codes,
        max_steps=1500,
        batch_size=16,
        log_every=50,
        eval_every=750,
        save_every=750,
        model=PriorConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=3),
        optimizer=OptimizerConfig(
            type="muon", learning_rate=3e-3, base_batch_size=16, warmup_steps=60, weight_decay=0.1
        ),
    )


def small64_prior(codes: str, output_dir: str) -> PriorTrainingConfig:
    """2M parameters for the 64 codes an image of the tokenizer preset small64; minutes on a CPU.

    codegrid train-prior small64 --codes CODES --output-dir RUN

    177 s on two cores of an AMD EPYC; then 5.38 bits a code held out on emoji64's codes (docs/benchmarks.md).
    """
    return PriorTrainingConfig(
        output_dir=output_dir,
        codes=codes,
        max_steps=900,
        batch_size=16,
        log_every=50,
        eval_every=900,
        save_every=450,
        model=PriorConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=3),
        optimizer=OptimizerConfig(
            type="muon", learning_rate=3e-3, base_batch_size=16, warmup_steps=60, weight_decay=0.1
        ),
    )


def medium64_prior(codes: str, output_dir: str) -> PriorTrainingConfig:
    """small64's prior with norms of queries and keys and more steps, for the codes of the tokenizer preset medium64.

    codegrid train-prior medium64 --codes CODES --output-dir RUN

    About 320 s of one core of an Intel Xeon with AVX-512 and bf16; then 5.83 bits a code held out on emoji64's codes,
    with `--class-balance 0.5`, which is worth a try where classes have unequal sizes (docs/training.md).
    """
    config = small64_prior(codes, output_dir)
    return replace(
        config,
        max_steps=3000,
        eval_every=1500,
        save_every=500,
        model=replace(config.model, qk_norm=True),
        optimizer=replace(config.optimizer, muon_precision="auto"),
    )


def prior_111m(codes: str, output_dir: str) -> PriorTrainingConfig:
    """LlamaGen's B: 12 layers x 768, 111M parameters.

    accelerate launch -m codegrid train-prior llama-111m --codes CODES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones; this project has not trained it: it needs GPUs.
    """
    model = PriorConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048)
    return _llamagen(codes, output_dir, model)


def prior_343m(codes: str, output_dir: str) -> PriorTrainingConfig:
    """LlamaGen's L: 24 layers x 1024, 343M parameters.

    accelerate launch -m codegrid train-prior llama-343m --codes CODES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones; this project has not trained it: it needs GPUs.
    """
    model = PriorConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=2816)
    return _llamagen(codes, output_dir, model)


def prior_775m(codes: str, output_dir: str) -> PriorTrainingConfig:
    """LlamaGen's XL: 36 layers x 1280, 775M parameters.

    accelerate launch -m codegrid train-prior llama-775m --codes CODES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones; this project has not trained it: it needs GPUs.
    """
    model = PriorConfig(hidden_size=1280, num_hidden_layers=36, num_attention_heads=20, intermediate_size=3584)
    return _llamagen(codes, output_dir, model)


def prior_1_4b(codes: str, output_dir: str) -> PriorTrainingConfig:
    """LlamaGen's XXL: 48 layers x 1536, 1.4B parameters.

    accelerate launch -m codegrid train-prior llama-1.4b --codes CODES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones; this project has not trained it: it needs GPUs.
    """
    model = PriorConfig(hidden_size=1536, num_hidden_layers=48, num_attention_heads=24, intermediate_size=4096)
    return _llamagen(codes, output_dir, model, gradient_checkpointing=True)


def prior_3b(codes: str, output_dir: str) -> PriorTrainingConfig:
    """LlamaGen's 3B: 24 layers x 3200, 3.1B parameters.

    accelerate launch -m codegrid train-prior llama-3b --codes CODES --output-dir RUN

    The shape, batch and learning rate are LlamaGen's published ones; this project has not trained it: it needs GPUs.
    """
    model = PriorConfig(hidden_size=3200, num_hidden_layers=24, num_attention_heads=32, intermediate_size=8704)
    return _llamagen(codes, output_dir, model, gradient_checkpointing=True)


def _llamagen(
    codes: str, output_dir: str, model: PriorConfig, gradient_checkpointing: bool = False
) -> PriorTrainingConfig:
    """Settings shared by LlamaGen's priors (https://arxiv.org/abs/2406.06525)."""
    return PriorTrainingConfig(
        output_dir=output_dir,
        codes=codes,
        max_steps=300_000,
        batch_size=256,
        log_every=100,
        eval_every=5_000,
        save_every=5_000,
        validation_fraction=0.01,
        ema_decay=0.9999,
        gradient_checkpointing=gradient_checkpointing,
        model=model,
        optimizer=OptimizerConfig(learning_rate=1e-4, base_batch_size=256, beta2=0.95, weight_decay=0.05),
    )


PRIOR_PRESETS: dict[str, Callable[[str, str], PriorTrainingConfig]] = {
    "quickstart": quickstart_prior,
    "small64": small64_prior,
    "medium64": medium64_prior,
    "llama-111m": prior_111m,
    "llama-343m": prior_343m,
    "llama-775m": prior_775m,
    "llama-1.4b": prior_1_4b,
    "llama-3b": prior_3b,
}
