"""Node and Transformers.js for the tests that run exported models outside Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "browser"


def install_transformers_js() -> Path:
    """Return a folder, kept in the user's cache, with the example's package.json and its node_modules.

    Where Node or its packages cannot be had the test is skipped, under CI it fails.
    """
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("node and npm are not installed: the JavaScript readers of an export are not tested")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aimonk_hf-tests" / "browser"
    cache.mkdir(parents=True, exist_ok=True)
    wanted = (EXAMPLE / "package.json").read_text()
    done = cache / "installed.json"
    if not done.is_file() or done.read_text() != wanted:
        (cache / "package.json").write_text(wanted)
        # no install scripts: they fetch GPU libraries that nothing here uses
        install = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=cache,
            capture_output=True,
            text=True,
            check=False,
        )
        if install.returncode != 0:
            missing(f"npm cannot install Transformers.js: {install.stderr[-300:]}")
        done.write_text(wanted)
    for name in ("predict.mjs", "index.html"):
        shutil.copy(EXAMPLE / name, cache / name)
    return cache
