"""Image names as other tools and machines spell them, and the files that they mean."""

import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from aimonk_hf import AttributeDataset
from aimonk_hf.audit.checks import audit
from aimonk_hf.errors import AimonkError

NAMES = ["a.jpg", "sub/b.JPG", "sub/Käse.png", "c d.jpeg", "v1.2.webp"]


def make(folder: Path, labels: list[str], files: list[str] = NAMES, images: str = "images") -> Path:
    """Write a data folder with drawn images of different colours, and a label file that lists `labels`."""
    for number, name in enumerate(files):
        path = folder / images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(path, lossless=True)
    rows = "".join(f'"{name}",{number % 2}\n' for number, name in enumerate(labels))
    (folder / "labels.csv").write_text(f"image,x\n{rows}", encoding="utf-8")
    return folder


def check_found(dataset: AttributeDataset, files: list[str]) -> None:
    assert dataset.labels.images == files
    assert dataset.labels.values[:, 0].tolist() == [number % 2 for number in range(len(files))]
    assert not dataset.find_problems()
    assert audit(dataset).findings["files"]["unlisted"] == []


@pytest.mark.parametrize(
    "spell",
    [
        lambda name, folder: name,
        lambda name, folder: f"./{name}",
        lambda name, folder: f"images/{name}",
        lambda name, folder: f"Images//./{name}",
        lambda name, folder: f"{folder.name}/images/{name}",
        lambda name, folder: name.replace("/", "\\"),
        lambda name, folder: "images\\" + name.replace("/", "\\"),
        lambda name, folder: str(folder / "images" / name),
        lambda name, folder: f"/home/ann/shop/{name}",
        lambda name, folder: "C:\\Users\\Ann\\shop\\" + name.replace("/", "\\"),
        lambda name, folder: "\\\\server\\share\\" + name.replace("/", "\\"),
        lambda name, folder: name.rpartition(".")[0],
        lambda name, folder: f"images/{name.rpartition('.')[0]}",
        lambda name, folder: name[:-4] + name[-4:].swapcase(),
        lambda name, folder: normalize("NFD", name),
        lambda name, folder: f"/mnt/{normalize('NFD', name).rpartition('.')[0]}",
    ],
    ids=range(16),
)
def test_each_spelling_finds_its_file(spell, tmp_path: Path) -> None:
    folder = make(tmp_path / "data", [])
    make(folder, [spell(name, folder) for name in NAMES], [])
    check_found(AttributeDataset.from_folder(folder), NAMES)
    check_found(AttributeDataset.from_folder(folder, images_dir=folder / "images"), NAMES)


def test_another_spelling_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path, ["a.jpg", "/home/ann/b.jpg", "c d"])
    notes = AttributeDataset.from_folder(folder).labels.notes[1:]
    told = f"2 image name(s) are spelled in another way in {folder / 'images'}, first: "
    assert notes == (f"{told}/home/ann/b.jpg is read from sub/b.JPG",)
    assert len(AttributeDataset.from_folder(make(tmp_path, NAMES)).labels.notes) == 1


def test_the_longest_end_of_an_absolute_name_decides(tmp_path: Path) -> None:
    files = ["train/p1/view.jpg", "train/p2/view.jpg", "val/p1/view.jpg"]
    folder = make(tmp_path, [f"/data/Study-v1.0/{name}" for name in files], files)
    assert AttributeDataset.from_folder(folder).labels.images == files
    with pytest.raises(AimonkError, match="lists 'Study/train/p1/view.jpg', the folder holds '.*/view.jpg'"):
        AttributeDataset.from_folder(make(tmp_path, ["Study/train/p1/view.jpg"], []))  # may be of another folder


@pytest.mark.parametrize("images", ["Images", "IMAGES", "images/images", ".", "photos"])
def test_folders_of_images_are_found(images: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "data", NAMES, images=images)
    named = folder / "photos" if images == "photos" else None
    check_found(AttributeDataset.from_folder(folder, images_dir=named), NAMES)


