"""Drawing images' codes from a prior.

Every image has a random stream of its own, drawn before the first code, and each code is the inverse of the cumulative
distribution at one number of that stream. An image is therefore the same in any batch, as far as its logits are the
same bits in any batch: see `sample_codes`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from prior.decoding import Decoder, read_weights
from prior.sequence import SequenceConfig, prefix_tokens


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from the logits: guidance first, then temperature, then top-k, then top-p.

    Args:
        guidance_scale: s in u + s (c - u) of the class's logits c and the null class's u (arXiv:2207.12598, where the
            weight w is s - 1). At least 0; 1 is no guidance, and costs half.
        temperature: divides the logits. At least 0; 0 takes the most likely code (greedy).
        top_k: keep the k most likely codes, and those as likely as the last of them. At least 0; 0 keeps all.
        top_p: keep the fewest most likely codes whose probabilities sum to at least top_p. In (0, 1]; 1 keeps all.

    Raises:
        ValueError: a value is out of its range. The message names it.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}: it must be a number of at least 0.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}: it must be a whole number of at least 0 (0 keeps all codes).")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1] (1 keeps all codes).")


def sample_codes(
    model: LlamaForCausalLM,
    sequence: SequenceConfig,
    labels: Tensor | Sequence[int] | None = None,
    *,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw the codes of B images.

    An image depends on the model, its label, its seed or generator and the settings. Its place and its company in the
    batch do not enter: the random numbers are its own, and on a CPU the logits are the same bits for any `batch_size`
    (oneDNN's packed products, or products padded to 8 rows; tests/prior/test_sampling.py holds both). On an accelerator
    the matrix products choose their order of summation by the number of rows, so the rows are padded to `batch_size`
    always: there an image is the same among any number of images, for one `batch_size`. On another kind of device, or
    with another version of torch, logits differ in their last bits, and about one image in thousands by that.

    The model's mode (training or evaluation) neither matters nor changes: dropout is never applied.

    Args:
        model: the bare LlamaForCausalLM, float weights, any device and float dtype.
        labels: [B] integers in [0, num_classes); None for an unconditional prior, and for a conditional one to draw
            from its null class.
        guidance_scale, temperature, top_k, top_p: see `SamplingConfig`.
        seeds: one number an image, or
        generators: one generator an image (`image_generator` makes them); each gives its next `sequence.length`
            numbers. Neither: seeds are drawn from torch's global generator.
        batch_size: images decoded at once (guidance doubles the rows); None for 16 on a CPU and 32 elsewhere.
        on_progress: called after every step with the number of codes done and the number of all.

    Returns:
        [B, sequence.length] int64 in [0, codebook_size), in the order of `sequence`, on the model's device.

    Raises:
        ValueError: an argument is out of its range, labels do not fit the prior, guidance is asked of an unconditional
            prior or without labels, or the logits are not finite.
    """
    settings = SamplingConfig(guidance_scale, temperature, top_k, top_p)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1.")
    if guidance_scale != 1 and sequence.class_names is None:
        raise ValueError(f"guidance_scale is {guidance_scale}, but this prior is unconditional: leave it at 1.")
    if guidance_scale != 1 and labels is None:
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but no labels are given: guidance leads towards a class."
        )
    generators = _one_stream_an_image(labels, seeds, generators)
    if not generators:
        return torch.empty(0, sequence.length, dtype=torch.int64, device=model.device)
    prefixes = _prefixes(labels, len(generators), sequence)  # [B]
    with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
        codes = _sample_in_chunks(model, sequence, prefixes, generators, settings, batch_size, on_progress)
    return codes.clone()  # outside of inference mode: a tensor that autograd takes


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random stream of image `index` (at least 0) of a call with `seed` (any integer).

    torch's CPU generator uses 32 bits of its seed. Within one `seed`, 2^32 images have different streams; the streams
    of two seeds overlap only by chance.
    """
    start = hashlib.blake2b(f"codegrid image stream {int(seed)}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed((int.from_bytes(start, "big") + int(index)) % 2**32)


def guided_logits(logits: Tensor, images: int, guidance_scale: float) -> Tensor:
    """Logits [R, K] of the class branch, then (if guided) the null branch, then padding -> [images, K] float64."""
    conditional = logits[:images].double()
    if guidance_scale == 1:
        return conditional
    unconditional = logits[images : 2 * images].double()
    return unconditional + guidance_scale * (conditional - unconditional)


def filter_logits(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits [B, K] -> log-probabilities up to a constant, -inf for the codes left out. temperature is above 0."""
    # Against the largest first, so that a small temperature overflows to -inf and never to NaN.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]  # [B, 1]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        logits = logits.masked_fill(logits < _last_of_top_p(logits, top_p), -math.inf)
    return logits


