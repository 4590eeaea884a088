"""VQModel: images <-> grids of codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from codegrid.downloads import HUB_OPTIONS, place_in, read_json, snapshot
from codegrid.errors import CodegridError, require
from codegrid.tokenizer.backbone import Decoder, Encoder
from codegrid.tokenizer.configuration import VQModelConfig
from codegrid.tokenizer.fields import established
from codegrid.tokenizer.hub.card import PLACEHOLDER, model_card
from codegrid.tokenizer.hub.push import WEIGHT_FILES, check_login, in_subfolder, push_files
from codegrid.tokenizer.hub.weight_files import check_weight_files
from codegrid.tokenizer.images.pixels import check_images
from codegrid.tokenizer.importers import (
    TOKENIZER_FAMILIES,
    convert_tokenizer,
    fill,
    locate,
    read_settings,
    takes_averages,
)
from codegrid.tokenizer.importers.containers import Kind
from codegrid.tokenizer.layers import lay_out, not_hidden
from codegrid.tokenizer.moving import to_device
from codegrid.tokenizer.quantizers import Quantizer, make_quantizer
from codegrid.tokenizer.tiling import decode_tiles, encode_tiles

_ENCODING_HALF = ("encoder.", "quant_conv.", "quantize.")  # the weights that codes depend on


def float_dtype(dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None = None) -> torch.dtype | None:
    """`dtype` (or `torch_dtype`, its older name): a float dtype of torch, its name, or None or "auto" for the stored.

    Raises:
        CodegridError: it is none of these, or the two arguments differ.
    """
    require(
        None in (dtype, torch_dtype) or dtype == torch_dtype,
        f"dtype is {dtype} and torch_dtype {torch_dtype}, and they are two names of one thing.",
        "Give dtype.",
    )
    wanted = torch_dtype if dtype is None else dtype
    if wanted is None or wanted == "auto":
        return None
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    known = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    require(known, f"dtype is {wanted}.", "Choose one of float32, bfloat16, float16, float64 and auto.")
    return found


def _folder_of(folder_or_repo: str | Path, kwargs: dict[str, Any]) -> Path:
    """The local folder of a tokenizer; takes out of `kwargs` what says where it lies."""
    subfolder = kwargs.pop("subfolder", None)
    hub = {name: kwargs.pop(name) for name in ("revision", "token", *HUB_OPTIONS) if name in kwargs}
    inside, folder = place_in(subfolder), Path(folder_or_repo)
    if not folder.is_dir():
        folder = snapshot(str(folder_or_repo), "tokenizer", subfolder=subfolder, **hub)
    return folder / inside


@dataclass
class VQModelOutput(ModelOutput):
    """The output of `VQModel.forward`.

    Attributes:
        reconstruction: [B, C, H, W], about [-1, 1], not clamped.
        codes: [B, h, w] int64, or [B, h, w, depth] if the quantizer's depth is above 1.
        features: [B, code_dim, h, w], the quantizer's input.
        losses: the quantizer's own terms by name, weighted.
    """

    reconstruction: Tensor | None = None
    codes: Tensor | None = None
    features: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class VQModel(PreTrainedModel):
    """An image tokenizer (VQGAN, Esser et al. 2021, https://arxiv.org/abs/2012.09841).

    Images are float tensors [B, C, H, W] in [-1, 1], as input and as output; H and W are multiples of the downsampling
    factor. In evaluation, `decode(encode(x))` equals `forward(x).reconstruction`.

    If `config.num_classes` is above 0, the decoder is class-conditional: `forward` and `decode` take labels, int64 [B]
    in [0, num_classes). Codes never depend on labels.
    """

    config_class = VQModelConfig
    main_input_name = "images"
    supports_gradient_checkpointing = True
    base_model_prefix = ""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__(config)
        backbone, quantizer = config.backbone_config, config.quantizer_config
        self.encoder = Encoder(backbone)
        self.decoder = Decoder(backbone, condition_dim=backbone.ch if config.num_classes else 0)
        self.quantize = make_quantizer(quantizer)
        self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()
        if backbone.quant_conv:
            self.quant_conv = not_hidden(nn.Conv2d(backbone.z_channels, quantizer.code_dim, 1))
            self.post_quant_conv = not_hidden(nn.Conv2d(quantizer.code_dim, backbone.z_channels, 1))
        if config.num_classes:  # drawn last, so that a seed gives the same other weights as without classes
            self.class_embedding = nn.Embedding(config.num_classes, backbone.ch)
        self.post_init()
        lay_out(self)

    def _init_weights(self, module: nn.Module) -> None:
        # transformers would draw every weight from N(0, 0.02). Instead, each layer keeps the initialisation of its
        # constructor: torch's own for the backbone, as in taming, and the quantizer's. `from_pretrained` builds without
        # storage and would need this method for weights that a file lacks, but it refuses such a file.
        return

    def forward(self, images: Tensor, labels: Tensor | None = None) -> VQModelOutput:
        """images: [B, C, H, W] in [-1, 1]; labels: see the class.

        Raises:
            CodegridError: images are not floats or have another shape; on a CPU also: NaN, or far outside of [-1, 1].
        """
        condition = self._condition(labels, len(images))
        features = self.quant_conv(self.encoder(self._checked(images)))
        quantized = self.quantize(features)
        return VQModelOutput(
            reconstruction=self._decode_features(quantized.features, condition),
            codes=quantized.codes,
            features=features,
            losses=quantized.losses,
        )

    @torch.no_grad()
    def encode(self, images: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
        """images [B, C, H, W] in [-1, 1] -> codes [B, h, w] or [B, h, w, depth] int64 in [0, codebook_size).

        Args:
            tile: side in pixels of the tiles in which larger images are encoded, for less memory; None: all at once.
                Codes near a tile's edge may differ from those of the whole image.
            overlap: pixels that neighbouring tiles share at least; None: a quarter of the tile, and four codes if half
                of the tile has as many.

        Raises:
            CodegridError: images are not floats or have another shape; on a CPU also: NaN, or far outside of [-1, 1].
                Tile and overlap are no multiples of the downsampling factor.
        """
        if tile is not None:
            return encode_tiles(self.encode, self._checked(images), self.config.pixels_per_position, tile, overlap)
        return self.quantize.encode(self.quant_conv(self.encoder(self._checked(images))))

    def decode(
        self, codes: Tensor, labels: Tensor | None = None, tile: int | None = None, overlap: int | None = None
    ) -> Tensor:
        """codes from `encode` -> images [B, C, H, W], about [-1, 1], not clamped; labels: see the class.

        Args:
            tile, overlap: in pixels, as in `encode`; tiles are blended where they overlap.

        Raises:
            ValueError: a code lies outside the codebook, or `codes` is not a batch of grids of integers; labels are
                missing, not expected, or lie outside the classes.
        """
        size, depth = self.config.quantizer_config.codebook_size, self.config.quantizer_config.depth
        shape, fits = "[B, h, w]", codes.dim() == 3
        if depth > 1:
            shape, fits = f"[B, h, w, {depth}]", codes.dim() == 4 and codes.shape[3] == depth
        if not fits or codes.is_floating_point():
            raise CodegridError(f"codes are {codes.dtype} {list(codes.shape)}.", f"Give integers of shape {shape}.")
        if tile is not None:
            factor = self.config.pixels_per_position
            return decode_tiles(lambda part: self.decode(part, labels), codes, factor, tile, overlap)
        codes, seen = codes.long(), not torch.compiler.is_exporting() and codes.numel()  # programs look at no values
        lowest, highest = torch.stack(codes.aminmax()).tolist() if seen else (0, 0)  # one look at the device
        if lowest < 0 or highest >= size:
            raise CodegridError(
                f"A code lies outside the codebook: they run from {lowest} to {highest}, the codebook from 0 to "
                f"{size - 1}.",
                "The codes come from another tokenizer: decode them with that one.",
            )
        return self._decode_features(self.quantize.codes_to_features(codes), self._condition(labels, codes.shape[0]))

    def fingerprint(self) -> str:
        """sha256 over the weights and the config: equal fingerprints mean equal codes and equal reconstructions.

        It excludes the preprocessing (the code data set records that itself) and training counters. A cast model
        (`to(torch.bfloat16)`, `dtype=`) keeps the fingerprint of the weights before the cast, also when it is saved and
        loaded; its codes differ where rounding decides. Weights that change after the cast have their own fingerprint.
        """
        own, cast = self._digest(), self.config.cast_from
        return cast["fingerprint"] if cast and cast["digest"] == own else own

    def codes_fingerprint(self) -> str:
        """Equal ones mean equal codes, whatever the decoder; code data sets and priors name it as their tokenizer's.

        It is `fingerprint()`, or where only the decoder was trained on (`keep_codes_of`), that of the tokenizer before.
        """
        kept = self.config.codes_from
        return kept["fingerprint"] if kept and kept["digest"] == self._digest(True) else self.fingerprint()

    def keep_codes_of(self, other: VQModel) -> None:
        """Record that pictures have the same codes as with `other`, so that its code data sets and priors stay valid.

        Raises CodegridError: the encoder or the quantizer differ.
        """
        own, theirs = self._digest(encoding_half=True), other._digest(encoding_half=True)
        differ = "The encoders or quantizers of the two tokenizers differ, and so do their codes."
        require(own == theirs, differ, "Train with the encoder and the quantizer frozen.")
        self.config.codes_from = {"fingerprint": other.codes_fingerprint(), "digest": own}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQModel:
        """Every cast and move calls this method: a cast model records the weights from which it was cast."""
        weight = self.last_layer
        is_cast = weight.device.type != "meta" and fn(weight.detach().new_empty(0)).dtype != weight.dtype
        before, codes = (self.fingerprint(), self.codes_fingerprint()) if is_cast else ("", "")
        super()._apply(fn, recurse)
        if is_cast:
            own = self._digest()
            self.config.cast_from = None if own == before else {"fingerprint": before, "digest": own}
            if codes != before:
                self.config.codes_from = {"fingerprint": codes, "digest": self._digest(encoding_half=True)}
        return self

    def _digest(self, encoding_half: bool = False) -> str:
        """The fingerprint of the current weights; of encoder and quantizer alone with `encoding_half`."""
        counters = {f"quantize.{name}" for name in self.quantize.training_buffers}
        parts = [established(part) for part in (self.config.backbone_config, self.config.quantizer_config)]
        parts += [self.config.num_classes] if self.config.num_classes and not encoding_half else []
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name not in counters and (not encoding_half or name.startswith(_ENCODING_HALF)):
                array = tensor.detach().float().cpu().contiguous().numpy()
                digest.update(f"{name}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients give the adversarial term's adaptive weight (arXiv:2012.09841, eq. 7)."""
        return self.decoder.conv_out.weight

    def _decode_features(self, features: Tensor, condition: Tensor | None) -> Tensor:
        features = features.to(self.decoder.conv_in.weight.dtype).contiguous(memory_format=self.memory_format)
        return self.decoder(self.post_quant_conv(features), condition)

    def _condition(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """The classes' vectors [B, E], or None if the decoder is unconditional."""
        number = self.config.num_classes
        if not number:
            if labels is not None:
                raise CodegridError(
                    "This tokenizer's decoder is unconditional: it takes no labels.", "Leave the labels out."
                )
            return None
        if labels is None:
            raise CodegridError(
                "This tokenizer's decoder is class-conditional, and no labels are given.",
                f"Give labels [B] in [0, {number}).",
            )
        if labels.shape != (batch,) or labels.is_floating_point():
            raise CodegridError(
                f"labels are {labels.dtype} {list(labels.shape)}.", f"Give integers of shape [{batch}]."
            )
        # Values are checked only on a CPU, as those of images are: elsewhere the host would wait for them.
        readable = batch and labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and not (int(labels.min()) >= 0 and int(labels.max()) < number):
            raise CodegridError(
                f"A label lies outside the classes: they run from {int(labels.min())} to {int(labels.max())}, the "
                f"tokenizer's from 0 to {number - 1}.",
                "Give labels of the tokenizer's classes.",
            )
        return self.class_embedding(to_device(labels, self.class_embedding.weight.device).long())

    def _checked(self, images: Tensor) -> Tensor:
        # Values are checked only on a CPU, where this is not a sync point, and not on tensors without storage. Training
        # makes its images of bytes, and a step whose gradients are not finite is counted and skipped there.
        plain = type(images) in (Tensor, nn.Parameter) and images.device.type == "cpu" and not self.training
        check_images(images, values=plain and not torch.compiler.is_compiling())
        factor, channels = self.config.pixels_per_position, self.config.backbone_config.in_channels
        if images.dim() != 4 or images.shape[1] != channels or images.shape[2] % factor or images.shape[3] % factor:
            raise CodegridError(
                f"images have shape {list(images.shape)}.",
                f"Give [B, {channels}, H, W] with H and W multiples of {factor}.",
            )
        return images.to(self.dtype).contiguous(memory_format=self.memory_format)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **kwargs: Any) -> VQModel:
        """Load a tokenizer's folder or Hub repository; safetensors only.

        Args:
            kwargs: `subfolder`; for a Hub repository `revision`, `token`, `cache_dir`, `local_files_only` and
                `force_download` (`codegrid.downloads.snapshot`); others of transformers, such as `dtype`, `device_map`.

        Raises:
            MissingFileError: there is no such folder or repository, or it lacks a file.
            CodegridError: a file is not whole; weights are missing, left over or of another shape than in the config.
        """
        kwargs.setdefault("use_safetensors", True)
        # The cast comes after loading, so that the fingerprint is that of the stored weights.
        dtype = float_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        folder = _folder_of(folder_or_repo, kwargs)
        read_json(folder / "config.json")
        with torch.device("meta"):
            check_weight_files(folder, cls(kwargs.get("config") or VQModelConfig.from_pretrained(folder)))
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, output_loading_info=True, local_files_only=True, **kwargs)
        model.name_or_path = str(folder_or_repo)
        wrong = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        wrong = {key: names for key, names in wrong.items() if names}
        if wrong:
            raise CodegridError(
                f"The weights in {folder_or_repo} do not fit the tokenizer's config.json: {wrong}.",
                "Save or download the tokenizer again, weights and config.json together.",
            )
        for part in model.quantize.modules():
            if isinstance(part, Quantizer):
                part.fill_constants()
        model = lay_out(model if dtype is None else model.to(dtype))
        return (model, info) if wants_info else model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Save and upload in one commit, with a card made only from the config; returns the commit's address.

        `codegrid push-to-hub` uploads a run's folder, with a card that describes the tokenizer's training data.

        Raises:
            PublishingError: there is no login, or the Hub refuses or cannot be reached.
        """
        check_login(token)
        in_subfolder({}, subfolder)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files: dict[str, Path | bytes] = {path.name: path for path in Path(folder).iterdir()}
            files["README.md"] = model_card(self.config).replace(PLACEHOLDER, repo_id).encode()
            return push_files(
                in_subfolder(files, subfolder),
                repo_id,
                replaces=tuple(in_subfolder(dict.fromkeys(WEIGHT_FILES), subfolder)),
                private=private,
                revision=revision,
                token=token,
                commit_message=commit_message or "Upload tokenizer",
                create_pr=create_pr,
            )

    @classmethod
    def from_foreign(
        cls,
        family: str,
        checkpoint: str | Path | Mapping[str, Tensor],
        settings: str | Path | Mapping[str, Any] | None = None,
        pixel_range: tuple[float, float] | None = None,
        kind: Kind = "family",
    ) -> VQModel:
        """A tokenizer that another project trained, in evaluation mode and float32.

        Args:
            family: one of `tokenizer.importers.TOKENIZER_FAMILIES`.
            checkpoint: its file (.ckpt, .pt, .bin, .safetensors), an index of shards, a folder with one of them, or the
                weights by their names.
            settings: its .yaml or .json, or the values of that file, if there is one.
            pixel_range: its network's values of black and white; None takes those of the family.
            kind: "trained" or "averaged" weights, where there are both; "family" takes those that the family's own code
                takes.

        Raises:
            ForeignCheckpointError: the file cannot be read, is not of the family, or has missing or unknown keys.
        """
        if isinstance(settings, (str, Path)):
            settings = read_settings(settings)
        weights, notes = checkpoint, {}
        if not isinstance(weights, Mapping):
            known, found = TOKENIZER_FAMILIES.get(family), locate(weights)
            settings = read_settings(found.config) if settings is None and found.config else settings
            read = found.read(known is not None and takes_averages(known, settings, kind))
            weights, notes = read.weights, {"weights": "ema" if read.averaged else "trained"} if read.beside else {}
        config, weights = convert_tokenizer(family, weights, settings, pixel_range, kind)
        config.provenance |= notes
        model = cls(config).eval()
        fill(model, weights, family)
        return lay_out(model)
