"""How likely pictures are under a pipeline's prior, and which class makes them likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.generation.arguments import as_labels, whole_number
from codegrid.pipelines.generation.output import CodesBar, ImagePipelineOutput
from codegrid.prior import log_likelihood, resolve_labels
from codegrid.prior.architectures import architecture_of
from codegrid.prior.orders import random_orders
from codegrid.tokenizer.images import Picture

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

Unit = Literal["nats", "bits_per_code"]


class Scoring:
    """The methods of `ImageGenerationPipeline` that score pictures."""

    def log_likelihood(
        self: ImageGenerationPipeline,
        images: Picture | Sequence[Picture] | Tensor | ImagePipelineOutput,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        orders: Tensor | int | None = None,
        unit: Unit = "nats",
        batch_size: int | None = None,
    ) -> Tensor:
        """log p(codes | class) of pictures or codes, float64 [N]: `codegrid.prior.log_likelihood`.

        Args:
            images: pictures as in `encode`, integer codes [N, h, w(, depth)], or what the pipeline gave.
            class_labels: a class an image, or one for all. None with a conditional prior is the null class.
            orders: of a prior of any order, [L] or [M, L] permutations of the tokens, or a number of random ones, the
                same in every call: the mean of the log p in each. None is raster order.
            unit: "nats" of a picture; or "bits_per_code", -log2 p over the number of its codes: what an ideal
                coder spends on each.

        Raises:
            BadImage, CodegridError: a picture, a code or a class cannot be used, orders are given for a prior of raster
                order, or the prior has no null class.
        """
        require(unit in ("nats", "bits_per_code"), f"unit is {unit!r}.", "Give nats or bits_per_code.")
        codes = self._codes_of(images)
        labels = None
        if class_labels is not None:
            given = as_labels(class_labels)
            labels = torch.tensor(resolve_labels(given * (len(codes) if len(given) == 1 else 1), self.sequence))
        walks = self._orders_of(orders)
        nats = log_likelihood(self.prior, self.sequence, codes, labels, batch_size=batch_size, orders=walks)
        return nats if unit == "nats" else -nats / math.log(2) / self.sequence.length

    def classify(
        self: ImageGenerationPipeline,
        images: Picture | Sequence[Picture] | Tensor | ImagePipelineOutput,
        *,
        class_prior: Sequence[float] | None = None,
        temperature: float = 1.0,
        orders: Tensor | int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """log p(class | codes) of pictures or codes, float64 [N, C], by Bayes' rule: a classifier without training.

        Args:
            images, orders, batch_size: as in `log_likelihood`.
            class_prior: p(class), C positive numbers, which are scaled to a sum of 1. None is the same for all.
            temperature: divides log p(codes | class), above 0. Codes are no independent witnesses, and a prior that was
                trained for long is too sure: above 1 the classes come nearer to `class_prior`. Without one the
                likeliest class is the same.
            progress: show a bar.

        Raises:
            BadImage, CodegridError: see `log_likelihood`; or the prior has no classes.
        """
        names = self.class_names
        require(
            names is not None, "This pipeline's prior has no classes to choose from.", "Take one trained with labels."
        )
        assert names is not None
        shares = torch.as_tensor([1.0] * len(names) if class_prior is None else class_prior, dtype=torch.float64)
        require(
            shares.shape == (len(names),) and bool((torch.isfinite(shares) & (shares > 0)).all()),
            f"class_prior is {class_prior}.",
            f"Give {len(names)} positive numbers, one a class.",
        )
        usable = math.isfinite(temperature) and temperature > 0
        require(usable, f"temperature is {temperature}.", "Give a number above 0.")
        codes, walks = self._codes_of(images), self._orders_of(orders)
        joint = torch.empty(len(codes), len(names), dtype=torch.float64)
        total = joint.numel() * self.sequence.length
        with CodesBar(total, progress, None) as bar:
            for label in range(len(names)):
                labels = torch.full((len(codes),), label)
                joint[:, label] = log_likelihood(
                    self.prior,
                    self.sequence,
                    codes,
                    labels,
                    batch_size=batch_size,
                    orders=walks,
                    on_progress=lambda done, label=label: bar(
                        (label * len(codes) + done) * self.sequence.length, total
                    ),
                )
        return (joint / temperature + (shares / shares.sum()).log()).log_softmax(1)

    def _codes_of(self: ImageGenerationPipeline, images: Any) -> Tensor:
        if isinstance(images, ImagePipelineOutput):
            return images.codes
        given = torch.from_numpy(images) if isinstance(images, np.ndarray) and images.dtype == np.int64 else images
        is_codes = isinstance(given, Tensor) and not given.is_floating_point()
        return given if is_codes else self.encode(images)

    def _orders_of(self: ImageGenerationPipeline, orders: Tensor | int | None) -> Tensor | None:
        """A number of random orders stands for the same ones in every call, so that results can be compared."""
        if orders is None or (isinstance(orders, Tensor) and orders.dim() > 0):
            return orders
        number, record = whole_number("orders", orders), architecture_of(self.prior)
        require(
            record is not None and record.reads == "any order",
            f"orders is {number}, and this prior knows raster order only.",
            "Leave it out, or train one with `codegrid train-prior ... --order annealed`.",
        )
        return random_orders(number, self.sequence, torch.Generator().manual_seed(0))
