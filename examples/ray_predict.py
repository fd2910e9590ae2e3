"""Score a folder of images with Ray Data: `python examples/ray_predict.py IMAGES MODEL OUTPUT [--workers 2]`.

Each worker loads the model once. OUTPUT gets Parquet files with a row per image: path, a score per attribute,
attributes, error. Needs `pip install 'aimonk_hf[ray]'`.
"""

import argparse
import sys
from pathlib import Path

try:
    import ray
except ImportError:
    sys.exit("This example needs Ray: pip install 'aimonk_hf[ray]'")

from aimonk_hf import BatchPredictor
from aimonk_hf.modeling.predict_files import ImageFiles


def main() -> None:
    """Score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    paths = [{"path": str(path)} for path in ImageFiles([options.images])]
    score = {"fn_constructor_args": (options.model, "path"), "batch_size": 64, "concurrency": options.workers}
    rows = ray.data.from_items(paths).map_batches(BatchPredictor, **score)
    rows.write_parquet(options.output)
    print(f"written:  {options.output}")


if __name__ == "__main__":
    main()
