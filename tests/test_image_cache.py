"""The cache of decoded images gives the pixels that decoding gives, whatever happens to its files and processes."""

import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimonk_hf import console
from aimonk_hf.data import image_cache
from aimonk_hf.data.image_cache import ImageCache, Pixels, open_image_cache
from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError

Make = Callable[..., ImageCache]
CONTEXTS = [multiprocessing.get_context(method) for method in ("fork", "spawn")]


def pixels_of(path: Path, side: int = 40) -> Pixels:
    """A decoder without a decoder: the pixels follow from the file's content and vary in shape."""
    content = path.read_bytes()
    return np.random.default_rng(list(content)).integers(0, 255, (side, side + content[0] % 7, 3), dtype=np.uint8)


def old_file(path: Path, content: bytes, changed: float = 1e9) -> Path:
    path.write_bytes(content)
    os.utime(path, (changed, changed))
    return path


def decode_must_not_be_called() -> Pixels:
    raise AssertionError("decoded again")


def is_kept(cache: ImageCache, path: Path) -> bool:
    try:
        cache.get(path, decode_must_not_be_called)
    except AssertionError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    console.warn_once.cache_clear()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    names = [b"\xff\xfe.jpg", b"\xff\xfd.jpg", "Kleid äöü 裙.jpg".encode(), b"new\nline 1.jpg"]
    names += [b"%d.jpg" % number for number in range(8)]
    return [old_file(tmp_path / "images" / os.fsdecode(name), bytes([k, 7])) for k, name in enumerate(names)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda fingerprint="squash 40": ImageCache(tmp_path / "cache", fingerprint)


def kept(cache: ImageCache, files: list[Path]) -> int:
    """Read all files through the cache, compare them with decoding, and return how many did not have to be decoded."""
    decoded = []

    def decode(path: Path) -> Pixels:
        decoded.append(path)
        return pixels_of(path)

    for path in files:
        np.testing.assert_array_equal(cache.get(path, lambda path=path: decode(path)), pixels_of(path))
    return len(files) - len(decoded)


def entries(cache: ImageCache) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if path.name != "test")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The same pixels


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_images_are_those_of_decoding(tmp_path: Path, picture: Image.Image, make: Make, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    picture.save(path)
    os.utime(path, (1e9, 1e9))

    def decode() -> Pixels:
        flipped = read_image(path).resize((70, 64), Image.Resampling.BICUBIC)
        return np.asarray(flipped)[:, ::-1]  # in another memory order

    first = make().get(path, decode)
    second = make().get(path, decode_must_not_be_called)
    for pixels in (first, second):
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, decode())
    second[:] = 0  # a reader may change its copy
    np.testing.assert_array_equal(make().get(path, decode_must_not_be_called), decode())


@pytest.mark.parametrize(("content", "changed"), [(b"\5\5\5", 1e9), (b"\5\5", 1e9 + 1e-6), (b"\5\5", 1e9 - 5)])
def test_a_changed_file_is_decoded_again(files: list[Path], make: Make, content: bytes, changed: float) -> None:
    cache, other = make(), make()
    assert [kept(cache, files), kept(other, files)] == [0, 12]
    assert is_kept(cache, files[3])
    old_file(files[3], content, changed)
    assert not is_kept(cache, files[3])
    assert kept(cache, files) == 11
    assert kept(other, files) == 12, "the new pixels are kept, and other processes find them"


def test_a_file_changed_just_now_is_not_kept_yet(files: list[Path], make: Make) -> None:
    cache, now = make(), time.time()
    for content in (b"\1\1", b"\2\2"):  # of one size and time
        old_file(files[0], content, now)
        assert kept(cache, files[:1]) == 0
    old_file(files[0], b"\3\3", time.time() - 10)
    assert [kept(cache, files[:1]), kept(cache, files[:1])] == [0, 1]


