"""The cache of decoded pictures gives the pixels that decoding gives, whatever happens to its files and processes."""

import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimonk_hf.data import image_cache as pixel_cache
from aimonk_hf.data.image_cache import PixelCache, Pixels, cache_folder
from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError

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


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    return [old_file(tmp_path / "images" / f"{number}.jpg", bytes([number, 7])) for number in range(12)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., PixelCache]:
    def make(settings: str = "squash 40", **options: int) -> PixelCache:
        return PixelCache(tmp_path / "images", settings, tmp_path / "cache", **options)

    return make


def fill(cache: PixelCache, files: list[Path]) -> None:
    for path in files:
        np.testing.assert_array_equal(cache.get(path, lambda path=path: pixels_of(path)), pixels_of(path))


def kept(cache: PixelCache, files: list[Path]) -> int:
    """Read all files through the cache, compare them with decoding, and return how many did not have to be decoded."""
    decoded = []

    def decode(path: Path) -> Pixels:
        decoded.append(path)
        return pixels_of(path)

    for path in files:
        np.testing.assert_array_equal(cache.get(path, lambda path=path: decode(path)), pixels_of(path))
    return len(files) - len(decoded)


def the_file(cache: PixelCache, suffix: str) -> Path:
    return cache._pixels.with_suffix(suffix)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The same pixels


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_pictures_are_those_of_decoding(
    tmp_path: Path, picture: Image.Image, make: Callable[..., PixelCache], kind: str
) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"a.{kind}"
    picture.save(path)
    os.utime(path, (1e9, 1e9))

    def decode() -> Pixels:
        return np.asarray(read_image(path).resize((70, 64), Image.Resampling.BICUBIC))

    cache = make()
    first, second, third = (
        cache.get(path, decode),
        cache.get(path, decode_must_not_be_called),
        make().get(path, decode_must_not_be_called),
    )
    for pixels in (first, second, third):
        assert pixels.dtype == np.uint8
        assert pixels.shape == (64, 70, 3)
        np.testing.assert_array_equal(pixels, decode())
    second[:] = 0  # a reader may change its copy
    np.testing.assert_array_equal(cache.get(path, decode_must_not_be_called), decode())


def test_arrays_in_any_memory_order_are_kept(files: list[Path], make: Callable[..., PixelCache]) -> None:
    flipped = pixels_of(files[0])[:, ::-1].transpose(1, 0, 2)
    make().get(files[0], lambda: flipped)
    np.testing.assert_array_equal(make().get(files[0], decode_must_not_be_called), flipped)


def test_other_arrays_are_refused(files: list[Path], make: Callable[..., PixelCache]) -> None:
    for wrong in (np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)):
        with pytest.raises(TypeError, match=r"decode\(\) must return \[H, W, 3\] uint8, found"):
            make().get(files[0], lambda wrong=wrong: wrong)


@pytest.mark.parametrize(("content", "changed"), [(b"\5\5\5", 1e9), (b"\5\5", 1e9 + 1e-6), (b"\5\5", 1e9 - 5)])
def test_a_changed_file_is_decoded_again(
    files: list[Path], make: Callable[..., PixelCache], content: bytes, changed: float
) -> None:
    cache, other = make(), make()
    fill(cache, files)
    assert kept(other, files) == 12
    old_file(files[3], content, changed)
    assert kept(cache, files) == 11
    assert kept(other, files) == 12, "the new pixels are kept, and other processes find them"
    assert kept(make(), files) == 12


def test_a_file_changed_just_now_is_not_kept_yet(files: list[Path], make: Callable[..., PixelCache]) -> None:
    cache, now = make(), time.time()
    for content in (b"\1\1", b"\2\2"):  # of one size and time
        old_file(files[0], content, now)
        assert kept(cache, files[:1]) == 0
    old_file(files[0], b"\3\3", time.time() - 10)
    assert [kept(cache, files[:1]), kept(cache, files[:1])] == [0, 1]


