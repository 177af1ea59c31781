"""Random models of a few thousand parameters, made on the fly: one of each layout that Patchbay serves.

Matrices have 64 columns at least, so that most are large enough to be pruned. Every maker returns its folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from patchbay.architecture import Architecture
from patchbay.checkpoint import Checkpoint
from patchbay.compress.compress import Options, compress
from patchbay.compress.options import ONE_SIZE
from patchbay.delta import Delta, read_delta
from patchbay.merge import MergePlan, Recipe, Term, build_plan
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification

Maker = Callable[..., Path]
WEIGHTS = "model.safetensors"
VOCAB = 96
HIDDEN = 64
INNER = 128
HEADS = 4
IMAGE = 16
LABELS = ("cat", "dog", "owl")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
ODD = {torch.float32: (-(2**31), 0x7FC12345, 0x7F812345), torch.bfloat16: (-(2**15), 0x7FC5, 0x7F85)}
_TEXT = "the a my your one two big small red green cat dog owl fox runs eats sees likes good bad film was is and not"
WORDS = tuple(_TEXT.split())


def tokenizer(folder: Path) -> Path:
    """Whole words in lower case, those of `WORDS`; ids stay below `VOCAB`."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


def llama(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2, tied: bool = True
) -> Path:
    """A causal LM whose embedding and output matrix are one tensor unless `tied` is off, with a tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return tokenizer(_save(LlamaForCausalLM, config, folder, seed, dtype))


def gpt2(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2) -> Path:
    """A causal LM of `Conv1D`: matrices stored [in, out]. The output matrix is tied."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=128,
        n_embd=HIDDEN,
        n_layer=layers,
        n_head=HEADS,
        n_inner=INNER,
        bos_token_id=2,
        eos_token_id=3,
    )
    return tokenizer(_save(GPT2LMHeadModel, config, folder, seed, dtype))


def causal(
    folder: Path, *, model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """A causal LM of any architecture that transformers knows. Attention looks back 24 tokens where the architecture
    has a window, and weights are four times as large as they start, so that it matters.
    """
    known = AutoConfig.for_model(model_type)
    # A key that the architecture does not know would stay in the config, where a cache may find it.
    small = {key: value for key, value in _SMALL.items() if hasattr(known, key)}
    small = {key: value for key, value in small.items() if known.attribute_map.get(key) not in small} | changes
    config = AutoConfig.for_model(model_type, **small)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        for parameter in model.parameters():
            parameter.data.mul_(4 if parameter.dim() > 1 else 1).add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return tokenizer(folder)


# What architectures call the same thing; each takes what it knows.
_SMALL: Mapping[str, object] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), INNER),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("sliding_window", "local_attention"), 24),
    **{"vocab_size": VOCAB, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16},
    **{"use_sliding_window": True, "max_window_layers": 0, "attention_types": [[["global", "local"], 1]]},
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "rotary_dim": 8},
}


def bert_classifier(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """An encoder with a classification head; tensors are named `bert.*` and `classifier.*`."""
    config = _bert(layers, **_labels(labels))
    return tokenizer(_save(BertForSequenceClassification, config, folder, seed, dtype))


def bert_encoder(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2, pooler: bool = True
) -> Path:
    """A plain encoder, an embedding model; tensors carry no prefix."""
    return tokenizer(_save(BertModel, _bert(layers), folder, seed, dtype, add_pooling_layer=pooler))


def vit(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """An image classifier, whose names in the file differ from those in memory."""
    config = ViTConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=8,
        **_labels(labels),
    )
    return _save(ViTForImageClassification, config, folder, seed, dtype)


def t5(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 1) -> Path:
    """An encoder-decoder whose three embeddings are one tensor, with a tokenizer."""
    config = T5Config(
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=INNER,
        num_layers=layers,
        num_heads=HEADS,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    return tokenizer(_save(T5ForConditionalGeneration, config, folder, seed, dtype))


def clip_vision(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2) -> Path:
    """CLIP's image tower, an embedding model."""
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=8,
    )
    return _save(CLIPVisionModel, config, folder, seed, dtype)


def resnet(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, labels: tuple[str, ...] = LABELS
) -> Path:
    """An image classifier with batch norms, whose counters are integer tensors of the checkpoint."""
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        **_labels(labels),
    )
    return _save(ResNetForImageClassification, config, folder, seed, dtype)


