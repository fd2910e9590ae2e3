"""The end of `make demo`: did it learn, what does it say of a picture, and where is everything?"""

import sys
from pathlib import Path

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub import METRICS_FILE
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.predict_files import list_images
from aimonk_hf.storage import read_json

# On drawings whose attributes can be seen, a model that learned anything is far above this.
LOWEST_AUROC = 0.95


def main(folder: Path, data: Path) -> int:
    """Check the demo's model in `folder`, predict one picture of `data`, and say how to go on; return the exit status."""
    report = read_json(folder / METRICS_FILE)
    aurocs = {name: row["auroc"] for name, row in report["per_attribute"].items()}
    if weak := [name for name, auroc in aurocs.items() if auroc is None or auroc <= LOWEST_AUROC]:
        print(f"demo: the model did not learn {', '.join(weak)}: validation AUROC {aurocs}", file=sys.stderr)
        return 1
    print(f"\nlearned:  validation AUROC {', '.join(f'{name} {auroc:.3f}' for name, auroc in aurocs.items())}\n")
    print(AimonkModel.from_pretrained(folder).predict(list_images([data])[0]))
    print(f"\nmodel:    {folder}   (also loads in timm and transformers: see {folder / 'README.md'})")
    print(f"plots:    {folder / 'loss_curve.png'}\n          {folder / 'sample_predictions.png'}")
    print(f"serve it: make app   (= .venv/bin/aimonk-hf app --model {folder})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except AimonkError as error:
        sys.exit(f"demo: {error}")
