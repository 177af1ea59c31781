"""A small causal language model pre-trained on the standard library, and full fine-tunes of it on four domains.

Scored by perplexity on documents that no model has seen. Knows nothing of deltas.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.families import corpus
from benchmarks.families.base import Case, OnProgress, kept_folder, no_progress, short_hash
from patchbay.checkpoint import Checkpoint

END = "<|endoftext|>"
CALIBRATION_LINES = 256
PASSAGE = 400  # characters


@dataclass(frozen=True, slots=True)
class Training:
    """AdamW for `seconds` of processor time: warm-up over the first twentieth, then a cosine to zero."""

    seconds: float
    learning_rate: float
    batch: int = 8
    weight_decay: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of 9.5 M parameters, a tenth of them in the tied embedding."""

    vocabulary: int = 4096
    hidden: int = 256
    inner: int = 1024
    layers: int = 8
    heads: int = 4
    context: int = 128


@dataclass(frozen=True, slots=True)
class Language:
    """Codec tables, concurrency, network code and the language manual, each apart from the pre-training text."""

    cache: Path
    pretraining: Training = Training(seconds=900, learning_rate=1e-3)
    finetuning: Training = Training(seconds=300, learning_rate=3e-4)
    shape: Shape = Shape()
    max_test: int = 100  # windows of `context` tokens; each costs a vocabulary of logits for every token
    max_tasks: int | None = None
    name: str = "language"

    @property
    def tasks(self) -> tuple[str, ...]:
        return corpus.NAMES[: self.max_tasks]

    @property
    def _base_folder(self) -> Path:
        return self.cache / f"language-base-{short_hash(self.pretraining, self.shape)}"

    def has_base(self) -> bool:
        return self._base_folder.is_dir()

    def base(self, on_progress: OnProgress) -> Path:
        return kept_folder(self._base_folder, partial(self._pretrain, on_progress))

    def case(self, task: str, on_progress: OnProgress) -> Case:
        base = self.base(on_progress)
        key = short_hash(Checkpoint.open(base).fingerprint, self.finetuning)
        folder = kept_folder(self.cache / f"language-{task}-{key}", partial(self._finetune, base, task, on_progress))
        tuned = folder / "model"
        calibration = folder / "calibration.txt"
        return Case(self.name, task, base, tuned, calibration, Checkpoint.open(tuned).fingerprint)

    @torch.inference_mode()
    def logits(self, task: str, model: PreTrainedModel) -> torch.Tensor:
        rows = self._windows(task)
        parts = [model(input_ids=part).logits[:, :-1].float() for part in torch.split(rows, 16)]
        return torch.cat(parts)

    def targets(self, task: str) -> torch.Tensor:
        return self._windows(task)[:, 1:]

    def probe(self, case: Case) -> None:
        """The base predicts the same text itself: its own perplexity is what a fine-tune has to beat."""

    def _windows(self, task: str) -> torch.Tensor:
        return _windows(self.base(no_progress), task, self.shape.context, self.max_test)

    def _pretrain(self, on_progress: OnProgress, folder: Path) -> None:
        texts = corpus.general()
        _train_tokenizer(texts, self.shape).save_pretrained(folder)
        model = _new_model(self.shape, self.pretraining.seed)
        _fit(model, _stream(folder, texts), self.shape.context, self.pretraining, on_progress, "base")
        _save(model, folder)

    def _finetune(self, base: Path, task: str, on_progress: OnProgress, folder: Path) -> None:
        model = LlamaForCausalLM.from_pretrained(base, local_files_only=True)
        tokens = _stream(base, corpus.domain(task, "train"))
        _fit(model, tokens, self.shape.context, self.finetuning, on_progress, task)
        _save(model, folder / "model")
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder / "model")
        lines = _passages(corpus.domain(task, "calibration"))
        (folder / "calibration.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _fit(
    model: LlamaForCausalLM, tokens: torch.Tensor, context: int, training: Training, on_progress: OnProgress, note: str
) -> None:
    """Random windows of `tokens` until the time is spent. Processor time, so that other work does not shorten it."""
    rng = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=training.weight_decay
    )
    model.train()
    started, spent = time.process_time(), 0.0
    while spent < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(20 * spent + 0.01, 0.5 * (1 + math.cos(math.pi * spent)))
        starts = rng.integers(0, len(tokens) - context, training.batch)
        batch = torch.stack([tokens[start : start + context] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent = (time.process_time() - started) / training.seconds
        on_progress(min(1000, round(1000 * spent)), 1000, f"{note}: loss {loss.item():.3f}")


def _new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _train_tokenizer(texts: list[str], shape: Shape) -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=shape.vocabulary, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=trained._tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=shape.context,
    )


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)


def _stream(tokenizer_folder: Path, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, each closed by END."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    backend = tokenizer.backend_tokenizer
    end = tokenizer.eos_token_id
    ids = [token for encoding in backend.encode_batch(texts) for token in (*encoding.ids, end)]
    return torch.tensor(ids)


@lru_cache(maxsize=4)
def _windows(base: Path, task: str, context: int, most: int) -> torch.Tensor:
    """At most `most` windows [windows, context], spread evenly over the test documents."""
    tokens = _stream(base, corpus.domain(task, "test"))
    windows = tokens[: len(tokens) // context * context].view(-1, context)
    chosen = np.linspace(0, len(windows) - 1, min(most, len(windows))).round()
    return windows[torch.from_numpy(chosen).long()]


def _passages(texts: list[str]) -> list[str]:
    """One passage a line, as calibration files want it: blanks and line ends become single blanks."""
    flat = [" ".join(text.split()) for text in texts]
    passages = [text[start : start + PASSAGE] for text in flat for start in range(0, len(text), PASSAGE)]
    return passages[:: max(1, len(passages) // CALIBRATION_LINES)][:CALIBRATION_LINES]