def neuript(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    labels: tuple[str, ...] = LABELS,
) -> Path:
    """An EEG classifier; every block but the first merges two moments and has two experts in each layer."""
    config = NeurIPTConfig(
        hidden_size=HIDDEN,
        num_heads=HEADS,
        intermediate_size=HIDDEN,
        expert_size=HIDDEN,
        merges=(1, 2, 2, 2)[:layers],
        experts=(0, 2, 2, 2)[:layers],
        **_labels(labels),
    )
    return _save(NeurIPTForEEGClassification, config, folder, seed, dtype)


MAKERS: Mapping[str, Maker] = {
    "llama": llama,
    "gpt2": gpt2,
    "bert_classifier": bert_classifier,
    "bert_encoder": bert_encoder,
    "vit": vit,
    "t5": t5,
    "clip_vision": clip_vision,
    "resnet": resnet,
    "neuript": neuript,
}


def perturb(folder: Path, out: Path, seed: int = 1, scale: float = 1e-2) -> Path:
    """A fine-tune: every float tensor of `folder` plus normal noise of size `scale`, in its own dtype."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = scale * torch.randn(tensor.shape, generator=generator)
        return (tensor.float() + noise).to(tensor.dtype) if tensor.is_floating_point() else tensor

    return rewrite(folder, out, lambda tensors: {name: moved(tensor) for name, tensor in tensors.items()})


def grow(base: Path, out: Path, tokens: int) -> Path:
    """A fine-tune with that many tokens, as transformers resizes a vocabulary; every float tensor moves."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = kind.from_pretrained(base, dtype="auto")
        model.resize_token_embeddings(tokens)
    model.save_pretrained(out / "resized")
    return perturb(out / "resized", out / "tuned")


def delta_file(base: Path, finetuned: Path, out: Path, **options: Any) -> Path:
    """The fine-tune compressed with `Options(**options)`, by magnitude unless they say another method, in `out`."""
    method = options.get("method", "magnitude")
    given = {"method": method, "values": "auto" if method == "lossless" else "int8"} | at_density(method, 0.05)
    compress(base, finetuned, out, Options(**given | options))
    return out


def at_density(method: str, density: float) -> dict[str, float]:
    """The option, for methods that take it."""
    return {} if method in ONE_SIZE else {"density": density}


def delta(base: Path, finetuned: Path, out: Path, **options: Any) -> Delta:
    """The same, read back as a server reads it."""
    checkpoint = Checkpoint.open(base)
    file = delta_file(base, finetuned, out, **options)
    return read_delta(file, Architecture.of(checkpoint).specs, checkpoint.fingerprint, read_base=checkpoint.read)


def plan(
    deltas: Sequence[Delta],
    weights: Sequence[float],
    method: str = "task_arithmetic",
    scale: float = 1.0,
    **params: float | bool | str,
) -> MergePlan:
    """The merge of `deltas` in the given order, as a recipe would name it."""
    names = [f"d{number}" for number in range(len(deltas))]
    terms = tuple(Term(delta=name, weight=weight) for name, weight in zip(names, weights, strict=True))
    digests = {name: delta.manifest.payload_sha256 for name, delta in zip(names, deltas, strict=True)}
    recipe = Recipe(method=method, terms=terms, scale=scale, params=params)
    return build_plan(recipe.canonical(digests, symmetric=False, defaults={}), deltas)


def plant(tensors: Iterable[torch.Tensor], start: int) -> None:
    """Writes -0.0, a quiet and a signalling NaN with payloads into every large enough tensor, from entry `start` on."""
    for tensor in tensors:
        if tensor.dtype in ODD and tensor.numel() > 16:
            odd = torch.tensor(ODD[tensor.dtype], dtype=INTEGERS[tensor.dtype])
            tensor.view(-1).view(odd.dtype)[start : start + len(odd)] = odd


def rewrite(folder: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Path:
    """A copy of `folder` with `change(its tensors)` as its weights."""
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    save_weights(out, change(weights(folder)))
    return out


def reconfigure(folder: Path, out: Path, **changes: object) -> Path:
    """A copy of `folder` whose config.json has `changes`; the weights are the same."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text("utf-8")) | changes
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder with a single weight file, under their stored names."""
    return load_file(folder / WEIGHTS)


def save_weights(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def _bert(layers: int, **more: object) -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        pad_token_id=0,
        **more,
    )


def _labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _save(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    folder: Path,
    seed: int,
    dtype: torch.dtype,
    **more: object,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config, **more).to(dtype)
        # Norms and biases start at 1 and 0, where much goes wrong unseen: move them too.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder
