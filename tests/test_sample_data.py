from pathlib import Path

import numpy as np
from PIL import Image

from aimonk_hf import read_labels
from aimonk_hf.data.sample_data import PREVALENCE, SIZE, draw_garment, write_sample_data


def test_the_same_seed_gives_the_same_pixels_and_labels(tmp_path: Path) -> None:
    first, second, other = (
        write_sample_data(tmp_path / name, 4, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert (first / "labels.csv").read_text() == (second / "labels.csv").read_text()
    for path in sorted((first / "images").iterdir()):
        pixels = np.asarray(Image.open(path))
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(second / "images" / path.name)))
        assert (pixels != np.asarray(Image.open(other / "images" / path.name))).any()


def test_labels_have_the_stated_prevalences_and_gaps() -> None:
    present = np.array(
        [list(draw_garment(np.random.default_rng([5, number])).present.values()) for number in range(300)]
    )
    np.testing.assert_allclose(present.mean(axis=0), list(PREVALENCE.values()), atol=0.07)


def test_missing_labels_are_near_nine_percent(tmp_path: Path) -> None:
    labels = read_labels(write_sample_data(tmp_path / "a", 250))
    assert labels.attributes == list(PREVALENCE)
    assert 0.06 < np.isnan(labels.values).mean() < 0.12


def test_every_part_that_is_there_has_a_box_inside_the_picture() -> None:
    for number in range(30):
        garment = draw_garment(np.random.default_rng([1, number]))
        assert {name for name, shown in garment.present.items() if shown} == set(garment.boxes)
        for left, top, right, bottom in garment.boxes.values():
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
