"""Draws the codes of images from a prior.

Every image has its own random stream, drawn before the first code. Each code is the inverse of the cumulative
distribution at one number of that stream. An image is therefore the same in any batch in which its logits have the same
bits: see `sample_codes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.architectures import architecture_of
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import Decoder
from codegrid.prior.distribution import SamplingConfig, filter_logits, guided_logits, inverse_cdf
from codegrid.prior.guidance import guidance_of
from codegrid.prior.laid_out import LaidOut
from codegrid.prior.linear_maps import WeightFormat
from codegrid.prior.memory import batch_that_fits
from codegrid.prior.orders import place_pairs
from codegrid.prior.sequence import SequenceConfig, flat_rows
from codegrid.prior.static_decoding import Decoding, Forward, StaticSampling, check_decoding
from codegrid.prior.steps import Part, draw_around, draw_in_steps, in_double, in_evaluation
from codegrid.prior.streams import prefixes_and_streams
from codegrid.prior.way import Way, known_tokens, way_to_draw

_MOST_ON_A_CPU, _MOST_ELSEWHERE = 16, 32  # images at once, by default


def sample_codes(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    labels: Tensor | Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    prefix_codes: Tensor | None = None,
    known_codes: Tensor | None = None,
    redraw: Tensor | None = None,
    order: str | Tensor | None = None,
    num_steps: int | None = None,
    choice_temperature: float = 4.5,
    batch_size: int | None = None,
    weights: WeightFormat = "exact",
    decoding: Decoding = "eager",
    on_progress: Callable[[int, int], None] | None = None,
    drop: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Draw the codes of B images.

    An image depends on the model, its label, its seed or generator, its given codes and the settings, but not on its
    place in the batch or on the other images. Its random numbers are its own. On a CPU its logits have the same bits
    for any `batch_size`, because the rows are padded to a multiple that a trial has found (`prior/linear_maps.py`). On
    an accelerator the matrix products choose their order of summation by the number of rows, so the rows are always
    padded to `batch_size`: an image is the same among any number of images, for one `batch_size`. On another kind of
    device, or with another version of torch, logits differ in their last bits, which changes about one image in
    thousands. Dropout is never applied.

    Args:
        model: the bare model of `make_prior` or `load_prior`, float weights, any device and float dtype.
        labels: [B] integers in [0, num_classes), or the values of another condition [B, *value_shape]. None for an
            unconditional prior; with a conditional prior None draws from the null class.
        seeds: one number per image. Without seeds and generators, torch's global generator draws them.
        generators: one per image, instead of seeds (`image_generator`); each gives its next `sequence.length` numbers.
        prefix_codes: the given first codes of each image, which are kept: [B, P] with P below `sequence.length`, or the
            grid's upper rows [B, r, w(, depth)] (only with the order "positions"). A position's random number does not
            depend on the given codes, so that an image's own first codes are completed to that image.
        known_codes, redraw: whole grids of codes, and the positions that are drawn again, bool [h, w] or [B, h, w]. As
            the next three, for priors of any order and masked ones.
        order: "raster", "random", "halton" (`prior/orders.py`) or a permutation of the tokens, [L] or [B, L]; of a
            masked prior also "confidence" (arXiv:2202.04200). None is "raster", or "halton" with several codes a step.
        num_steps: steps of several codes, which do not see each other; None is a code a step, of a masked prior 12.
        choice_temperature: of the noise of "confidence".
        batch_size: images at once. None is 16 on a CPU, or what memory allows, and 32 elsewhere: codes depend on it.
        weights: "exact"; or "float16" or "int8" for rounded weights, on CPUs: faster, but with other codes.
        decoding: "eager", "static" (in fixed shapes) or "graph" (as CUDA graphs): `static_decoding.py`.
        on_progress: called after every step with the number of finished codes and the total number.
        drop: the parts of the condition that an image has not, as in `to_tokens`.
        settings: fields of `SamplingConfig`.

    Returns:
        [B, sequence.length] int64 in [0, codebook_size), in the order of `sequence`, on the model's device.

    Raises:
        CodegridError: an argument is out of its range; labels or given codes do not fit the prior; guidance is used
            with an unconditional prior, a prior without a null class, or no labels; or the logits are not finite.
    """
    given = {"seeds": seeds, "generators": generators, "prefix_codes": prefix_codes, "known_codes": known_codes}
    given |= {"redraw": redraw, "order": order, "num_steps": num_steps, "choice_temperature": choice_temperature}
    given |= {"batch_size": batch_size, "weights": weights, "decoding": decoding}
    given |= {"on_progress": on_progress, "drop": drop}
    batches = list(iterate_codes(model, sequence, labels, **given, **settings))
    if not batches:
        return torch.empty(0, sequence.length, dtype=torch.int64, device=model.device)
    return torch.cat(batches)


