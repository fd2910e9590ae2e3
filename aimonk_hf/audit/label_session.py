"""Review the labels of a dataset, one attribute at a time, in the order in which answers help most."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import RLock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.audit.learner import Learner, cached_features
from aimonk_hf.audit.queues import QUEUES, Waiting, build_queues, choose_page, probabilities
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.duplicates import Pair, Thumbnails, find_duplicates, group_numbers, keep_thumbnail
from aimonk_hf.data.label_checks import count_labels
from aimonk_hf.data.labels import cell_text
from aimonk_hf.data.reviews import LABEL_OF, Review, append_reviews, read_reviews, reviews_path
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.report import score_unseen
from aimonk_hf.evaluation.split_file import parts_of
from aimonk_hf.modeling.prediction import Predicting
from aimonk_hf.storage import read_json, write_json

Floats = NDArray[np.floating[Any]]

GUIDE_FILE = "label_guide.json"  # what an attribute means, and examples of both kinds
_FILLED = 0.8  # probability from which on a missing label is prefilled


@dataclass
class LabelSession:
    """Queues, answers and progress; every method may be called by several threads.

    `scores` [N, K] are those of a model for images that it has not seen, `report` [N] marks the report part. `features`
    computes the features [N, D] that a head learns on; it and the search for near-duplicates run in a thread of their
    own.
    """

    dataset: AttributeDataset
    scores: Floats | None = None
    report: NDArray[np.bool_] | None = None
    features: Callable[[], Floats] | None = None
    seed: int = 0
    learner: Learner | None = None
    preparing: str = ""
    pairs: list[Pair] = field(default_factory=list)

    def __post_init__(self) -> None:
        n_images, source = len(self.dataset), Path(self.dataset.labels.source)
        self.path, self.guide_path = reviews_path(source), source.with_name(GUIDE_FILE)
        self.labels = self.dataset.labels.values.astype(np.float64)
        self.groups, self.lock = np.arange(n_images), RLock()
        self.random = np.random.default_rng(self.seed)
        self.reviews: list[Review] = []
        self.done: dict[str, set[int]] = {name: set() for name in self.dataset.attributes}
        self.skipped: dict[str, set[int]] = {name: set() for name in self.dataset.attributes}
        self.pages: list[list[Review]] = []  # of this session, for undo
        self.agreed = self.suggested = self.given = 0
        self.row_of = {name: row for row, name in enumerate(self.dataset.labels.images)}
        self.learned: Floats | None = None
        self.read_size = 0
        self._read()

    @property
    def queues(self) -> dict[str, str]:
        """Return the queues with their titles."""
        return QUEUES

    def prepare(self) -> Thread:
        """Find near-duplicates and compute features in a thread; `preparing` says what it does, or why it ended."""
        thread = Thread(target=self._prepare, daemon=True)
        thread.start()
        return thread

    def _prepare(self) -> None:
        self.preparing = "Looking for near-duplicates…"
        paths, kept = self.dataset.paths, dict[Path, Thumbnails]()
        self.dataset.find_problems(check=partial(keep_thumbnail, kept, None))
        pairs = find_duplicates(paths, list(map(kept.get, paths)))
        with self.lock:
            self.pairs, self.groups = pairs, group_numbers(len(self.dataset), pairs)
        if self.features is None:
            self.preparing = ""
            return
        self.preparing = "Computing features, on which suggestions are learned…"
        try:
            learner = Learner(self.features(), self.labels.copy())
        except (AimonkError, OSError) as error:
            self.preparing = f"No suggestions are learned: {error}"
            return
        with self.lock:
            self.learner, self.preparing = learner, ""

    def page(self, attribute: str, queue: str, size: int) -> dict[str, Any]:
        """Return the next images of a queue with label, suggestion and reason, and what is left in every queue."""
        if queue not in QUEUES:
            raise AimonkError(f"There is no queue {queue!r}: choose {', '.join(QUEUES)}")
        with self.lock:
            self._read()
            column, queues = self._queues(attribute)
            done = self.done[attribute] | self.skipped[attribute]
            chosen = choose_page(queues, queue, size, done, self.groups, self.random)
            if not chosen and self.skipped[attribute]:  # what was skipped comes again at the end
                self.skipped[attribute].clear()
                chosen = choose_page(queues, queue, size, self.done[attribute], self.groups, self.random)
            left = {name: sum(one.row not in self.done[attribute] for one in rows) for name, rows in queues.items()}
            probability = self._probability(column)
            return {"items": [self._item(one, column, probability) for one in chosen], "left": left}

    def answer(self, attribute: str, who: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """Append the answers {row, old, new, queue, suggested} of a page; return images that others have changed."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        column = self._column(attribute)
        with self.lock:
            self._read()
            page, changed = [], []
            for one in answers:
                row, new, queue = one.get("row"), one.get("new"), one.get("queue")
                if not isinstance(row, int) or not 0 <= row < len(self.labels):
                    raise AimonkError(f"There is no image {row}")
                if new not in LABEL_OF or queue not in QUEUES:
                    raise AimonkError(
                        f"An answer is 1, 0 or NA in one of {', '.join(QUEUES)}, found {new!r}, {queue!r}"
                    )
                old = cell_text(self.labels[row, column])
                if one.get("old") not in (None, old):
                    changed.append(self.dataset.labels.images[row])
                page.append(Review(self.dataset.labels.images[row], attribute, old, str(new), str(queue), who, now))
            append_reviews(self.path, page)
            self.pages.append(page)
            self.given += len(page)
            suggested = [one for one in answers if one.get("suggested") in ("0", "1") and one["new"] != "NA"]
            self.suggested += len(suggested)
            self.agreed += sum(one["suggested"] == one["new"] for one in suggested)
            self._read()
        return {"changed_meanwhile": changed}

    def undo(self, who: str) -> list[str]:
        """Take back the last page of this session by answers that restore its labels; return its images."""
        with self.lock:
            if not self.pages:
                return []
            now, page = datetime.now(UTC).isoformat(timespec="seconds"), self.pages.pop()
            append_reviews(
                self.path, [one._replace(old=one.new, new=one.old, queue="undo", who=who, time=now) for one in page]
            )
            self.given -= len(page)
            self._read()
            return [one.image for one in page]

    def skip(self, attribute: str, rows: list[int]) -> None:
        """Show these rows of an attribute after all others."""
        self._column(attribute)
        with self.lock:
            self.skipped[attribute].update(rows)

    def state(self, attribute: str) -> dict[str, Any]:
        """Return counts of every attribute, the guide of this one, progress, and what the head has gained."""
        column = self._column(attribute)
        with self.lock:
            self._read()
            columns = zip(self.dataset.attributes, count_labels(self.labels).tolist(), strict=True)
            counts = [
                {
                    "name": name,
                    "present": present,
                    "absent": absent,
                    "missing": missing,
                    "reviewed": len(self.done[name]),
                }
                for name, (present, absent, missing) in columns
            ]
            agreement = self.agreed / self.suggested if self.suggested else None
            labels, learned, learner = self.labels.copy(), self._learned(), self.learner
        gain = None if learner is None or learned is None else learner.gain(labels, learned, column, self.seed)
        progress = {"given": self.given, "agreement": agreement, "gain": gain, "preparing": self.preparing}
        return {"attributes": counts, "queues": QUEUES, "guide": self.guide().get(attribute, {}), **progress}

    def guide(self) -> dict[str, Any]:
        """Return definition and pinned examples by attribute: {"definition", "yes": [images], "no": [images]}."""
        return read_json(self.guide_path) if self.guide_path.is_file() else {}

    def write_guide(self, attribute: str, definition: str | None, row: int | None, kind: str | None) -> dict[str, Any]:
        """Set an attribute's definition, or pin an image as an example ("yes", "no"; None: unpin); return its guide."""
        self._column(attribute)
        with self.lock:
            guide = self.guide()
            own = {"definition": "", "yes": [], "no": []} | guide.get(attribute, {})
            if definition is not None:
                own["definition"] = definition[:500]
            if row is not None:
                name = self.dataset.labels.images[row]
                own |= {side: [one for one in own[side] if one != name] for side in ("yes", "no")}
                if kind in ("yes", "no"):
                    own[kind] = [*own[kind], name][-4:]
            write_json(self.guide_path, guide | {attribute: own})
        return own

    def _read(self) -> None:
        """Take over the answers of others, and of this session, from the file."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self.read_size:
            return
        self.read_size, reviews = size, read_reviews(self.path)
        n_known = len(self.reviews)
        if reviews[:n_known] != self.reviews:  # an image was removed with its answers
            n_known = 0
        for one in reviews[n_known:]:
            if one.attribute in self.done and one.image in self.row_of:
                row, column = self.row_of[one.image], self.dataset.attributes.index(one.attribute)
                self.labels[row, column] = LABEL_OF[one.new]
                (self.done[one.attribute].discard if one.queue == "undo" else self.done[one.attribute].add)(row)
                self.learned = None
        self.reviews = reviews

    def _column(self, attribute: str) -> int:
        if attribute not in self.dataset.attributes:
            raise AimonkError(f"There is no attribute {attribute!r}")
        return self.dataset.attributes.index(attribute)

    def _learned(self) -> Floats | None:
        if self.learned is None and self.learner is not None:
            self.learned = self.learner.scores(self.labels)
        return self.learned

    def _probability(self, column: int) -> Floats:
        known = [table[:, column] for table in (self.scores, self._learned()) if table is not None]
        return probabilities(self.labels[:, column], *known)

    def _queues(self, attribute: str) -> tuple[int, dict[str, list[Waiting]]]:
        column = self._column(attribute)
        report = np.zeros(len(self.labels), bool) if self.report is None else self.report
        seed = int(hashlib.sha256(f"{self.seed} {attribute}".encode()).hexdigest()[:8], 16)
        own, probability = self.labels[:, column], self._probability(column)
        return column, build_queues(own, probability, self.pairs, report, seed)

    def _item(self, one: Waiting, column: int, probability: Floats) -> dict[str, Any]:
        label, likely = cell_text(self.labels[one.row, column]), float(probability[one.row])
        hidden = one.queue == "report" or np.isnan(likely)
        suggested = None if hidden else str(int(likely >= 0.5))
        filled = label if label != "NA" or hidden or max(likely, 1 - likely) < _FILLED else suggested
        shown = {"label": label, "suggested": suggested, "probability": None if hidden else round(likely, 3)}
        place = {"row": one.row, "name": self.dataset.labels.images[one.row], "queue": one.queue, "reason": one.reason}
        return {**place, **shown, "filled": filled}


def session_of_model(
    model: Predicting, dataset: AttributeDataset, features: Callable[[], Floats] | None = None
) -> LabelSession:
    """Return a session with a model's scores of images that it has not seen; by default its own features teach.

    Raises `AimonkError` where the labels lack an attribute of the model.
    """
    scores, _ = score_unseen(model, dataset)
    report = np.array([part == "report" for part in parts_of(model, dataset)[0]])
    if features is None and model.folder:
        features = partial(cached_features, f"local-dir:{model.folder}", dataset.paths)
    return LabelSession(dataset, scores, report, features)