def _last_of_top_p(logits: Tensor, top_p: float, few: int = 1024) -> Tensor:
    """Logits [B, K] -> [B, 1]: the last of the fewest largest ones whose probabilities sum to at least top_p."""
    codes = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)
    # Ranking a large codebook takes a CPU longer than all the rest, and a few codes mostly hold enough. An accelerator
    # ranks them all at once, and would be stalled by the question.
    for count in (min(few, codes), codes) if logits.device.type == "cpu" else (codes,):
        ranked = logits.topk(count, dim=-1).values
        probabilities = (ranked - total).exp()
        collected = probabilities.cumsum(-1)
        if count == codes or bool((collected[:, -1] >= top_p).all()):
            break
    # Kept: those before which less than top_p has been collected. The first always is.
    kept = (collected - probabilities < top_p).sum(-1, keepdim=True)
    return ranked.gather(-1, kept - 1)


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Log-probabilities up to a constant [B, K] float64, numbers in [0, 1) [B] float64 -> codes [B] int64."""
    cumulative = logits.softmax(-1).cumsum(-1)  # [B, K]
    total = cumulative[:, -1:]
    # Strictly below the total, which u * total may be rounded to: the first sum above it is then that of a code with a
    # probability above 0.
    wanted = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def _sample_in_chunks(
    model: LlamaForCausalLM,
    sequence: SequenceConfig,
    prefixes: Tensor,
    generators: Sequence[torch.Generator],
    settings: SamplingConfig,
    batch_size: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Tensor:
    on_cpu = model.device.type == "cpu"
    batch_size = batch_size or (16 if on_cpu else 32)
    weights = read_weights(model, sequence.codebook_size, sequence.length)
    branches = 1 if settings.guidance_scale == 1 else 2
    total, chunks = len(prefixes) * sequence.length, []
    decoder: Decoder | None = None
    for start in range(0, len(prefixes), batch_size):
        chunk = slice(start, start + batch_size)
        images = len(prefixes[chunk])
        rows = _round_up(branches * images, weights.row_multiple) if on_cpu else branches * batch_size
        if decoder is None or decoder.rows != rows:
            decoder = Decoder(weights, rows)
        done = start * sequence.length

        def report(position: int, done: int = done, images: int = images) -> None:
            if on_progress is not None:
                on_progress(done + position * images, total)

        uniforms = None if settings.temperature == 0 else _uniforms(generators[chunk], sequence.length, model.device)
        chunks.append(_sample_chunk(decoder, sequence, prefixes[chunk].to(model.device), uniforms, settings, report))
    return torch.cat(chunks)


def _sample_chunk(
    decoder: Decoder,
    sequence: SequenceConfig,
    prefixes: Tensor,
    uniforms: Tensor | None,
    settings: SamplingConfig,
    report: Callable[[int], None],
) -> Tensor:
    """prefixes [n], uniforms [n, L] (None: greedy) -> codes [n, L]."""
    images = len(prefixes)
    image = torch.arange(decoder.rows, device=prefixes.device) % images  # [R], the image whose codes a row is fed
    tokens = prefixes[image]
    if settings.guidance_scale != 1:
        tokens[images : 2 * images] = sequence.null_token
    codes = torch.empty(images, sequence.length, dtype=torch.int64, device=prefixes.device)
    finite = torch.ones((), dtype=torch.bool, device=prefixes.device)
    decoder.restart()
    for position in range(sequence.length):
        logits = guided_logits(_in_double(decoder.step(tokens)), images, settings.guidance_scale)  # [n, K]
        finite &= torch.isfinite(logits.amax(-1)).all()
        if uniforms is None:
            chosen = logits.argmax(-1)
        else:
            kept = filter_logits(logits, settings.temperature, settings.top_k, settings.top_p)
            chosen = inverse_cdf(kept, uniforms[:, position])
        codes[:, position] = chosen.to(codes.device)
        tokens = codes[image, position]  # [R]
        report(position + 1)
    if not finite:  # asked once, at the end: to ask at every step would stall an accelerator
        raise ValueError("The prior's logits are not finite: its weights hold NaN or infinity, or its dtype overflows.")
    return codes


def _one_stream_an_image(
    labels: Tensor | Sequence[int] | None,
    seeds: Sequence[int] | None,
    generators: Sequence[torch.Generator] | None,
) -> Sequence[torch.Generator]:
    if seeds is not None and generators is not None:
        raise ValueError("Give seeds or generators, not both.")
    streams = generators if generators is not None else seeds
    if streams is None:
        if labels is None:
            raise ValueError("How many images? Give labels, seeds or generators, one an image.")
        seeds = torch.randint(2**32, (len(labels),)).tolist()
    elif labels is not None and len(labels) != len(streams):
        raise ValueError(f"There are {len(labels)} labels, but {len(streams)} seeds or generators: give one an image.")
    if generators is not None:
        return generators
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _prefixes(labels: Tensor | Sequence[int] | None, images: int, sequence: SequenceConfig) -> Tensor:
    """First tokens [B] int64, on the CPU."""
    if labels is None:
        return torch.full((images,), sequence.null_token, dtype=torch.int64)
    return prefix_tokens(torch.as_tensor(labels).cpu(), images, sequence)


def _uniforms(generators: Sequence[torch.Generator], length: int, device: torch.device) -> Tensor:
    """[n, L] float64 in [0, 1): drawn on each generator's own device, so that they do not depend on the model's."""
    drawn = [torch.rand(length, generator=one, dtype=torch.float64, device=one.device).cpu() for one in generators]
    return torch.stack(drawn).to("cpu" if device.type == "mps" else device)


def _in_double(logits: Tensor) -> Tensor:
    return (logits.cpu() if logits.device.type == "mps" else logits).double()  # mps has no float64


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
