"""Image tokenizers (`codegrid.tokenizer`), priors over their codes (`codegrid.prior`), and what puts them to use."""

__version__ = "0.2.0"
