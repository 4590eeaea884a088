"""Image tokenizers (`codegrid.tokenizer`), priors on their codes (`codegrid.prior`), and `codegrid.pipelines`."""

__version__ = "0.2.0"