def iterate_codes(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    labels: Tensor | Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    prefix_codes: Tensor | None = None,
    known_codes: Tensor | None = None,
    redraw: Tensor | None = None,
    order: str | Tensor | None = None,
    num_steps: int | None = None,
    choice_temperature: float = 4.5,
    batch_size: int | None = None,
    weights: WeightFormat = "exact",
    decoding: Decoding = "eager",
    laid_out: LaidOut | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    drop: Tensor | None = None,
    **settings: Any,
) -> Iterator[Tensor]:
    """Like `sample_codes`, but yields each batch's codes, [n, sequence.length], as soon as they are drawn.

    The call itself raises the errors about arguments. A batch starts when the caller asks for it. `laid_out` keeps the
    weights as decoding reads them for further calls; None lays them out for this call alone.
    """
    config = SamplingConfig(**settings)
    if batch_size is not None and batch_size < 1:
        raise CodegridError(f"batch_size is {batch_size}.", "Give at least 1.")
    prefixes, generators = prefixes_and_streams(config, labels, seeds, generators, sequence, drop)
    if decoding != "eager":
        check_decoding(decoding, model.device)
    record = architecture_of(model)
    reads = "before" if record is None else record.reads
    way = way_to_draw(reads, sequence, len(generators), order, num_steps, choice_temperature)
    way = replace(way, decoding=decoding)
    if known_codes is None and redraw is None:
        given = _given(prefix_codes, len(generators), sequence)  # [B, P]
    else:
        given = known_tokens(reads, sequence, len(generators), known_codes, redraw, prefix_codes)  # [B, L]
    if not generators:
        return iter(())
    drawing = prepared(model, sequence, config, way, batch_size, weights, laid_out)
    return draw_batches(drawing, prefixes, given, generators, on_progress)


class Drawing(NamedTuple):
    """What all batches of a call have in common; a masked prior is not laid out for decoding."""

    weights: DecoderWeights | PreTrainedModel
    sequence: SequenceConfig
    settings: SamplingConfig
    way: Way
    batch_size: int


