"""Text classification: a real encoder fine-tuned on real tasks from `label<TAB>text` files.

What it leaves are ordinary Hugging Face folders. Knows nothing of deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

OnProgress = Callable[[int, int, str], None]

HELD_OUT = 512  # training rows that no model is trained on: calibration inputs come from them
MAX_TEST = 1000
MAX_TOKENS = 64
BATCH = 32


@dataclass(frozen=True, slots=True)
class Rows:
    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class TextTask:
    """`train` is what models are fitted to, `held_out` what compression may look at, `test` what scores come from."""

    name: str
    labels: tuple[str, ...]
    train: Rows
    held_out: Rows
    test: Rows


@dataclass(frozen=True, slots=True)
class Training:
    """AdamW with a linear warm-up over the first 6 % of the steps, then linear decay to zero; the new head learns
    `head_factor` times faster than the pre-trained weights.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.01
    head_factor: float = 1.0
    seed: int = 0


def load_task(folder: Path) -> TextTask:
    """Reads `train.tsv` and `test.tsv`. Splits and the cut to MAX_TEST rows are drawn with a fixed seed."""
    train, test = _read(folder / "train.tsv"), _read(folder / "test.tsv")
    names = sorted({label for label, _ in train})
    order = np.random.default_rng(0).permutation(len(train))
    chosen = np.random.default_rng(0).permutation(len(test))[:MAX_TEST]
    return TextTask(
        name=folder.name,
        labels=tuple(names),
        train=_rows(train, order[HELD_OUT:], names),
        held_out=_rows(train, order[:HELD_OUT], names),
        test=_rows(test, np.sort(chosen), names),
    )


def probe_accuracy(base: Path, task: TextTask) -> float:
    """Logistic regression on the frozen encoder's mean-pooled embeddings: what a fine-tune has to beat."""
    model, tokenizer = _quiet(AutoModel, base), AutoTokenizer.from_pretrained(base, local_files_only=True)
    train, test = (_embed(model, tokenizer, rows.texts) for rows in (task.train, task.test))
    probe = LogisticRegression(C=10.0, max_iter=1000).fit(train, task.train.labels)
    return float(np.mean(probe.predict(test) == np.array(task.test.labels)))


def finetune(base: Path, task: TextTask, out: Path, training: Training, on_progress: OnProgress) -> None:
    """Fine-tunes all weights and a new head, and saves an ordinary folder with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    torch.manual_seed(training.seed)
    model = _quiet(
        AutoModelForSequenceClassification,
        base,
        id2label=dict(enumerate(task.labels)),
        label2id={label: index for index, label in enumerate(task.labels)},
    )
    model.train()
    steps = training.epochs * (len(task.train) // BATCH)
    head = [p for name, p in model.named_parameters() if name.startswith("classifier.")]
    body = [p for name, p in model.named_parameters() if not name.startswith("classifier.")]
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": head, "lr": training.head_factor * training.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.06 * steps), (steps - step) / (0.94 * steps))
    )
    for step, chosen in enumerate(_batches(task.train, training)):
        batch = _tokens(tokenizer, [task.train.texts[row] for row in chosen])
        loss = F.cross_entropy(model(**batch).logits, torch.tensor([task.train.labels[row] for row in chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_progress(step + 1, steps, f"{task.name}: loss {loss.item():.3f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """[N, classes] in the order of `texts`; batched by length, as padding is wasted work."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    model.eval()  # type: ignore[no-untyped-call]
    parts = [
        model(**_tokens(tokenizer, [texts[i] for i in order[start : start + 64]])).logits.float()
        for start in range(0, len(order), 64)
    ]
    logits = torch.cat(parts)
    return logits[torch.argsort(torch.tensor(order))]


def _batches(rows: Rows, training: Training) -> Iterator[list[int]]:
    """Random batches of texts of similar length: sorted within random runs of 16 batches."""
    rng = np.random.default_rng(training.seed)
    for _ in range(training.epochs):
        order = rng.permutation(len(rows))
        runs = [
            sorted(run, key=lambda row: len(rows.texts[row]))
            for run in np.split(order, range(16 * BATCH, len(order), 16 * BATCH))
        ]
        batches = [list(map(int, run[start : start + BATCH])) for run in runs for start in range(0, len(run), BATCH)]
        full = [batch for batch in batches if len(batch) == BATCH][: len(rows) // BATCH]
        yield from (full[index] for index in rng.permutation(len(full)))


def _embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = _tokens(tokenizer, texts[start : start + 64])
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            rows.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(rows).numpy()


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"))


def _quiet(kind: Any, folder: Path, **options: object) -> PreTrainedModel:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model: PreTrainedModel = kind.from_pretrained(folder, local_files_only=True, **options)
    return model


def _read(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text("utf-8").splitlines()
    return [(label, text) for label, text in (line.split("\t", 1) for line in lines)]


def _rows(pairs: list[tuple[str, str]], chosen: np.ndarray, names: list[str]) -> Rows:
    index = {name: number for number, name in enumerate(names)}
    return Rows([pairs[row][1] for row in chosen], [index[pairs[row][0]] for row in chosen])