def test_images_of_metadata_may_be_beside_it_or_in_images(tmp_path: Path) -> None:
    folder = make(tmp_path, NAMES)
    (folder / "labels.csv").rename(folder / "metadata.csv")
    check_found(AttributeDataset.from_folder(folder), NAMES)
    shutil.copytree(folder / "images", folder, dirs_exist_ok=True)
    dataset = AttributeDataset.from_folder(folder)
    assert (dataset.images_dir, dataset.labels.images) == (folder, NAMES)
    assert not dataset.find_problems()
    assert dataset[2]["labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.jpg", "images/a.jpg"], "a.jpg and images/a.jpg are the same file, a.jpg: keep one of the rows"),
        (["./a.jpg", "a.jpg"], "./a.jpg and a.jpg are the same file, a.jpg"),
        (["a", "a.JPG"], "a and a.JPG are the same file, a.jpg"),
        (["/x/sub/b.JPG", "/y/b.JPG"], "are the same file, sub/b.JPG"),
        (["sub/K\u00e4se.png", "sub/Ka\u0308se.png"], "are the same file, sub/Käse.png"),
    ],
)
def test_two_spellings_of_one_file_are_refused(names: list[str], told: str, tmp_path: Path) -> None:
    folder = make(tmp_path, names)
    with pytest.raises(AimonkError) as caught:
        AttributeDataset.from_folder(folder)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'labels.csv'}: ")


@pytest.mark.parametrize(
    "name",
    [
        "a",  # which is a.jpg or a.png
        "/home/x/b.jpg",  # which is in two folders
        "three/b.jpg",
        "c.png",
        "A.jpg",
        "elsewhere/a.jpg",
        "../images/nowhere.jpg",
        "one",  # a folder
        "long" * 200,
    ],
)
def test_a_name_that_fits_no_file_or_several_is_a_missing_image(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path, ["a.jpg", name], ["a.jpg", "a.png", "one/b.jpg", "two/b.jpg", "c.jpg"])
    dataset = AttributeDataset.from_folder(folder)
    assert dataset.labels.images == ["a.jpg", name]
    assert list(dataset.find_problems()) == [1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "a.png",
            "None of the 1 listed images is in {0}/images: {0}/labels.csv lists 'a.png', the folder holds 'a.jpg': ",
        ),
        ("train/v1.2.webp", "lists 'train/v1.2.webp', the folder holds 'v1.2.webp': correct the names"),
        ("KÄSE.png", "lists 'KÄSE.png', the folder holds 'sub/Käse.png'"),
        ("zzz", "lists 'zzz', the folder holds '"),
    ],
)
def test_where_every_image_is_missing_the_nearest_is_shown(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(AimonkError) as caught:
        AttributeDataset.from_folder(make(tmp_path, [name]))
    assert told.format(tmp_path) in str(caught.value)
    assert str(caught.value).endswith("with --images-dir")


def test_folders_without_images_are_told(tmp_path: Path) -> None:
    folder = make(tmp_path, ["a.jpg"], [])
    with pytest.raises(AimonkError, match="There is no folder .*/images, and no listed image beside .*--images-dir"):
        AttributeDataset.from_folder(folder)
    with pytest.raises(AimonkError, match="There is no folder .*/none, and no listed"):
        AttributeDataset.from_folder(folder, images_dir=folder / "none")
    (folder / "images").mkdir()
    with pytest.raises(AimonkError, match="lists 'a.jpg', and the folder holds no image: name another"):
        AttributeDataset.from_folder(folder)


def test_many_names_alike_take_no_time_that_grows_with_their_square(tmp_path: Path) -> None:
    """Half a minute where each name is held against each file of the same name."""
    files = [f"p{number}/view.jpg" for number in range(6000)]
    folder = make(tmp_path, [f"/data/study/{name}" for name in files], files[:1])
    for name in files[1:]:
        (folder / "images" / name).parent.mkdir()
        (folder / "images" / name).symlink_to(folder / "images" / files[0])
    assert AttributeDataset.from_folder(folder).labels.images == files


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_dataset_names_the_file(num_workers: int, tmp_path: Path) -> None:
    folder = make(tmp_path, ["a.jpg", "c d.jpeg", "gone.jpg"])
    (folder / "images" / "c d.jpeg").write_bytes(b"no image")
    dataset = AttributeDataset.from_folder(folder, transform=lambda image: image.size[0])
    assert dataset[0]["pixel_values"] == 8
    for row, told in ((1, "c d.jpeg: not an image file"), (2, "gone.jpg: no such file")):
        with pytest.raises(AimonkError, match=f"{folder / 'images' / told}"):
            list(DataLoader(dataset.select([row]), num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_transform_names_the_file(num_workers: int, tmp_path: Path) -> None:
    def fail(image: Image.Image) -> None:
        raise RuntimeError("no such size")

    folder = make(tmp_path, ["a.jpg"])
    with pytest.raises(RuntimeError, match="no such size") as caught:
        list(DataLoader(AttributeDataset.from_folder(folder, transform=fail), num_workers=num_workers))
    told = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert any(f"The image is {folder / 'images' / 'a.jpg'}" in text for text in told)