def prepared(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    settings: SamplingConfig,
    way: Way,
    batch_size: int | None,
    weights: WeightFormat,
    laid_out: LaidOut | None = None,
) -> Drawing:
    """Lay out the weights and choose the batch size, once for any number of calls of `draw_batches`."""
    if way.reads == "around":
        size = batch_size or (_MOST_ON_A_CPU if model.device.type == "cpu" else _MOST_ELSEWHERE)
        return Drawing(model, sequence, settings, way, size)
    positions = sequence.prefix_length + sequence.length - 1  # the model does not get the last code
    read = (laid_out or LaidOut()).read(model, sequence.codebook_size, positions, weights)
    if batch_size is None:
        batch_size, branches = _MOST_ELSEWHERE, guidance_of(settings, sequence).branches
        if model.device.type == "cpu":
            batch_size = batch_that_fits(branches * Decoder.bytes_a_row(read), _MOST_ON_A_CPU, model.device)
    return Drawing(read, sequence, settings, way, batch_size)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random stream of image `index` (at least 0) of a call with `seed` (any integer).

    torch's CPU generator uses 32 bits of its seed. Within one `seed`, 2^32 images have different streams. The streams
    of two seeds overlap only by chance.
    """
    start = hashlib.blake2b(f"codegrid image stream {int(seed)}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed((int.from_bytes(start, "big") + int(index)) % 2**32)


def draw_batches(
    drawing: Drawing,
    prefixes: Tensor,
    given: Tensor,
    generators: Sequence[torch.Generator],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Codes [n, L] of each batch.

    Args:
        prefixes: [B, prefix_length] int64 on the CPU.
        given: the first codes [B, P], or codes by token [B, L], -1 where one is drawn. Where the order is raster, a
            drawn code sees the codes before it and no given code behind it.
        generators: one an image; the same one may stand in several places and then gives its next numbers.
    """
    weights, sequence, settings, way, batch_size = drawing
    device = weights.device
    total = len(prefixes) * sequence.length
    decoder: Decoder | None = None
    static: StaticSampling | None = None
    forward = Forward(weights, way.decoding == "graph") if isinstance(weights, PreTrainedModel) else None
    for part in way.batches(given, batch_size):
        images = len(prefixes[part])
        done = part.start * sequence.length

        def report(position: int, done: int = done, images: int = images) -> None:
            if on_progress is not None:
                on_progress(done + position * images, total)

        drawn = _uniforms(generators[part], way.numbers(sequence))
        images_part = way.part(sequence, part, prefixes, given, drawn, settings.temperature == 0, device)
        branches = guidance_of(settings, sequence).branches
        # Entered for one batch at a time: around a `yield` the modes would also apply to the caller's code.
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            if isinstance(weights, PreTrainedModel):
                assert forward is not None
                codes, finite = _around(forward, sequence, images_part, settings, way, batch_size, report)
            elif way.decoding != "eager":
                static = static or _static(drawing, len(prefixes))
                codes, finite = static.draw(images_part, report)
            else:
                rows = _rows(images, branches, batch_size, weights)
                if decoder is None or decoder.rows != rows:
                    decoder = Decoder(weights, rows)
                if way.num_steps is not None:
                    codes, finite = draw_in_steps(decoder, sequence, images_part, settings, way.num_steps, report)
                else:
                    after = _rows(images, 1, batch_size, weights)
                    codes, finite = _sample_batch(decoder, sequence, images_part, settings, report, after)
            _check_finite(finite)  # once, at the end: a check at every step would be a CPU-GPU sync point
        yield codes.clone()  # outside of inference mode: autograd accepts the copy


def _static(drawing: Drawing, images: int) -> StaticSampling:
    weights, sequence, settings, way, batch_size = drawing
    assert isinstance(weights, DecoderWeights)
    most = min(batch_size, images) if weights.device.type == "cpu" else batch_size
    return StaticSampling(weights, sequence, settings, most, way.num_steps, way.decoding == "graph")


