"""The end of `make demo`: check the model, predict one image, and print the next commands."""

import sys
from pathlib import Path

from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.predict_files import list_images

# On drawings whose attributes can be seen, a model that learned anything is far above this.
LOWEST_AUROC = 0.95


def main(folder: Path, data: Path) -> int:
    """Check the demo's model in `folder` and predict one image of `data`; return the exit status."""
    model = AimonkModel.from_pretrained(folder)
    aurocs = {name: row["auroc"] for name, row in (model.metrics or {})["per_attribute"].items()}
    if weak := [name for name, auroc in aurocs.items() if auroc is None or auroc <= LOWEST_AUROC]:
        print(f"demo: the model did not learn {', '.join(weak)}: validation AUROC {aurocs}", file=sys.stderr)
        return 1
    print(f"\nlearned:  validation AUROC {', '.join(f'{name} {auroc:.3f}' for name, auroc in aurocs.items())}\n")
    print(model.predict(list_images([data])[0]))
    print(f"\nmodel:    {folder}   (also loads in timm and transformers: see {folder / 'README.md'})")
    print(f"plots:    {folder / 'loss_curve.png'}\n          {folder / 'sample_predictions.png'}")
    print(f"serve it: make app   (= .venv/bin/aimonk-hf app --model {folder})")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
