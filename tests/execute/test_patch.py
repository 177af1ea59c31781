"""Inside the context the backbone is the merged model; after it, bit for bit what it was before."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, ItemsView, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import pico

from patchbay.architecture import Task
from patchbay.backbone import Backbone
from patchbay.checkpoint import raw_bytes
from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta, SparseRows
from patchbay.errors import BackboneError, PatchInProgress
from patchbay.execute import patch
from patchbay.execute.patch import Patcher
from patchbay.execute.trial import trial_inputs
from patchbay.merge import MatrixPlan, MergePlan, Recipe, Term, build_plan

ModelFolder = Callable[..., Path]
Pair = Callable[[str, torch.dtype], list[Delta]]
DTYPES = [torch.float32, torch.bfloat16]


def load(folder: Path, **options: str) -> Backbone:
    return Backbone.load(folder, device="cpu", **options)


def logits(backbone: Backbone) -> torch.Tensor:
    """What the model answers to one fixed input."""
    if backbone.task is Task.IMAGE_CLASSIFICATION or "embeddings.patch_embedding.weight" in backbone.specs:
        shape = (1, 3, pico.IMAGE, pico.IMAGE)
        dtype = next(backbone.model.parameters()).dtype
        inputs = {"pixel_values": torch.linspace(-1, 1, 3 * pico.IMAGE**2).reshape(shape).to(dtype)}
    elif backbone.model.main_input_name == "signal":
        inputs = trial_inputs(backbone, 1, 3)
    else:
        inputs = {"input_ids": torch.arange(4, 12)[None]}
        if backbone.task is Task.SEQ2SEQ_LM:
            inputs["decoder_input_ids"] = torch.arange(4)[None]
    with torch.inference_mode():
        output = backbone.model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def with_rows(plan: MergePlan, name: str, matrix: MatrixPlan) -> MergePlan:
    return replace(plan, matrices={**plan.matrices, name: matrix}, exact=False)


@pytest.fixture(scope="module")
def llama_deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    """Different supports and encodings: magnitude, sampled, and one whose exceptions make it lossless."""
    folder = tmp_path_factory.mktemp("deltas")
    options = [
        {"density": 0.1},
        {"method": "random", "density": 0.3, "values": "sign"},
        {"density": 0.2, "exact": True},
    ]
    return [
        pico.delta(llama, finetune_folder("llama", seed=seed), folder / f"{seed}", **each)
        for seed, each in enumerate(options, 1)
    ]


@pytest.mark.parametrize("name", pico.MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"density": 0.2, "exact": True}, {"density": 0.2}], ids=["exact", "rounded"])
def test_patched_is_the_reconstructed_model(
    model_folder: ModelFolder,
    finetune_folder: ModelFolder,
    tmp_path: Path,
    name: str,
    dtype: torch.dtype,
    options: dict[str, object],
) -> None:
    base, tuned = model_folder(name, dtype=dtype), finetune_folder(name, dtype=dtype)
    delta = pico.delta(base, tuned, tmp_path / "delta", **options)
    reconstruct(tmp_path / "delta", base, tmp_path / "rebuilt")
    expected, backbone = load(tmp_path / "rebuilt"), load(base)
    before = logits(backbone)
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert backbone.compute_digest() == expected.resident_digest
        assert torch.equal(logits(backbone), logits(expected))
        assert not torch.equal(logits(backbone), before)
    assert backbone.compute_digest() == backbone.resident_digest
    assert torch.equal(logits(backbone), before)
    if "exact" in options:
        assert expected.resident_digest == load(tuned).resident_digest


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_thousand_cycles_leave_no_trace(llama: Path, llama_deltas: list[Delta], dtype: str) -> None:
    """500 for each dtype: random plans, some row-wise, some with a scaled base, some that raise inside or half-way."""
    backbone, chance = load(llama, dtype=dtype), random.Random(dtype)
    pico.plant([backbone.tensor(name) for name in backbone.specs], start=1)
    patcher, clean = Patcher(backbone), backbone.compute_digest()
    seen = set()
    for _ in range(500):
        plan, deltas = random_plan(backbone, llama_deltas, chance)
        ending = chance.choice(["normal", "normal", "raise", "half-way"])
        if ending == "half-way":
            plan = replace(plan, vectors={**plan.vectors, "no.such.tensor": torch.ones(1)})
        try:
            with patcher.patched(plan, deltas):
                seen.add(backbone.compute_digest())
                if ending == "raise":
                    raise InterruptedError
        except (InterruptedError, KeyError):
            assert ending != "normal"
        assert backbone.compute_digest() == clean
    assert clean not in seen
    assert len(seen) > 250  # the others failed half-way


def random_plan(backbone: Backbone, known: list[Delta], chance: random.Random) -> tuple[MergePlan, list[Delta]]:
    deltas = chance.sample(known, chance.randint(1, len(known)))
    method = chance.choice(["task_arithmetic", "linear"])
    plan = pico.plan(deltas, [chance.choice([1.0, chance.uniform(0.1, 2)]) for _ in deltas], method)
    for name in chance.sample(sorted(plan.matrices), chance.choice([0, 0, 3])):
        rows = backbone.specs[name].shape[backbone.specs[name].neuron_axis or 0]
        scale = torch.ones(1) if chance.random() < 0.5 else torch.rand(chance.choice([1, rows])) + 0.5
        plan = with_rows(plan, name, MatrixPlan(scale, torch.randn(len(deltas), rows)))
    return plan, deltas


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_odd_bits_outside_the_delta_stay_inside_too(llama: Path, tmp_path: Path, dtype: str) -> None:
    """-0.0 and NaN payloads that a sparse delta does not touch are not rewritten by arithmetic."""
    name = "model.layers.0.mlp.up_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][50, 3] += 1
        return tensors

    tuned = pico.rewrite(llama, tmp_path / "tuned", change)
    delta = pico.delta(llama, tuned, tmp_path / "delta", density=1 / 8192)
    backbone = load(llama, dtype=dtype)
    pico.plant([backbone.tensor(name)], start=0)
    before = bytes(raw_bytes(backbone.tensor(name)[:50]))
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert bytes(raw_bytes(backbone.tensor(name)[:50])) == before
        assert backbone.compute_digest() != backbone.resident_digest


@pytest.fixture(scope="module")
def two_deltas(
    model_folder: ModelFolder, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Two sparse deltas of one model, made once."""
    made: dict[tuple[str, torch.dtype], list[Delta]] = {}

    def make(model: str, dtype: torch.dtype) -> list[Delta]:
        if (model, dtype) not in made:
            base, folder = model_folder(model, dtype=dtype), tmp_path_factory.mktemp("pair")
            made[model, dtype] = [
                pico.delta(
                    base, finetune_folder(model, seed=s, dtype=dtype), folder / f"{s}", density=0.3, values="bf16"
                )
                for s in (1, 2)
            ]
        return made[model, dtype]

    return make


