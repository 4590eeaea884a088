"""The config of a tokenizer, saved in its `config.json`. It is checked when it is made and when it is read."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from codegrid.errors import require
from codegrid.tokenizer.fields import from_dict, younger
from codegrid.tokenizer.images import Preprocessing
from codegrid.tokenizer.quantizers import QuantizerConfig, VectorQuantizerConfig, quantizer_config_from_dict

# Bounds far beyond any use. A config.json may come from anybody: sizes that need endless work or memory are refused
# before a module is made from them.
_MOST_CHANNELS, _MOST_LEVELS, _MOST_BLOCKS, _MOST_CLASSES = 65_536, 64, 1_024, 1_000_000
_MOST_CODES, _MOST_CODES_A_POSITION = 2**31, 1_024
_MOST = {
    **dict.fromkeys(("ch", "z_channels", "norm_groups", "resolution"), _MOST_CHANNELS),
    **dict.fromkeys(("num_res_blocks", "mid_res_blocks"), _MOST_BLOCKS),
    **{"in_channels": 256, "patch_size": 256},
}


@dataclass(frozen=True)
class BackboneConfig:
    """The convolutional encoder and its mirror, the decoder (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

    The names are those of taming-transformers' `ddconfig`. With `patch_size=1` the network is taming's, key by key.

    Args:
        in_channels: channels of the images: 1 for grey, 3 for colour, 4 for colour and alpha; any number for arrays in
            .npy files and samples or pages of .tif files (docs/pictures.md).
        resolution: side in pixels from which `attn_resolutions` are counted. It is no limit: other sizes work too, and
            pictures that are not square have attention at the same depths (give their height here to count in rows).
        ch: channels at the first level.
        ch_mult: multiplier of `ch` for each level; every level after the first halves the side.
        num_res_blocks: residual blocks per level (the decoder has one more, as in taming).
        attn_resolutions: sides in pixels at which a self-attention block follows every residual block.
        mid_attention: self-attention between the two residual blocks at the bottleneck.
        z_channels: channels between the backbone and the quantizer's 1x1 convolutions.
        patch_size: side of the patches into which the image is folded before the first convolution; the last one's
            output is unfolded. Above 1 there are no residual blocks at full resolution, most of the cost on a CPU.
        norm_groups: groups of every group norm.
        dropout: dropout in the residual blocks, in training.
        decoder_res_blocks: residual blocks per level of the decoder; None for one more than the encoder has.
        mid_res_blocks: residual blocks at the bottleneck; `mid_attention` follows the first. 0 only without it.
        downsample: how the side is halved: by a stride-2 convolution padded on the right and below ("asymmetric", as in
            taming) or on all sides ("symmetric", as in Open-MAGVIT2), by the mean of 2x2 pixels ("average", as in
            MaskGIT), or by a 4x4 convolution that gives the next level's width at once ("wide").
        upsample: how the side is doubled: by nearest neighbour and a convolution ("nearest"), by a convolution to four
            times the channels, laid out as 2x2 pixels ("depth_to_space"), or by a 1x1 convolution that gives the next
            level's width at once, laid out likewise ("linear").
        shortcut: the input of the 1x1 shortcut in a block that changes the width: the block's "input", or the block's
            "output", to which the shortcut is then added (as in MaskGIT's PyTorch port; arXiv:2202.04200).
        adaptive_norm: put a group norm before each level of the decoder, whose scale and shift are linear in the
            standard deviation and mean of the decoder's input over its positions (https://arxiv.org/abs/2409.04410).
        encoder_out_kernel: side of the encoder's last convolution, 3 or 1.
        quant_conv: use 1x1 convolutions between backbone and quantizer. Without them z_channels is the code_dim.
        pixel_range: the network's own values of black and white. The model's images are in [-1, 1] in any case.
        block: what a residual block is: two norms, swishes and 3x3 convolutions ("residual", as in taming), or a norm,
            a 3x3 convolution to twice the width, a swish and a 1x1 convolution ("fused", as in EfficientNetV2).
    """

    in_channels: int = 3
    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    mid_attention: bool = True
    z_channels: int = 256
    patch_size: int = 1
    norm_groups: int = 32
    dropout: float = 0.0
    decoder_res_blocks: int | None = younger(None)
    mid_res_blocks: int = younger(2)
    downsample: Literal["asymmetric", "symmetric", "average", "wide"] = younger("asymmetric")
    upsample: Literal["nearest", "depth_to_space", "linear"] = younger("nearest")
    shortcut: Literal["input", "output"] = younger("input")
    adaptive_norm: bool = younger(False)
    encoder_out_kernel: Literal[1, 3] = younger(3)
    quant_conv: bool = younger(True)
    pixel_range: tuple[float, float] = younger((-1.0, 1.0))
    block: Literal["residual", "fused"] = younger("residual")

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions", "pixel_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, most in _MOST.items():
            value = getattr(self, name)
            least = 0 if name == "mid_res_blocks" else 1
            require(value >= least, f"backbone.{name} is {value}.", f"Give at least {least}.")
            require(value <= most, f"backbone.{name} is {value}.", f"Give at most {most}.")
        require(
            len(self.ch_mult) >= 1 and min(self.ch_mult) >= 1,
            f"backbone.ch_mult is {self.ch_mult}.",
            "Give one multiplier of at least 1 for each level.",
        )
        for name in ("ch_mult", "attn_resolutions"):
            number = len(getattr(self, name))
            require(number <= _MOST_LEVELS, f"backbone.{name} has {number} entries.", f"Give at most {_MOST_LEVELS}.")
        width = self.ch * max(self.ch_mult)
        require(
            width <= _MOST_CHANNELS,
            f"backbone.ch * {max(self.ch_mult)} = {width} channels are too many.",
            f"Lower ch or ch_mult: at most {_MOST_CHANNELS} are allowed.",
        )
        require(0 <= self.dropout < 1, f"backbone.dropout is {self.dropout}.", "Give a number from 0 to below 1.")
        blocks = self.decoder_res_blocks
        require(blocks is None or blocks >= 1, f"backbone.decoder_res_blocks is {blocks}.", "Give at least 1.")
        of_a_level = self.num_res_blocks + (self.num_res_blocks + 1 if blocks is None else blocks)
        of_all = len(self.ch_mult) * of_a_level + 2 * self.mid_res_blocks
        require(
            of_all <= _MOST_BLOCKS,
            f"backbone has {of_all} residual blocks (num_res_blocks, decoder_res_blocks, mid_res_blocks).",
            f"Give at most {_MOST_BLOCKS}.",
        )
        require(
            self.mid_res_blocks > 0 or not self.mid_attention,
            "backbone.mid_res_blocks is 0, and backbone.mid_attention follows the first of these blocks.",
            "Turn mid_attention off, or give at least 1.",
        )
        black_white = self.pixel_range
        require(
            len(black_white) == 2 and black_white[0] < black_white[1],
            f"backbone.pixel_range is {black_white}.",
            "Give two numbers, black below white.",
        )
        for multiplier in self.ch_mult:
            require(
                self.ch * multiplier % self.norm_groups == 0,
                f"backbone.ch * {multiplier} = {self.ch * multiplier} channels cannot be split into norm_groups = "
                f"{self.norm_groups}.",
                "Change ch, ch_mult or norm_groups.",
            )

    @property
    def downsampling(self) -> int:
        """Pixels per code along one side: patch_size * 2^(levels - 1)."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)


# Keys that transformers itself passes besides the fields.
_HUB_KEYS = {"model_type", "torch_dtype", "name_or_path", "_commit_hash", "attn_implementation", "output_attentions"}
_HUB_KEYS |= {"experts_implementation", "num_labels", "_attn_implementation_internal", "use_cache"}
_HUB_KEYS |= {"_experts_implementation_internal", "per_layer_config", "problem_type"}


@strict(accept_kwargs=True)
class VQModelConfig(PreTrainedConfig):
    """Config of `VQModel`: `backbone`, `quantizer` and `preprocessing`, each a dictionary of its dataclass's fields.

    Dataclasses are accepted too and stored as dictionaries, so that `config.json` is plain JSON. `provenance` names the
    file and the family of an imported tokenizer; nothing depends on it.

    A model that is cast to another dtype writes `cast_from`: the `fingerprint` of the weights before the cast, and the
    `digest` of the weights after it. It applies only to weights with this digest. One whose decoder alone was trained
    on writes `codes_from`: the `fingerprint` of the tokenizer that gives the same codes, and the `digest` of encoder
    and quantizer (`VQModel.codes_fingerprint`).

    `num_classes` above 0 makes the decoder class-conditional. `id2label` then names the classes; the default names are
    "0", "1", ...

    Raises:
        CodegridError: a field is unknown, of the wrong type or out of its range. The message names it.
    """

    # A slot, because everything in `__dict__` is compared and written to config.json.
    __slots__ = ("_kept",)

    model_type = "codegrid_vqmodel"

    backbone: Any = None
    quantizer: Any = None
    preprocessing: Any = None
    num_classes: int = 0
    provenance: dict[str, Any] | None = None
    cast_from: dict[str, str] | None = None
    codes_from: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - _HUB_KEYS)
        require(
            not unknown,
            f"Unknown keys in the tokenizer's config: {', '.join(unknown)}.",
            "Leave them out, or load it with the version of codegrid that wrote it (see VQModelConfig).",
        )
        _check_classes(self.num_classes, kwargs.get("num_labels"))
        self.backbone = _as_dict(self.backbone, BackboneConfig())
        self.quantizer = _as_dict(self.quantizer, VectorQuantizerConfig())
        self.preprocessing = _as_dict(
            self.preprocessing, Preprocessing(image_size=self.backbone.get("resolution", BackboneConfig.resolution))
        )
        # Read them now, so that unknown keys and wrong values fail here and not at the first image.
        self.backbone = _plain(asdict(self.backbone_config))
        self.quantizer = _plain(asdict(self.quantizer_config))
        self.preprocessing = _plain(asdict(self.preprocessing_config))
        _check_sizes(self.quantizer_config)
        (height, width), factor = self.preprocessing_config.size, self.pixels_per_position
        require(
            height % factor == 0 and width % factor == 0,
            f"preprocessing.image_size {self.preprocessing_config.image_size} is no multiple of the downsampling "
            f"factor {factor}.",
            f"Give a multiple of {factor}.",
        )
        for name in ("cast_from", "codes_from"):
            kept = getattr(self, name)
            require(
                kept is None or (isinstance(kept, dict) and set(kept) == {"fingerprint", "digest"}),
                f"{name} is {kept!r}.",
                "Give a dictionary of fingerprint and digest, or save the tokenizer again.",
            )
        if self.num_classes and self.id2label is None:
            self.id2label = {label: str(label) for label in range(self.num_classes)}
        dim, channels = self.quantizer_config.code_dim, self.backbone_config.z_channels
        require(
            self.backbone_config.quant_conv or dim == channels,
            f"backbone.z_channels is {channels} and the quantizer's code_dim {dim}: without backbone.quant_conv it "
            "reads the backbone's features.",
            "Give both the same number, or set backbone.quant_conv.",
        )
        super().__post_init__(**kwargs)
        if self.num_classes:
            names = self.class_names
            require(
                len(set(names)) == len(self.id2label) == self.num_classes,
                f"id2label is {str(self.id2label)[:200]}.",
                f"Name each of num_classes = {self.num_classes} otherwise.",
            )
            self.label2id = {name: label for label, name in enumerate(names)}

    def to_diff_dict(self) -> dict[str, Any]:
        values = super().to_diff_dict()
        if not self.num_classes:
            values.pop("num_classes", None)  # an unconditional tokenizer's config.json does not mention classes
        for name in ("cast_from", "codes_from"):
            if getattr(self, name) is None:
                values.pop(name, None)
        return values

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the decoder's classes in the order of the labels; None if it is unconditional."""
        if not self.num_classes or self.id2label is None:
            return None
        return tuple(self.id2label[label] for label in range(self.num_classes) if label in self.id2label)

    @property
    def backbone_config(self) -> BackboneConfig:
        return self._read_once("backbone", lambda values: from_dict(BackboneConfig, values, where="backbone"))

    @property
    def quantizer_config(self) -> QuantizerConfig:
        return self._read_once("quantizer", quantizer_config_from_dict)

    @property
    def preprocessing_config(self) -> Preprocessing:
        return self._read_once("preprocessing", lambda values: from_dict(Preprocessing, values, where="preprocessing"))

    def _read_once(self, name: str, read: Callable[[dict[str, Any]], Any]) -> Any:
        """The dataclass of a dictionary, cached until the dictionary changes.

        A forward pass needs it several times, and reading takes longer than launching the pass's kernels.
        """
        if not hasattr(self, "_kept"):
            self._kept = {}
        values = getattr(self, name)
        if name not in self._kept or self._kept[name][0] != values:
            found = read(values)
            self._kept[name] = (deepcopy(values), found)  # a copy, so that a change within the dictionary is seen
        return self._kept[name][1]

    @property
    def pixels_per_position(self) -> int:
        """Pixels per position of the code grid along one side."""
        return self.backbone_config.downsampling * self.quantizer_config.stride

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the code grid for an image of `preprocessing.image_size`."""
        height, width = self.preprocessing_config.size
        return height // self.pixels_per_position, width // self.pixels_per_position

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """Shape of such an image's codes: `grid_shape`, and the quantizer's depth if it is above 1."""
        depth = self.quantizer_config.depth
        return self.grid_shape if depth == 1 else (*self.grid_shape, depth)


def _check_classes(num_classes: int, num_labels: Any) -> None:
    require(num_classes >= 0, f"num_classes is {num_classes}.", "Give 0 or more.")
    for name, value in {"num_classes": num_classes, "num_labels": num_labels}.items():
        if isinstance(value, int):  # transformers makes a dictionary of this length
            require(value <= _MOST_CLASSES, f"{name} is {value}.", f"Give at most {_MOST_CLASSES}.")


def _check_sizes(quantizer: QuantizerConfig) -> None:
    """Check the sizes of any quantizer, also of one from another package."""
    bounds = {"codebook_size": _MOST_CODES, "code_dim": _MOST_CHANNELS, "depth": _MOST_CODES_A_POSITION}
    for name, most in bounds.items():
        value = getattr(quantizer, name)
        require(1 <= value <= most, f"The quantizer's {name} is {value}.", f"Give settings that make it 1 to {most}.")


def _as_dict(value: Any, default: Any) -> dict[str, Any]:
    if value is None:
        value = default
    return dict(value) if isinstance(value, dict) else asdict(value)


def _plain(value: Any) -> Any:
    """Turn tuples into lists, so that a config made in Python equals the one read back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
