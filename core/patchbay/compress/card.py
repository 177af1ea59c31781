"""The model card of a merge: what was merged, how and from which base, so that it can be made again."""

from __future__ import annotations

import json
from collections.abc import Iterable

import patchbay
from patchbay.compress.merged_model import MergedModel
from patchbay.compress.terms import Opened

TAGS = ("merge", "patchbay")


def model_card(model: MergedModel, title: str, relation: str = "merge", library: str = "transformers") -> str:
    """README.md with the metadata that model hubs read."""
    return "\n".join([*_metadata(model, relation, library), "", f"# {title}", "", *_body(model), ""])


def _metadata(model: MergedModel, relation: str, library: str) -> Iterable[str]:
    yield from ("---", "base_model:", f"- {json.dumps(model.base.name)}", f"base_model_relation: {relation}")
    yield from (f"library_name: {library}", "tags:", *(f"- {tag}" for tag in TAGS), "---")


def _body(model: MergedModel) -> Iterable[str]:
    method, recipe = model.method, model.recipe
    yield f"Made with Patchbay {patchbay.__version__}, tensor by tensor in fp32, rounded once."
    yield from ("", "## Recipe", "", "```", model.written, "```", "")
    yield f"Method: `{method.name}`, {method.title} ({method.paper})."
    yield from ("", "```json", json.dumps(recipe.model_dump(mode="json"), indent=2), "```", "")
    yield from ("| term | weight | what | digest |", "|---|---|---|---|")
    weights = {term.delta: term.weight for term in recipe.terms}
    yield from (_row(term, weights[term.name]) for term in sorted(model.terms, key=lambda term: term.name))
    if model.owner is not None and model.added:
        yield from ("", f"The classification head is that of `{model.owner.name}`.")
    yield from ("", "## Base", "", f"`{model.base.name}`, fingerprint `{model.base.checkpoint.fingerprint}`.")


def _row(term: Opened, weight: float) -> str:
    compression = term.source.manifest.compression
    delta = f"delta, {compression.method} at density {compression.density:g}"
    return f"| `{term.name}` | {weight:g} | {'fine-tuned model' if term.is_model else delta} | `{term.digest}` |"
