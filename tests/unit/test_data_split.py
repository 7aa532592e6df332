"""The split rule, the digits, and what a bad data config answers."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.choices import Augmentation
from bll.config import DataConfig
from bll.data import describe, load
from bll.data.dataset import Content, Draw, Split, permutation, split, split_rows
from bll.errors import InvalidConfig

DIGITS = DataConfig(name="digits")


def structured(rows: int, target_shape: tuple[int, ...], classes: int) -> Content:
    targets = np.random.default_rng(0).integers(0, classes, (rows, *target_shape))
    train, test = (Split(np.zeros((len(part), 2), np.float32), part) for part in (targets, targets[:5]))
    return Content(train, test, tuple("abcdefgh"[:classes]), "digest")


def content(rows: int) -> Content:
    numbers = np.arange(rows)
    train = Split(numbers.astype(np.float32)[:, None], numbers)
    return Content(train, Split(train.inputs[:0], train.targets[:0]), ("a", "b"), "digest")


@given(rows=st.integers(2, 60), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_validation_is_the_head_of_a_seeded_permutation_and_training_follows(
    rows: int, seed: int, data: st.DataObject
) -> None:
    validation_rows = data.draw(st.integers(1, rows - 1))
    train_rows = data.draw(st.integers(1, rows - validation_rows))
    config = DataConfig(name="digits", train_rows=train_rows, validation_rows=validation_rows)
    dataset = split(content(rows), config, seed)
    order = permutation(rows, seed, Draw.VALIDATION)
    assert dataset.validation.targets.tolist() == order[:validation_rows].tolist()
    assert dataset.train.targets.tolist() == order[validation_rows : validation_rows + train_rows].tolist()
    np.testing.assert_array_equal(dataset.train.inputs[:, 0], dataset.train.targets)


def test_zero_means_a_tenth_for_validation_and_all_the_rest_for_training() -> None:
    assert split_rows(DIGITS, 105) == (95, 10)
    assert split_rows(DIGITS, 5) == (4, 1)
    assert split_rows(DIGITS, 2) == (1, 1)


def test_fewer_training_rows_leave_validation_as_it_was() -> None:
    few = load(DataConfig(name="digits", train_rows=100), 4)
    everything = load(DIGITS, 4)
    np.testing.assert_array_equal(few.validation.targets, everything.validation.targets)
    np.testing.assert_array_equal(few.train.inputs, everything.train.inputs[:100])


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (DataConfig(name="digits", train_rows=1299), "data.train_rows: must be at most 1298 .*, got 1299"),
        (DataConfig(name="digits", validation_rows=1442), "data.validation_rows: must leave .* 1442 .*, got 1442"),
        (
            DataConfig(name="imagenet"),
            (
                "data.name: must be one of fashion-mnist, mnist, cifar-10, digits, reversal, shapes, npz, images, "
                "got 'imagenet'"
            ),
        ),
    ],
)
def test_what_the_config_asks_wrongly_is_named_by_its_field(config: DataConfig, rule: str) -> None:
    for ask in (load, describe):
        with pytest.raises(InvalidConfig, match=f"^{rule}$"):
            ask(config, 0)


def test_a_single_row_cannot_be_split() -> None:
    with pytest.raises(InvalidConfig, match=r"data\.validation_rows"):
        split(content(1), DIGITS, 0)


def test_digits_are_byte_images_with_a_stratified_fifth_for_testing() -> None:
    dataset = load(DIGITS, 0)
    assert dataset.train.inputs.dtype == np.uint8
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.train.inputs.max() == 255
    assert dataset.class_names == tuple("0123456789")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 1797
    tested = np.bincount(dataset.test.targets)
    every = tested + np.bincount(dataset.train.targets) + np.bincount(dataset.validation.targets)
    np.testing.assert_array_equal(tested, every // 5)


def test_digits_are_described_as_they_load() -> None:
    info, dataset = describe(DIGITS, 7), load(DIGITS, 7)
    assert info.digest == dataset.digest
    assert info.input_shape == dataset.input_shape
    assert info.is_image
    rows = (len(dataset.train), len(dataset.validation), len(dataset.test))
    assert (info.train_rows, info.validation_rows, info.test_rows) == rows


def test_a_described_config_made_explicit_loads_the_same_rows() -> None:
    info = describe(DIGITS, 7)
    explicit = DataConfig(name="digits", train_rows=info.train_rows, validation_rows=info.validation_rows)
    np.testing.assert_array_equal(load(explicit, 7).train.inputs, load(DIGITS, 7).train.inputs)


def test_the_seed_changes_the_split_and_not_the_digest() -> None:
    one, two = load(DIGITS, 1), load(DIGITS, 2)
    assert one.digest == two.digest
    assert not np.array_equal(one.test.inputs, two.test.inputs)
    assert not np.array_equal(one.validation.targets, two.validation.targets)


def test_images_may_be_augmented() -> None:
    assert describe(DataConfig(name="digits", augmentation=Augmentation.SHIFT_FLIP), 0).is_image


def test_importing_the_data_package_and_the_scores_loads_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, bll.data, bll.evaluation; print({'torch', 'sklearn', 'grpc'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"


@given(
    fraction=st.floats(0, 0.9),
    rows=st.integers(2, 40),
    target_shape=st.sampled_from([(), (3,), (2, 2)]),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_label_noise_replaces_exactly_its_fraction_of_training_labels(
    fraction: float, rows: int, target_shape: tuple[int, ...], classes: int, seed: int
) -> None:
    stored = structured(rows, target_shape, classes)
    config = DataConfig(name="npz", path="a", validation_rows=1)
    clean, noisy = split(stored, config, seed), split(stored, replace(config, label_noise=fraction), seed)
    changed = clean.train.targets != noisy.train.targets
    assert changed.sum() == round(fraction * clean.train.targets.size)
    assert set(np.unique(noisy.train.targets)) <= set(range(classes))
    np.testing.assert_array_equal(clean.validation.targets, noisy.validation.targets)
    np.testing.assert_array_equal(clean.test.targets, noisy.test.targets)
    np.testing.assert_array_equal(clean.train.inputs, noisy.train.inputs)
    assert noisy.digest == clean.digest


def test_noisy_labels_are_even_among_the_other_classes_and_follow_the_seed() -> None:
    stored = structured(6_000, (3,), 4)
    config = DataConfig(name="npz", path="a", validation_rows=1_000, label_noise=0.4)
    clean = split(stored, replace(config, label_noise=0.0), 0).train.targets
    first, again, other = (split(stored, config, seed).train.targets for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for label in range(4):  # about 1500 of each class change, to 500 of each other, with a standard deviation of 18
        found = np.bincount(first[(clean == label) & (first != label)], minlength=4)
        assert found[label] == 0
        assert np.abs(np.delete(found, label) - found.sum() / 3).max() < 5 * 18


def test_images_are_not_augmented_away_from_the_classes_of_their_pixels() -> None:
    with pytest.raises(InvalidConfig, match=r"data.augmentation: must be 'none' for targets of shape \[32, 32\]"):
        describe(DataConfig(name="shapes", augmentation=Augmentation.SHIFT), 0)