def _around(
    forward: Forward,
    sequence: SequenceConfig,
    part: Part,
    settings: SamplingConfig,
    way: Way,
    batch_size: int,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Codes of a masked prior. On a CPU each image has a forward pass of its own, so that its bits depend on no other;
    on an accelerator the batch is padded to `batch_size`."""
    assert way.num_steps is not None
    model = forward.model
    with in_evaluation(model):
        if model.device.type != "cpu":
            rest = (way.num_steps, way.choice_temperature, batch_size, report)
            return draw_around(forward, sequence, part, settings, *rest)
        made = []
        for index in range(len(part.prefixes)):
            rest = (way.num_steps, way.choice_temperature, 1, lambda position: None)
            made.append(draw_around(forward, sequence, part.image(index), settings, *rest))
        report(sequence.length)
    return torch.cat([codes for codes, _ in made]), torch.stack([finite for _, finite in made]).all()


def _sample_batch(
    decoder: Decoder,
    sequence: SequenceConfig,
    part: Part,
    settings: SamplingConfig,
    report: Callable[[int], None],
    rows_unguided: int,
) -> tuple[Tensor, Tensor]:
    """Codes [n, L], a code a step, and whether all logits were finite. Without an order `given` has the first codes."""
    prefixes, given, order, uniforms, known, _ = part
    images = len(prefixes)
    image = torch.arange(decoder.rows, device=prefixes.device) % images  # [R], the image of each row
    guidance = guidance_of(settings, sequence)
    prefix, guided = guidance.prefixes(prefixes, decoder.rows, sequence), guidance.guided  # [R, tokens]
    codes = torch.empty(images, sequence.length, dtype=torch.int64, device=prefixes.device)
    finite = torch.ones((), dtype=torch.bool, device=prefixes.device)
    if order is not None:
        own, target = place_pairs(order, sequence.prefix_length)  # [n, prefix + L - 1]
        given = given.gather(1, order)
    decoder.restart()
    *before, tokens = prefix.unbind(1)
    for step, one in enumerate(before):
        decoder.advance(one, None if order is None else (own[image, step], target[image, step]))
    for position in range(sequence.length):
        if guided and position == guided[-1] + 1:  # the other branches are not needed after it
            image, tokens = image[:rows_unguided], tokens[:rows_unguided]
        step = len(before) + position
        hidden = decoder.advance(tokens, None if order is None else (own[image, step], target[image, step]))
        count = known[position] if position < len(known) else 0
        place = torch.full_like(image[:images], position) if order is None else order[:, position]  # [n]
        if count == images:
            chosen = given[:, position]
        else:
            logits = guided_logits(in_double(decoder.logits(hidden)), images, guidance.mixes[position])  # [n, K]
            finite &= torch.isfinite(logits.amax(-1)).all()
            if uniforms is None:
                chosen = logits.argmax(-1)
            else:
                kept = filter_logits(logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p)
                chosen = inverse_cdf(kept, uniforms.gather(1, place[:, None].to(uniforms.device))[:, 0])
            if count:
                chosen = torch.where(given[:, position] >= 0, given[:, position], chosen.to(given.device))
        chosen = chosen.to(codes.device)
        codes.scatter_(1, place[:, None], chosen[:, None])
        tokens = chosen[image]  # [R]
        report(position + 1)
    return codes, finite


def _check_finite(finite: Tensor) -> None:
    if not finite:
        raise CodegridError(
            "The prior's logits are not finite: its weights hold NaN or infinity, or its dtype overflows.",
            "Load it in float32, or train it again.",
        )


def _given(codes: Tensor | None, images: int, sequence: SequenceConfig) -> Tensor:
    """Given first codes -> [B, P] int64; P is 0 if there are none."""
    if codes is None:
        return torch.empty(images, 0, dtype=torch.int64)
    codes = flat_rows(codes, sequence).cpu()
    if len(codes) != images:
        raise CodegridError(
            f"There are prefix_codes of {len(codes)} images, but {images} are asked for.", "Give one each."
        )
    return codes


def _uniforms(generators: Sequence[torch.Generator], length: int) -> Tensor:
    """[n, L] float64 in [0, 1) on the CPU, drawn on each generator's device: they do not depend on the model's."""
    drawn = [torch.rand(length, generator=one, dtype=torch.float64, device=one.device).cpu() for one in generators]
    return torch.stack(drawn)


def _rows(images: int, branches: int, batch_size: int, weights: DecoderWeights) -> int:
    """Number of rows to decode for some images, with all branches and the padding: see `sample_codes`."""
    if weights.device.type != "cpu":
        return branches * batch_size
    return -(-branches * images // weights.row_multiple) * weights.row_multiple
