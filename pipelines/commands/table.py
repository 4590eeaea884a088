"""All commands: name, a line of help, and the place of the function. Nothing is loaded until a command is named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def load(target: str) -> Any:
    """The object `module:name`; the module is inside `codegrid.pipelines`."""
    module, name = target.split(":")
    return getattr(importlib.import_module(f"codegrid.pipelines.{module}"), name)


@dataclass(frozen=True)
class Function:
    """A function whose arguments are the options.

    Args:
        run: the function, as `module:name`.
    """

    run: str


@dataclass(frozen=True)
class Config:
    """A dataclass whose fields are the options, and the function that takes it.

    Args:
        config: the dataclass.
        run: the function.
    """

    config: str
    run: str


@dataclass(frozen=True)
class Preset:
    """A word that chooses a config, whose fields the options override, and the function that takes it.

    Args:
        presets: a dictionary of functions that take two values that only the user knows, and return a config.
        run: the function.
    """

    presets: str
    run: str


@dataclass(frozen=True)
class Functions:
    """A word that chooses a function, whose arguments are the options.

    It may also be a dataclass: its fields are the options, and its method `run` is called.

    Args:
        runs: the functions by word, or the place of a dictionary of them.
    """

    runs: Mapping[str, str] | str

    def loaded(self) -> dict[str, Callable[..., Any]]:
        """The functions by word."""
        return load(self.runs) if isinstance(self.runs, str) else {word: load(run) for word, run in self.runs.items()}


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        summary: a line for `codegrid --help`.
        parsed: how to parse the command line, and what to call.
        first: the option that takes a first word without dashes as its value.
    """

    summary: str
    parsed: Function | Config | Preset | Functions
    first: str | None = None


DEVELOPERS = "dev"  # the word before names of developers' tools

# The names are those of scripts/, with dashes. A new command is a line here and a script of two lines.
COMMANDS: dict[str, Command] = {
    "quickstart": Command("do the whole job on the embedded Fashion-MNIST images", Function("quickstart:quickstart")),
    "look": Command(
        "say what is read of pictures, and what the tokenizer presets would make of them",
        Config("training.look:LookConfig", "training.look:look"),
        first="--data.source",
    ),
    "train-tokenizer": Command(
        "train a tokenizer (stage one); the same command again resumes",
        Preset("training.tokenizer.presets:TOKENIZER_PRESETS", "training.tokenizer.train:train_tokenizer"),
    ),
    "reconstruct": Command(
        "reconstruct images with a tokenizer, beside their originals, with scores",
        Function("evaluation.reconstruct:reconstruct"),
    ),
    "tokenize-dataset": Command(
        "encode images into a code data set; the same command again goes on",
        Config("codes.tokenize:TokenizationConfig", "codes.tokenize:tokenize_dataset"),
    ),
    "import-codes": Command(
        "make a code data set of integer sequences that another program made",
        Config("codes.bring:ImportCodesConfig", "codes.bring:import_codes"),
        first="--source",
    ),
    "verify-codes": Command(
        "check a code data set against its manifest and its tokenizer",
        Config("codes.verify:VerificationConfig", "codes.verify:verify_codes"),
    ),
    "train-prior": Command(
        "train a prior on a code data set (stage two); the same command again resumes",
        Preset("training.prior.presets:PRIOR_PRESETS", "training.prior.train:train_prior"),
    ),
    "make-pipeline": Command(
        "put a tokenizer and a prior together into a pipeline's folder", Function("generation.make:make_pipeline")
    ),
    "generate": Command(
        "sample images from a pipeline into a folder", Function("generation.to_folder:generate_images")
    ),
    "edit": Command(
        "draw a part of a picture again by a prior of any order, with a mask or without",
        Function("generation.edit_files:edit_images"),
    ),
    "evaluate": Command(
        "score a tokenizer's reconstructions, or a pipeline's samples and edits against real images",
        Functions(
            {
                "reconstruction": "evaluation.tokenizer:evaluate_tokenizer",
                "generation": "evaluation.generation:evaluate_generation",
                "inpainting": "evaluation.inpainting:evaluate_inpainting",
                "prior": "evaluation.prior:evaluate_prior",
                "conditional": "evaluation.conditional:evaluate_conditional",
                "classification": "evaluation.classification:evaluate_classification",
                "augmentation": "comparison.augmentation:evaluate_augmentation",
                "compression": "compression.evaluation:evaluate_compression",
            }
        ),
    ),
    "compress": Command(
        "compress pictures to files of a few dozen bytes with a pipeline", Function("compression.to_files:compress")
    ),
    "decompress": Command("write the pictures of compressed files", Function("compression.from_files:decompress")),
    "codec-info": Command(
        "say what a compressed file holds", Function("compression.from_files:codec_info"), first="--file"
    ),
    "report": Command("show a run as one HTML page that needs no network", Function("report.report:report")),
    "demo": Command(
        "serve a page to sample from a pipeline, and to look at codes and change them", Function("demo.page:run_demo")
    ),
    "push-to-hub": Command(
        "upload a tokenizer, prior, pipeline or code data set to the Hub", Function("publishing.push:push_to_hub")
    ),
    "import-checkpoint": Command(
        "import a tokenizer that another project trained", Function("importing.checkpoints:import_checkpoint")
    ),
    "export-diffusers": Command(
        "export a tokenizer as diffusers' VQModel", Function("importing.checkpoints:export_diffusers")
    ),
    "export-onnx": Command(
        "export a tokenizer as two ONNX files, for programs without torch",
        Function("importing.onnx_files:export_onnx"),
    ),
    f"{DEVELOPERS} compare-quantizers": Command(
        "train one small tokenizer per quantizer, all alike, and write a table and a sheet",
        Function("comparison:compare_quantizers"),
    ),
    f"{DEVELOPERS} search-recipe": Command(
        "search a preset's fields at equal seconds or steps, and write a table and a chart",
        Function("comparison.search:search_recipe"),
    ),
    f"{DEVELOPERS} write-comparison": Command(
        "put the table of a comparison of quantizers into a page of the docs", Function("comparison.report:write_page")
    ),
    f"{DEVELOPERS} ship-pipeline": Command(
        "make the pipeline that comes with the package out of a quickstart's", Function("generation.ship:ship_pipeline")
    ),
    f"{DEVELOPERS} import-parity": Command(
        "compare an imported tokenizer with its project's own code", Function("importing.parity:import_parity")
    ),
    f"{DEVELOPERS} benchmark": Command(
        "time a part of the project beside another way of computing the same", Functions("benchmarks:BENCHMARKS")
    ),
}