def test_fingerprints_files_and_versions_do_not_collide(
    tmp_path: Path, files: list[Path], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(make("squash 40"), files)
    assert kept(make("squash 4"), files) == 0
    copies = shutil.copytree(files[0].parent, tmp_path / "copies")
    assert kept(make("squash 40"), sorted(copies.iterdir())) == 0
    for library in ("pil", "libjpeg_turbo"):
        monkeypatch.setattr(image_cache.features, "version", {library: "0.1"}.get)
        assert kept(make("squash 40"), files) == 0
        monkeypatch.undo()
    monkeypatch.setattr(image_cache, "__version__", "0.0.0")
    assert kept(make("squash 40"), files) == 0
    monkeypatch.undo()
    assert kept(make("squash 40"), files) == 12


def test_unreadable_images_are_never_kept(files: list[Path], make: Make) -> None:
    cache = make()
    for path in (files[0], files[0].with_name("missing.jpg"), files[0].with_name("nul\0.jpg")):
        for _ in range(2):
            with pytest.raises((ImageError, ValueError)):
                cache.get(path, lambda path=path: np.asarray(read_image(path)))
        assert not is_kept(cache, path)
    assert entries(cache) == []


# Several processes and threads


def read_in_turns(cache: ImageCache, files: list[Path], seed: int) -> int:
    """Read every file three times in an order of one's own; return how many images were wrong."""
    wrong, order = 0, random.Random(seed)
    for path in order.sample(files * 3, len(files) * 3):
        wrong += not np.array_equal(cache.get(path, lambda path=path: pixels_of(path)), pixels_of(path))
    return wrong


@pytest.mark.parametrize("context", CONTEXTS, ids=["fork", "spawn"])
def test_processes_share_it(files: list[Path], make: Make, context: BaseContext) -> None:
    cache = make()
    kept(cache, files[:4])
    with context.Pool(2) as pool:
        shares = [pool.apply_async(read_in_turns, (cache, files, seed)) for seed in range(6)]
        assert [share.get(60) for share in shares] == [0] * 6
    assert kept(cache, files) == 12
    assert kept(pickle.loads(pickle.dumps(cache)), files) == 12


def write_for_ever(cache: ImageCache, files: list[Path]) -> None:
    while True:
        for path in files:
            os.utime(path, (1e9, random.randrange(10**9)))  # so that it is decoded and written again
            cache.get(path, lambda path=path: pixels_of(path, 500))


def test_writers_killed_at_random_moments(files: list[Path], make: Make) -> None:
    """Two processes write large images of ever changing files until they are killed; the rest is right or not there."""
    cache = make()
    for _ in range(5):
        writers = [CONTEXTS[0].Process(target=write_for_ever, args=(cache, files)) for _ in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(random.uniform(0.02, 0.2))
        for writer in writers:
            writer.kill()
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        for path in files:
            pixels = make().get(path, lambda path=path: pixels_of(path, 500))
            np.testing.assert_array_equal(pixels, pixels_of(path, 500))
    assert len(entries(cache)) > 12


# Damage


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the pixels": lambda path: flip_a_bit(path, 3000),
    "a bit of the shape": lambda path: flip_a_bit(path, 0),
    "the end": lambda path: os.truncate(path, path.stat().st_size - 9),
    "everything": lambda path: os.truncate(path, 0),
    "no file": Path.unlink,
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_recognised_and_mended(files: list[Path], make: Make, damage: str) -> None:
    cache = make()
    kept(cache, files)
    for path in entries(cache)[:5]:
        DAMAGE[damage](path)
    assert [kept(cache, files), kept(make(), files)] == [7, 12]


def test_the_folder_may_be_deleted_during_a_run(
    files: list[Path], make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    kept(cache, files)
    shutil.rmtree(cache.folder)
    assert [kept(cache, files), kept(cache, files)] == [0, 12]
    assert not caplog.records


# Folders that cannot be written, and full disks


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder with 12 image files, while this process has the rights of an ordinary user: root may write anywhere."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for number in range(12):
        old_file(folder / f"{number}.jpg", bytes([number, 7])).chmod(0o644)
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if was_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_used_and_said_once(ordinary_user: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, folder = sorted(ordinary_user.glob("*.jpg")), ordinary_user / "cache"
    kept(ImageCache(folder, "s"), files[:6])
    folder.chmod(0o555)
    cache = ImageCache(folder, "s")
    assert [is_kept(cache, path) for path in files] == [True] * 6 + [False] * 6
    for again in (cache, pickle.loads(pickle.dumps(cache)), ImageCache(folder, "s")):
        assert kept(again, files) == 6
    assert warnings_in(caplog) == [f"No more images are added to {folder} (Permission denied): see --image-cache."]


def test_a_tenth_of_the_disk_is_left_free(
    files: list[Path],
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = make()
    kept(cache, files[:5])
    monkeypatch.setattr("aimonk_hf.data.image_cache.FREE_SHARE", 0.1)  # conftest allows a full disk
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 901, 99))
    assert [kept(cache, files), kept(make(), files)] == [5, 5]
    assert len(warnings_in(caplog)) == 1
    assert "less than 10% of the disk is free" in caplog.text


def fill_with_little_room(cache: ImageCache, files: list[Path], room: int) -> None:
    """Let no file of this process grow beyond `room` bytes: writes are cut short there, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert [kept(cache, files), kept(cache, files)] == [0, 0]


def test_writes_cut_short(files: list[Path], make: Make) -> None:
    cache, room = make(), 4000
    writers = [CONTEXTS[0].Process(target=fill_with_little_room, args=(cache, files, room)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert entries(cache) == []
    assert [kept(make(), files), kept(make(), files)] == [0, 12]


# Its place


def test_only_its_owner_may_read_it(tmp_path: Path, files: list[Path]) -> None:
    before = os.umask(0)
    try:
        cache = ImageCache(tmp_path / "new" / "cache", "s")
        kept(cache, files)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_named_folder_the_default_one_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AIMONK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def folder(setting: str | None) -> Path | None:
        cache = open_image_cache(setting, "s")
        return cache and cache.folder

    assert folder("off") is None
    assert list(tmp_path.iterdir()) == []
    assert folder(None) == tmp_path / ".cache" / "aimonk_hf" / "images"
    assert folder("~/own") == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder(None) == tmp_path / "xdg" / "aimonk_hf" / "images"
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "all"))
    assert folder(None) == tmp_path / "all"
