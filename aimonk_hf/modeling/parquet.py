"""Write predictions as Parquet shards with a manifest, so that a killed run continues where it was."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.predict_files import Results
from aimonk_hf.storage import atomic_path, make_folder, read_json, score_columns, write_json

MANIFEST = "manifest.json"


class ParquetShards:
    """A folder of part-00000.parquet, ... with `shard_size` rows each, in the order of the input, and its manifest.

    Columns are image, attributes (list), one score per attribute and error. `settings` name all that scores depend on.
    Raises `AimonkError` for a folder that holds other predictions, or the same ones without `resume`.
    """

    def __init__(
        self, folder: Path, attributes: list[str], shard_size: int, settings: dict[str, Any], resume: bool
    ) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise AimonkError("--format parquet needs pyarrow: pip install 'aimonk_hf[parquet]'") from error
        self.folder, self.attributes, self.shard_size = folder, attributes, shard_size
        wanted = {"attributes": attributes, "shard_size": shard_size} | settings
        self._manifest: dict[str, Any] = wanted | {"finished": False, "shards": []}
        self._names = hashlib.sha256()
        path = folder / MANIFEST
        if path.is_file():
            found = read_json(path)
            if changed := [key for key in wanted if found.get(key) != wanted[key]]:
                told = f"is of other predictions ({', '.join(changed)} differ)"
                raise AimonkError(f"{path} {told}: name another --output")
            if not resume:
                raise AimonkError(f"{path} is there already: continue with --resume, or name another --output")
            self._manifest = found
        elif folder.is_dir() and any(folder.glob("*.parquet")):
            raise AimonkError(f"{folder} holds Parquet files without a {MANIFEST}: name another --output")

    @property
    def finished(self) -> bool:
        """Return whether every image was predicted before."""
        return bool(self._manifest["finished"])

    def remaining(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Yield the paths that no shard holds; raise `AimonkError` where the shards are of another input."""
        paths = iter(paths)
        for shard in self._manifest["shards"]:
            for path in islice(paths, shard["rows"]):
                self._add_name(path)
            if self._names.hexdigest() != shard["names_sha256"]:
                raise AimonkError(f"{self.folder / shard['file']} is of another input: name another --output")
        yield from paths

    def write(self, stream: Results) -> int:
        """Write the results, shard by shard, and return the failures of all shards."""
        make_folder(self.folder)
        if not (self.folder / MANIFEST).exists():  # a run that is killed within its first shard can be resumed as well
            write_json(self.folder / MANIFEST, self._manifest)
        for leftover in self.folder.glob(".part-*.tmp.parquet"):
            leftover.unlink()
        results = iter(stream)
        while rows := list(islice(results, self.shard_size)):
            self._write_shard(rows)
        self._manifest["finished"] = True
        write_json(self.folder / MANIFEST, self._manifest)
        return sum(shard["failed"] for shard in self._manifest["shards"])

    def _write_shard(self, rows: list[Any]) -> None:
        import pyarrow
        import pyarrow.parquet

        for path, _ in rows:
            self._add_name(path)
        good = [None if isinstance(result, ImageError) else result for _, result in rows]
        scores = [[one.scores[name] if one else None for one in good] for name in self.attributes]
        texts, lists = pyarrow.string(), pyarrow.list_(pyarrow.string())
        columns = [
            pyarrow.array([str(path).encode("utf-8", "replace").decode() for path, _ in rows], texts),
            pyarrow.array([one.attributes if one else None for one in good], lists),
            *(pyarrow.array(values, pyarrow.float32()) for values in scores),
            pyarrow.array([str(result) if isinstance(result, ImageError) else None for _, result in rows], texts),
        ]
        names = ["image", "attributes", *score_columns(self.attributes), "error"]
        file = f"part-{len(self._manifest['shards']):05d}.parquet"
        with atomic_path(self.folder / file) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns, names), temporary)
        shard = {"file": file, "rows": len(rows), "failed": good.count(None), "names_sha256": self._names.hexdigest()}
        self._manifest["shards"].append(shard)
        write_json(self.folder / MANIFEST, self._manifest)

    def _add_name(self, path: Path) -> None:
        self._names.update(str(path).encode("utf-8", "surrogateescape") + b"\0")
