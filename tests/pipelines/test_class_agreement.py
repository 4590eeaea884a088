import numpy as np
import pytest
import torch

from codegrid.pipelines.evaluation.class_agreement import (
    class_agreement,
    distances_to_nearest,
    diversity_ratio,
    near_copy_share,
    predicted_labels,
    train_classifier,
)


def flat(*values: int) -> np.ndarray:
    """Images [N, 4, 4, 1] of one value each: two of them are 4 * |difference| / 255 apart."""
    return np.stack([np.full((4, 4, 1), value, np.uint8) for value in values])


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, [N, 16, 16, 1]: a bar lying, a bar standing, both; at a random place, under a little noise."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 40, (count, 16, 16, 1)).astype(np.uint8), rng.integers(0, 3, count)
    for image, label, place in zip(images, labels, rng.integers(3, 11, count), strict=True):
        if label in (0, 2):
            image[place : place + 3] = 220
        if label in (1, 2):
            image[:, place : place + 3] = 220
    return images, labels


class Oracle(torch.nn.Module):
    """Reads the class off the first pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()


def test_the_classifier_learns_separable_classes():
    classifier = train_classifier(*bars(200, seed=0), 3, seed=0, steps=40)
    unseen, labels = bars(150, seed=1)
    assert not classifier.training
    assert class_agreement(classifier, unseen, labels) > 0.95
    assert class_agreement(classifier, unseen, (labels + 1) % 3) < 0.05


def test_training_repeats_for_a_seed_and_leaves_the_global_random_state():
    images, labels = bars(40, seed=0)
    before = torch.get_rng_state()
    first = train_classifier(images, labels, 3, seed=3, steps=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second = train_classifier(images, labels, 3, seed=3, steps=4)
    other = train_classifier(images, labels, 3, seed=4, steps=4)
    shown = torch.from_numpy(images)
    assert torch.equal(first(shown), second(shown))
    assert not torch.equal(first(shown), other(shown))


def test_colour_images_of_another_size_and_fewer_than_a_batch():
    images = np.random.default_rng(0).integers(0, 256, (10, 20, 28, 3)).astype(np.uint8)
    classifier = train_classifier(images, np.arange(10) % 5, 5, seed=0, steps=2)
    assert predicted_labels(classifier, images).shape == (10,)


def test_agreement_counts_matches_and_splits_them_by_class():
    images = flat(0, 0, 1, 1, 1, 7)
    labels = np.array([0, 1, 1, 1, 1, 7])
    assert class_agreement(Oracle(), images, labels) == pytest.approx(5 / 6)


def test_diversity_is_one_for_the_real_images_and_zero_for_copies_of_one():
    real, labels = bars(60, seed=0)
    assert diversity_ratio(real, labels, real, labels) == pytest.approx(1.0)
    one_each = np.stack([real[labels == label][0] for label in labels])
    assert diversity_ratio(one_each, labels, real, labels) == 0.0


def test_diversity_is_the_ratio_of_mean_pair_distances_averaged_over_classes():
    # class 0: samples 10 apart against 20; class 1: (30 + 30 + 60) / 3 = 40 against 10; class 2 has one sample only
    samples, sample_labels = flat(0, 10, 0, 30, 60, 5), [0, 0, 1, 1, 1, 2]
    real, real_labels = flat(100, 120, 50, 60, 0, 90), [0, 0, 1, 1, 2, 2]
    ratio = diversity_ratio(samples, np.array(sample_labels), real, np.array(real_labels))
    assert ratio == pytest.approx((0.5 + 4.0) / 2)


def test_diversity_without_a_class_to_compare_is_refused():
    with pytest.raises(ValueError, match="two samples"):
        diversity_ratio(flat(0, 1), np.array([0, 1]), flat(0, 1), np.array([0, 1]))


def test_distance_is_to_the_nearest_training_image_mirrored_or_not():
    corner = np.zeros((1, 4, 4, 1), np.uint8)
    corner[0, 0, 0] = 255
    assert distances_to_nearest(corner[:, :, ::-1], corner).tolist() == pytest.approx([0.0], abs=1e-3)
    assert distances_to_nearest(corner[:, ::-1], corner).tolist() == pytest.approx([2**0.5])
    assert distances_to_nearest(flat(0, 51, 200), flat(0, 255)).tolist() == pytest.approx(
        [0, 0.8, 4 * 55 / 255], abs=1e-3
    )


def test_near_copies_are_nearer_than_half_of_what_unseen_real_images_are():
    train, test = flat(0, 200), flat(20, 40, 180)  # the test images are 20, 40 and 20 away: the limit is 10
    assert near_copy_share(train, train, test) == 1.0
    assert near_copy_share(flat(9, 11, 195, 100), train, test) == 0.5
    assert near_copy_share(test, train, test) == 0.0


def test_the_distances_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    train, samples = rng.integers(0, 256, (2, 23, 8, 8, 1)).astype(np.uint8)
    whole = distances_to_nearest(samples, train)
    expected = [min(np.linalg.norm(s / 255.0 - t / 255.0) for k in train for t in (k, k[:, ::-1])) for s in samples]
    monkeypatch.setattr("codegrid.pipelines.evaluation.class_agreement._NUMBERS_AT_ONCE", 5 * 64)
    assert torch.allclose(distances_to_nearest(samples, train), whole, atol=1e-4)
    assert whole.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (flat(0, 1).astype(np.float32), [0, 1], "uint8"),
        (flat(0, 1)[0], [0, 1, 0, 1], "uint8"),
        (flat(0, 1), [0, 1, 1], "Labels"),
        (flat(0, 1), [0.0, 1.0], "Labels"),
        (flat(0, 1), [0, 2], r"\[0, 2\)"),
        (flat(0, 1), [-1, 0], r"\[0, 2\)"),
    ],
)
def test_wrong_input_is_refused(images: np.ndarray, labels: list, message: str):
    with pytest.raises(ValueError, match=message):
        train_classifier(images, np.array(labels), 2, seed=0, steps=1)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        near_copy_share(flat(0), np.zeros((1, 8, 8, 1), np.uint8), flat(0))