def rows_of(neurons: int, terms: int) -> MatrixPlan:
    generator = torch.Generator().manual_seed(neurons)
    return MatrixPlan(torch.rand(neurons, generator=generator) + 0.5, torch.randn(terms, neurons, generator=generator))


ROW_WISE = [
    ("llama", "model.layers.0.mlp.up_proj.weight"),
    ("llama", "model.embed_tokens.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.weight"),
    ("gpt2", "transformer.h.1.mlp.c_proj.weight"),
    ("vit", "vit.embeddings.patch_embeddings.projection.weight"),
]


@pytest.mark.parametrize(("model", "name"), ROW_WISE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base_scale", [None, 0.7, 1.0], ids=["rows", "number", "one"])
def test_row_wise_coefficients_against_the_dense_formula(
    model_folder: ModelFolder, two_deltas: Pair, model: str, name: str, dtype: torch.dtype, base_scale: float | None
) -> None:
    backbone, deltas = load(model_folder(model, dtype=dtype)), two_deltas(model, dtype)
    spec, weight = backbone.specs[name], backbone.tensor(name).double()
    axis = spec.neuron_axis or 0
    along = [-1 if dim == axis else 1 for dim in range(len(spec.shape))]
    rows = rows_of(spec.shape[axis], 2)
    scale = rows.base_scale.double().reshape(along) if base_scale is None else base_scale
    if base_scale is not None:
        rows = replace(rows, base_scale=torch.tensor([base_scale]))
    terms = zip(rows.coefficients.double(), deltas, strict=True)
    expected = scale * weight + sum(c.reshape(along) * d.matrices[name].to_dense().double() for c, d in terms)
    with Patcher(backbone).patched(with_rows(pico.plan(deltas, [1.0, 1.0]), name, rows), deltas):
        reached = backbone.tensor(name).clone()
    torch.testing.assert_close(reached.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert backbone.compute_digest() == backbone.resident_digest


@pytest.mark.parametrize(("model", "name"), [ROW_WISE[0], *ROW_WISE[2:4]])
def test_patched_module_computes_the_plans_formula(
    model_folder: ModelFolder, two_deltas: Pair, model: str, name: str
) -> None:
    """y = a * (x W0^T) + sum_t C[t] * (x D_t^T) for outputs y, whichever way the matrix is stored."""
    backbone, deltas = load(model_folder(model)), two_deltas(model, torch.float32)
    spec = backbone.specs[name]
    module = backbone.model.get_submodule(spec.parameter.removesuffix(".weight"))

    def neurons_first(matrix: torch.Tensor) -> torch.Tensor:
        return matrix if spec.neuron_axis == 0 else matrix.T

    x = torch.linspace(-1, 1, neurons_first(backbone.tensor(name)).shape[1])[None]
    rows = rows_of(spec.shape[spec.neuron_axis or 0], 2)
    parts = [x @ neurons_first(delta.matrices[name].to_dense()).T for delta in deltas]
    expected = rows.base_scale * (x @ neurons_first(backbone.tensor(name)).T)
    expected = expected + sum(c * part for c, part in zip(rows.coefficients, parts, strict=True))
    plan = replace(pico.plan(deltas, [1.0, 1.0]), matrices={name: rows}, vectors={})
    with Patcher(backbone).patched(plan, deltas), torch.inference_mode():
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(module(x) - bias, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_is_rounded_once(model_folder: ModelFolder, two_deltas: Pair, dtype: torch.dtype) -> None:
    """The sum of both in fp32, then one rounding."""
    backbone, deltas = load(model_folder("llama", dtype=dtype)), two_deltas("llama", dtype)
    base = {name: backbone.tensor(name).clone() for name in backbone.specs}
    with Patcher(backbone).patched(pico.plan(deltas, [1.0, 1.0], "linear"), deltas):
        for name in deltas[0].matrices:
            halves = [0.5 * delta.matrices[name].to_dense() for delta in deltas]
            expected = (base[name].float() + (halves[0] + halves[1])).to(dtype)
            assert torch.equal(backbone.tensor(name), expected)


def test_tied_tensors_move_together(llama: Path, llama_deltas: list[Delta]) -> None:
    backbone = load(llama)
    state = backbone.model.state_dict()
    with Patcher(backbone).patched(pico.plan(llama_deltas[:1], [1.0]), llama_deltas[:1]):
        assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
        assert not torch.equal(state["lm_head.weight"], pico.weights(llama)["model.embed_tokens.weight"])


def test_exceptions_hold_for_the_whole_delta_only(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", density=0.1, exact=True)
    plain = replace(delta, exceptions={})
    digests = {}
    for key, part, weight in [("exact", delta, 1.0), ("plain", plain, 1.0), ("half", delta, 0.5), ("-", plain, 0.5)]:
        backbone = load(llama)
        with Patcher(backbone).patched(pico.plan([part], [weight]), [part]):
            digests[key] = backbone.compute_digest()
    assert digests["exact"] == load(llama_tuned).resident_digest
    assert digests["exact"] != digests["plain"]
    assert digests["half"] == digests["-"]


def test_exceptions_of_another_dtype_are_left_out(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    """Their bits are fp32; a bf16 resident takes round(base + delta)."""
    delta = pico.delta(llama, llama_tuned, tmp_path / "d", density=0.5, exact=True)
    assert delta.matrices.keys() <= delta.exceptions.keys()
    backbone = load(llama, dtype="bf16")
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        for name, tensor in pico.weights(llama_tuned).items():
            torch.testing.assert_close(backbone.tensor(name).float(), tensor, rtol=2**-6, atol=0.02)
    assert backbone.compute_digest() == backbone.resident_digest


def test_integer_tensors_are_put_in_and_taken_out(model_folder: ModelFolder, tmp_path: Path) -> None:
    counter = "resnet.embedder.embedder.normalization.num_batches_tracked"
    base = model_folder("resnet")
    tuned = pico.rewrite(base, tmp_path / "tuned", lambda tensors: {**tensors, counter: tensors[counter] + 7})
    delta, backbone = pico.delta(base, tuned, tmp_path / "d"), load(base)
    with Patcher(backbone).patched(pico.plan([delta], [1.0]), [delta]):
        assert backbone.tensor(counter).item() == 7
    assert backbone.tensor(counter).item() == 0


def test_nesting_is_refused_and_harmless(llama: Path, llama_deltas: list[Delta]) -> None:
    backbone = load(llama)
    patcher, plan = Patcher(backbone), pico.plan(llama_deltas[:1], [1.0])
    with patcher.patched(plan, llama_deltas[:1]):
        inside = backbone.compute_digest()
        with pytest.raises(PatchInProgress), patcher.patched(plan, llama_deltas[:1]):
            pytest.fail("a second patch was let in")
        assert backbone.compute_digest() == inside
    assert backbone.compute_digest() == backbone.resident_digest
    with patcher.patched(plan, llama_deltas[:1]):
        assert backbone.compute_digest() == inside


def test_another_thread_is_refused(llama: Path, llama_deltas: list[Delta]) -> None:
    patcher, plan = Patcher(load(llama)), pico.plan(llama_deltas[:1], [1.0])
    raised: list[Exception] = []

    def second() -> None:
        try:
            with patcher.patched(plan, llama_deltas[:1]):
                pass
        except Exception as error:
            raised.append(error)

    with patcher.patched(plan, llama_deltas[:1]):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert [type(error) for error in raised] == [PatchInProgress]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_whatever_is_raised_inside_restores(llama: Path, llama_deltas: list[Delta], kind: type[BaseException]) -> None:
    backbone = load(llama)
    patcher = Patcher(backbone)
    with pytest.raises(kind), patcher.patched(pico.plan(llama_deltas[:1], [1.0]), llama_deltas[:1]):
        assert backbone.compute_digest() != backbone.resident_digest
        raise kind
    assert backbone.compute_digest() == backbone.resident_digest
    with patcher.patched(pico.plan(llama_deltas[:1], [1.0]), llama_deltas[:1]):
        pass


class Interrupted(dict[str, torch.Tensor]):
    """Vectors of a plan, of which the second cannot be had; says what the backbone was like by then."""

    def __init__(self, vectors: dict[str, torch.Tensor], backbone: Backbone) -> None:
        super().__init__(vectors)
        self.backbone = backbone
        self.digest = ""

    def items(self) -> ItemsView[str, torch.Tensor]:
        def some() -> Iterator[tuple[str, torch.Tensor]]:
            yield next(iter(super(Interrupted, self).items()))
            self.digest = self.backbone.compute_digest()
            raise MemoryError

        return some()  # type: ignore[return-value]


def test_failure_while_applying_restores(llama: Path, llama_deltas: list[Delta]) -> None:
    backbone = load(llama)
    patcher, plan = Patcher(backbone), pico.plan(llama_deltas, [1.0, 0.5, 0.2])
    vectors = Interrupted(dict(plan.vectors), backbone)
    with pytest.raises(MemoryError), patcher.patched(replace(plan, vectors=vectors), llama_deltas):
        pytest.fail("half a patch was let in")
    assert vectors.digest not in ("", backbone.resident_digest)
    assert backbone.compute_digest() == backbone.resident_digest
    with patcher.patched(plan, llama_deltas):
        assert backbone.compute_digest() != backbone.resident_digest


def test_delta_that_does_not_fit_restores(llama: Path, llama_deltas: list[Delta]) -> None:
    """Positions beyond the tensor, after other tensors were patched."""
    delta = llama_deltas[0]
    last = max(delta.matrices)
    far = SparseRows(delta.matrices[last].shape, torch.tensor([10**6], dtype=torch.int32), torch.ones(1))
    broken = replace(delta, matrices={**delta.matrices, last: far})
    backbone = load(llama)
    with pytest.raises(IndexError), Patcher(backbone).patched(pico.plan([broken], [1.0]), [broken]):
        pytest.fail("half a patch was let in")
    assert backbone.compute_digest() == backbone.resident_digest


def test_a_tensor_stored_whole_by_one_and_pruned_by_another_is_rounded_once(
    model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = model_folder("llama", dtype=torch.bfloat16)
    backbone = Backbone.load(folder)
    tuned = finetune_folder("llama", dtype=torch.bfloat16)
    pruned = pico.delta(folder, tuned, tmp_path / "a.safetensors", density=0.3)
    name = next(iter(pruned.matrices))
    whole = replace(
        pruned,
        matrices={n: rows for n, rows in pruned.matrices.items() if n != name},
        vectors={**pruned.vectors, name: torch.full(pruned.matrices[name].shape, 1e-3)},
    )
    recipe = Recipe(terms=(Term(delta="a", weight=0.6), Term(delta="b", weight=0.4)))
    canonical = recipe.canonical({"a": "sha256:" + "a" * 64, "b": "sha256:" + "b" * 64}, True, {})
    summed = 0.6 * pruned.matrices[name].to_dense() + 0.4 * whole.vectors[name]
    expected = (backbone.tensor(name).float() + summed).to(torch.bfloat16)
    with Patcher(backbone).patched(build_plan(canonical, [pruned, whole]), [pruned, whole]):
        assert torch.equal(backbone.tensor(name), expected)
    assert backbone.compute_digest() == backbone.resident_digest


def test_weights_that_could_not_be_restored_are_never_served_again(
    llama: Path, llama_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is injected: no input is known that makes writing a tensor's own bits back fail."""
    backbone = Backbone.load(llama)
    delta = pico.delta(llama, llama_tuned, tmp_path / "a.safetensors", density=0.3)
    patcher, plan = Patcher(backbone), pico.plan([delta], [1.0])
    write, calls = patch._write_bits, []

    def out_of_memory_once(tensor: torch.Tensor, positions: torch.Tensor | None, bits: torch.Tensor) -> None:
        calls.append(tensor)
        if len(calls) == 1:
            raise MemoryError
        write(tensor, positions, bits)

    with patcher.patched(plan, [delta]):
        monkeypatch.setattr(patch, "_write_bits", out_of_memory_once)
    assert patcher.damaged and len(calls) > 5, "the other tensors are put back all the same"
    with pytest.raises(BackboneError, match="restart"), patcher.patched(plan, [delta]):
        pass