def test_settings_folders_and_versions_do_not_collide(
    tmp_path: Path, files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(make("squash 40"), files)
    for other in (make("squash 41"), make("squash 4"), PixelCache(tmp_path, "squash 40", tmp_path / "cache")):
        assert kept(other, files) == 0
    monkeypatch.setattr(pixel_cache, "_FORMAT", 2)
    assert kept(make("squash 40"), files) == 0
    monkeypatch.undo()
    for library in ("pil", "libjpeg_turbo"):
        monkeypatch.setattr(pixel_cache.features, "version", {library: "0.1"}.get)
        assert kept(make("squash 40"), files) == 0
        monkeypatch.undo()
    monkeypatch.setattr(pixel_cache, "__version__", "0.0.0")
    assert kept(make("squash 40"), files) == 0
    monkeypatch.undo()
    assert kept(make("squash 40"), files) == 12


def test_bad_pictures_are_never_kept(files: list[Path], make: Callable[..., PixelCache]) -> None:
    cache = make()
    for _ in range(2):
        with pytest.raises(ImageError, match="not a picture"):
            cache.get(files[0], lambda: np.asarray(read_image(files[0])))
    missing = files[0].with_name("missing.jpg")
    for path in (missing, files[0].with_name("nul\0.jpg")):
        with pytest.raises((ImageError, ValueError)):
            cache.get(path, lambda path=path: np.asarray(read_image(path)))
    assert the_file(cache, ".pixels").stat().st_size == the_file(cache, ".index").stat().st_size == 0
    np.testing.assert_array_equal(cache.get(missing, lambda: pixels_of(files[0])), pixels_of(files[0]))


def test_names_of_any_bytes(tmp_path: Path, make: Callable[..., PixelCache]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b"\xff\xfe.jpg", b"\xff\xfd.jpg", "Kleid äöü 裙.jpg".encode(), b"new\nline 1.jpg", b" .jpg"]
    paths = [old_file(folder / os.fsdecode(name), bytes([number, 1])) for number, name in enumerate(names)]
    fill(make(), paths)
    assert kept(make(), paths) == len(names)


def test_relative_paths_mean_the_same_file(
    files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(make(), files)
    monkeypatch.chdir(files[0].parent)
    assert kept(make(), [Path(path.name) for path in files]) == 12
    cache = PixelCache(".", "squash 40", "../cache")
    assert kept(cache, files) == 12
    monkeypatch.chdir("/")
    assert kept(cache, files) == 12


def test_what_was_decoded_before_is_known(files: list[Path], make: Callable[..., PixelCache]) -> None:
    fill(make(), files[:6])
    cache = make()
    assert [cache.holds(path) for path in files] == [True] * 6 + [False] * 6
    old_file(files[0], b"longer")
    files[1].unlink()
    assert [cache.holds(path) for path in files[:3]] == [False, False, True]
    assert not cache.holds(files[0].with_name("nul\0.jpg"))


# Several processes and threads


def read_in_turns(cache: PixelCache, files: list[Path], seed: int) -> int:
    """Read every file three times in an order of one's own; return how many pictures were wrong."""
    wrong, order = 0, random.Random(seed)
    for path in order.sample(files, len(files)) + order.sample(files, len(files)) + order.sample(files, len(files)):
        wrong += not np.array_equal(cache.get(path, lambda path=path: pixels_of(path)), pixels_of(path))
    return wrong


@pytest.mark.parametrize("context", CONTEXTS, ids=["fork", "spawn"])
def test_processes_share_it(files: list[Path], make: Callable[..., PixelCache], context: BaseContext) -> None:
    cache = make()
    fill(cache, files[:4])
    with context.Pool(4) as pool:
        shares = [pool.apply_async(read_in_turns, (cache, files, seed)) for seed in range(8)]
        assert [share.get(60) for share in shares] == [0] * 8
    assert kept(cache, files) == 12
    assert kept(make(), files) == 12


def test_a_copy_sent_to_another_process_is_small_and_works(files: list[Path], make: Callable[..., PixelCache]) -> None:
    cache = make()
    fill(cache, files)
    sent = pickle.dumps(cache)
    assert len(sent) <= len(pickle.dumps(make("other settings")))
    assert kept(pickle.loads(sent), files) == 12


def test_threads_share_it(files: list[Path], make: Callable[..., PixelCache]) -> None:
    cache = make()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: read_in_turns(cache, files, seed), range(16))) == [0] * 16
    assert kept(cache, files) == 12


def test_two_writers_of_one_picture(files: list[Path], make: Callable[..., PixelCache]) -> None:
    one, other = make(), make()
    one.get(files[0], lambda: other.get(files[0], lambda: pixels_of(files[0])))
    assert [kept(cache, files[:1]) for cache in (one, other, make())] == [1, 1, 1]


def test_a_writer_in_between(
    files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, write = make(), os.write

    def crowded_write(file: int, content: bytes | memoryview) -> int:
        written = write(file, content)
        append(the_file(cache, ".pixels"), b"of another process")
        append(the_file(cache, ".index"), b"\nof another process\n")
        return written

    monkeypatch.setattr(os, "write", crowded_write)
    fill(cache, files)
    assert kept(cache, files) == kept(make(), files) == 12


def write_and_die(cache: PixelCache, files: list[Path], fatal_write: int) -> None:
    """Fill the cache, but do only half of one write and end as by SIGKILL."""
    n_writes, write = 0, os.write

    def dying_write(file: int, content: bytes | memoryview) -> int:
        nonlocal n_writes
        n_writes += 1
        if n_writes == fatal_write:
            write(file, bytes(content)[: memoryview(content).nbytes // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, content)

    os.write = dying_write
    fill(cache, files)


@pytest.mark.parametrize("fatal_write", [1, 2, 5, 6])
def test_a_writer_killed_in_the_middle_of_a_write(
    files: list[Path], make: Callable[..., PixelCache], fatal_write: int
) -> None:
    cache = make()
    writer = CONTEXTS[0].Process(target=write_and_die, args=(cache, files, fatal_write))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert kept(cache, files) == (fatal_write - 1) // 2
    assert kept(cache, files) == 12
    assert kept(make(), files) == 12


def write_for_ever(cache: PixelCache, files: list[Path]) -> None:
    while True:
        for path in files:
            os.utime(path)  # so that it is decoded and written again
            os.utime(path, (1e9, random.randrange(10**9)))
            cache.get(path, lambda path=path: pixels_of(path, 500))


def test_writers_killed_at_random_moments(files: list[Path], make: Callable[..., PixelCache]) -> None:
    """Two processes write large pictures of ever changing files until they are killed; what is left is right or not there."""
    cache = make()
    for _ in range(8):
        writers = [CONTEXTS[0].Process(target=write_for_ever, args=(cache, files)) for _ in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(random.uniform(0.02, 0.3))
        for writer in writers:
            writer.kill()
            writer.join()
        for path in files:
            pixels = make().get(path, lambda path=path: pixels_of(path, 500))
            np.testing.assert_array_equal(pixels, pixels_of(path, 500))
    assert the_file(cache, ".pixels").stat().st_size > 12 * pixels_of(files[0], 500).nbytes


# Damage


def flip_bits(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def append(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a bit of a picture": (".pixels", lambda path: flip_bits(path, 5000)),
    "the end of the pictures": (".pixels", lambda path: os.truncate(path, path.stat().st_size - 9)),
    "half of the pictures": (".pixels", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "all pictures": (".pixels", lambda path: os.truncate(path, 0)),
    "no file of pictures": (".pixels", Path.unlink),
    "zeros for pictures": (".pixels", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "waste after the pictures": (".pixels", lambda path: append(path, b"waste")),
    "a bit of a line": (".index", lambda path: flip_bits(path, 200)),
    "a line's key": (".index", lambda path: flip_bits(path, 1)),
    "the end of the last line": (".index", lambda path: os.truncate(path, path.stat().st_size - 9)),
    "half of the lines": (".index", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "all lines": (".index", lambda path: os.truncate(path, 0)),
    "no index": (".index", Path.unlink),
    "waste for an index": (".index", lambda path: path.write_bytes(random.Random(0).randbytes(3000))),
    "an unfinished line": (".index", lambda path: append(path, b"0a 12.3 77")),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize("known", [True, False], ids=["in a running process", "before the start"])
def test_damage_is_recognised_and_mended(
    files: list[Path], make: Callable[..., PixelCache], damage: str, known: bool
) -> None:
    cache = make()
    fill(cache, files)
    assert kept(cache, files) == 12
    suffix, harm = DAMAGE[damage]
    harm(the_file(cache, suffix))
    cache = cache if known else make()
    harmless = (known and suffix == ".index") or damage in ("waste after the pictures", "an unfinished line")
    assert (kept(cache, files) == 12) is harmless
    assert kept(cache, files) == 12
    new = make()
    kept(new, files)  # lines lost behind the back of a running process are written by the next one
    assert kept(new, files) == kept(make(), files) == 12


def test_a_file_of_waste_is_begun_anew(
    files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make()
    fill(cache, files)
    full = the_file(cache, ".pixels").stat().st_size
    the_file(cache, ".index").unlink()
    assert the_file(make(), ".pixels").stat().st_size == full, "a little waste is left alone: others may be writing"
    monkeypatch.setattr(pixel_cache, "_WASTE_BYTES", 1000)
    new = make()
    assert not the_file(new, ".pixels").exists()
    assert kept(cache, files) == 0, "who knew the old files decodes again"
    assert kept(new, files) == kept(make(), files) == kept(cache, files) == 12
    assert the_file(new, ".pixels").stat().st_size == full


def test_files_dropped_and_begun_again_by_another_run(files: list[Path], make: Callable[..., PixelCache]) -> None:
    cache = make()
    fill(cache, files)
    assert kept(cache, files) == 12
    for suffix in (".pixels", ".index"):
        the_file(cache, suffix).unlink()
    fill(make(), files[:5:-1])
    assert kept(cache, files[6:]) == 6
    assert [kept(cache, files), kept(cache, files)] == [6, 12]


# Bounds


def test_it_stays_below_its_bound_and_says_so_once(
    files: list[Path], make: Callable[..., PixelCache], caplog: pytest.LogCaptureFixture
) -> None:
    bound = 5 * 6000
    caches = [make(max_bytes=bound), make(max_bytes=bound)]
    n_kept = []
    for cache in caches * 2:
        n_kept.append(kept(cache, files))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= bound
    assert n_kept[0] == 0
    assert n_kept[1] == n_kept[2] == n_kept[3]
    assert 3 <= n_kept[1] <= 6
    assert len(warnings_in(caplog)) == 1
    assert "the cache of decoded pictures takes in no more" in caplog.text
    assert "holds all it may" in caplog.text


def test_it_never_takes_more_than_its_share_of_the_free_disk(
    files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(make("other settings"), files)
    taken = sum(path.stat().st_size for path in make().folder.iterdir())
    free = 4 * taken - taken  # a quarter of what would be free without the cache is exactly taken
    for left, expected in ((free, 0), (free + 4 * 3 * 6000, 3)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, left=left: shutil._ntuple_diskusage(10**9, 0, left))
        fill(make(), files)
        assert 0 <= kept(make(), files) - expected <= 1


def test_files_idle_for_an_hour_make_room_and_others_do_not(
    tmp_path: Path, files: list[Path], make: Callable[..., PixelCache], caplog: pytest.LogCaptureFixture
) -> None:
    bound = 30 * (pixels_of(files[0]).nbytes + 160)
    for number, hours in enumerate((9, 3, 0.5)):
        cache = make(f"settings {number}")
        fill(cache, files[:8])
        used = time.time() - 3600 * hours
        os.utime(the_file(cache, ".pixels"), (used, used))
    foreign = tmp_path / "cache" / "notes.txt"
    foreign.write_bytes(bytes(10**6))
    new = make("new", max_bytes=bound)
    fill(new, files)
    names = {path.stem for path in (tmp_path / "cache").iterdir()}
    assert the_file(make("new"), ".pixels").stem in names
    remaining = [the_file(make(f"settings {number}"), ".pixels").stem in names for number in range(3)]
    assert remaining == [False, True, True], "the longest idle goes first, and no more than needed"
    assert kept(new, files) == 12
    fill(make("newest", max_bytes=bound // 4), files)
    assert kept(make("settings 2"), files[:8]) == 8
    assert foreign.exists()
    assert len(warnings_in(caplog)) == 1


def test_a_run_in_progress_is_not_idle(
    files: list[Path], make: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make()
    fill(cache, files)
    os.utime(the_file(cache, ".pixels"), (1e9, 1e9))
    assert kept(cache, files) == 12
    assert the_file(cache, ".pixels").stat().st_mtime == 1e9, "not at every picture"
    monkeypatch.setattr(pixel_cache, "_TOUCH_SECONDS", 0)
    assert kept(cache, files) == 12
    assert time.time() - the_file(cache, ".pixels").stat().st_mtime < 60


# Folders that cannot be written


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can reach, with 12 image files."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for number in range(12):
        old_file(folder / f"{number}.jpg", bytes([number, 7])).chmod(0o644)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ordinary_user(open_folder: Path) -> Iterator[Path]:
    """The same folder while this process has the rights of an ordinary user; the superuser may write anywhere."""
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(open_folder, 65534, 65534)
        os.seteuid(65534)
    yield open_folder
    if was_root:
        os.seteuid(0)


def test_a_read_only_folder_turns_it_off_with_one_warning(
    ordinary_user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted(ordinary_user.glob("*.jpg"))
    (ordinary_user / "cache").mkdir(mode=0o555)
    cache = PixelCache(ordinary_user, "s", ordinary_user / "cache")
    assert [kept(cache, files), kept(cache, files)] == [0, 0]
    assert kept(pickle.loads(pickle.dumps(cache)), files) == 0
    assert list((ordinary_user / "cache").iterdir()) == []
    assert len(warnings_in(caplog)) == 1
    assert f"Permission denied: {ordinary_user / 'cache'}" in caplog.text


def test_what_a_read_only_folder_holds_is_used(ordinary_user: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted(ordinary_user.glob("*.jpg"))
    cache = PixelCache(ordinary_user, "s", ordinary_user / "cache")
    fill(cache, files[:6])
    for path in (ordinary_user / "cache").iterdir():
        path.chmod(0o400)
    (ordinary_user / "cache").chmod(0o555)
    cache = PixelCache(ordinary_user, "s", ordinary_user / "cache")
    assert [cache.holds(path) for path in files] == [True] * 6 + [False] * 6
    assert kept(cache, files) == 6
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("folder", ["a file", "/proc/aimonk", "/dev/null/pixels"])
def test_a_folder_that_cannot_be_made(
    tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    (tmp_path / "a file").touch()
    cache = PixelCache(files[0].parent, "s", tmp_path / folder)
    assert [kept(cache, files), kept(cache, files)] == [0, 0]
    assert len(warnings_in(caplog)) == 1


def test_a_folder_removed_during_the_run(
    files: list[Path], make: Callable[..., PixelCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    fill(cache, files)
    shutil.rmtree(cache.folder)
    assert [kept(cache, files), kept(cache, files)] == [0, 0]
    assert len(warnings_in(caplog)) == 1


# Full disks


def fill_with_little_room(cache: PixelCache, files: list[Path], room: int) -> None:
    """Let no file of this process grow beyond `room` bytes: writes are cut short there, then refused, as on a full disk."""
    logging.basicConfig(filename=cache.folder / f"{os.getpid()}.log")
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    fill(cache, files)
    fill(cache, files)


@pytest.mark.parametrize("room", [0, 100, 6000, 20_000])
def test_writes_cut_short(files: list[Path], make: Callable[..., PixelCache], room: int) -> None:
    cache = make()
    writers = [CONTEXTS[1].Process(target=fill_with_little_room, args=(cache, files, room)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert kept(make(), files) <= room // 4800
    assert kept(make(), files) == 12


@pytest.mark.parametrize("last", ["a part", "nothing"])
def test_a_disk_that_becomes_full(
    files: list[Path],
    make: Callable[..., PixelCache],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    last: str,
) -> None:
    cache = make()
    fill(cache, files[:5])
    attempts, opened, write = [], os.open, os.write

    def no_space(file: int, content: bytes | memoryview) -> int:
        attempts.append(file)
        if last == "a part":
            return write(file, bytes(content)[:100])
        raise OSError(28, "No space left on device")

    def no_new_files(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL:
            raise OSError(28, "No space left on device")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "write", no_space)
    monkeypatch.setattr(os, "open", no_new_files)
    assert [kept(cache, files), kept(cache, files)] == [5, 5]
    assert len(attempts) == 1, "it does not try again with every picture"
    assert len(warnings_in(caplog)) == 1
    assert "No space left on device" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only the superuser can make a small disk")
def test_a_really_full_disk(
    tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=36k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        monkeypatch.setattr(pixel_cache, "FREE_SHARE", 100.0)  # or it would stop long before
        cache = PixelCache(tmp_path, "s", disk)
        fill(cache, files)
        assert 3 <= kept(cache, files) < 12
        assert len(warnings_in(caplog)) == 1
        assert "No space left on device" in caplog.text
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Where it lies


def test_only_its_owner_may_read_it(tmp_path: Path, files: list[Path]) -> None:
    before = os.umask(0)
    try:
        cache = PixelCache(tmp_path, "s", tmp_path / "new" / "cache", max_bytes=20_000)
        fill(cache, files)
    finally:
        os.umask(before)
    assert {path.suffix for path in cache.folder.iterdir()} == {".pixels", ".index", ".stopped"}
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AIMONK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "aimonk_hf" / "pixels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "aimonk_hf" / "pixels"
    monkeypatch.setenv("AIMONK_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "pixels"
    assert PixelCache(tmp_path, "s").folder == tmp_path / "own" / "pixels"
    assert not caplog.records


def test_a_user_without_a_home(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AIMONK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    cache = PixelCache(files[0].parent, "s")
    assert [kept(cache, files), kept(cache, files)] == [0, 0]
    assert len(warnings_in(caplog)) == 1
