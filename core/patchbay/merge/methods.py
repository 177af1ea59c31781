"""The table of merging methods: one row each.

A new method is a pure function in a file of its own and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from patchbay.errors import UnknownMethod
from patchbay.merge.breadcrumbs import breadcrumbs, breadcrumbs_ties
from patchbay.merge.dare import dare_linear, dare_ties
from patchbay.merge.della import della, della_linear
from patchbay.merge.emr import emr
from patchbay.merge.fusion import nps
from patchbay.merge.geometry import model_stock, nuslerp, slerp
from patchbay.merge.linear import arithmetic_weights, mean_weights
from patchbay.merge.lines import lines
from patchbay.merge.method import Method
from patchbay.merge.neuro import elected_vector, neuromerging
from patchbay.merge.pcb import pcb
from patchbay.merge.recipe import MAX_TERMS, Scalar
from patchbay.merge.sce import sce
from patchbay.merge.spectral import iso_c, iso_cts, tsv_m
from patchbay.merge.svc import svc
from patchbay.merge.tall import consensus_ta, consensus_ties
from patchbay.merge.ties import ties
from patchbay.merge.wudi import wudi

# How signs are elected and what is divided by (`patchbay.merge.consensus`), and what is different elsewhere.
_ELECTION: Mapping[str, Scalar] = {"sign": "weighted", "tie": "zero", "divisor": "sizes", "normalize": True}
_AS_MERGEKIT: Mapping[str, Scalar] = {"tie": "positive", "divisor": "weights"}
_AS_PEFT: Mapping[str, Scalar] = {"sign": "unweighted", "tie": "positive", "divisor": "count"}
_AS_TIES_PAPER: Mapping[str, Scalar] = {"sign": "unweighted", "tie": "majority", "divisor": "count"}

# Densities between those of files that these methods merge about as well as whole task vectors and of files that they
# do not: 57 to 36 % (`dare_linear`) and 72 to 41 (`pcb`) in benchmarks/README.md.
THINNED, CHOSEN = 0.05, 0.1

AUTO = "auto"
BEST = "tsv_m"  # on average over tasks and sources, without tuning: benchmarks/README.md
_ROWS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="task_arithmetic",
            title="weighted sum of task vectors",
            paper="https://arxiv.org/abs/2212.04089",
            combine=arithmetic_weights,
        ),
        Method(
            name="linear",
            title="weighted mean of the fine-tuned models",
            paper="https://arxiv.org/abs/2203.05482",
            combine=mean_weights,
        ),
        Method(
            name="neuromerging",
            title="election in neuronal subspaces",
            paper="https://arxiv.org/abs/2503.05320",
            plan=neuromerging,
            vector=elected_vector,
            defaults={"lambda1": 0.0, "lambda2": 1.0, "rescale": True},
        ),
        Method(
            name="lines",
            title="weighted sum of task vectors, more of it in deeper layers",
            paper="https://arxiv.org/abs/2410.17146",
            plan=lines,
            defaults={"alpha": 0.5, "beta": 0.5},
        ),
        Method(
            name="slerp",
            title="spherical interpolation of two fine-tuned models",
            paper="https://dl.acm.org/doi/10.1145/325165.325242",
            is_weighted=False,
            plan=slerp,
            symmetric=False,
            num_terms=(2, 2),
            defaults={"t": 0.5},
        ),
        Method(
            name="nuslerp",
            title="spherical interpolation of two task vectors",
            paper="https://github.com/arcee-ai/mergekit",
            plan=nuslerp,
            num_terms=(2, 2),
            defaults={"scope": "tensor"},
        ),
        Method(
            name="model_stock",
            title="mean of fine-tuned models, as near to the base as their angles say",
            paper="https://arxiv.org/abs/2403.19522",
            is_weighted=False,
            plan=model_stock,
            num_terms=(2, MAX_TERMS),
            defaults={"filter_wise": False},
        ),
        Method(
            name="ties",
            title="the largest entries of every term, and the mean of those who agree on a sign",
            paper="https://arxiv.org/abs/2306.01708",
            merge=ties,
            needs_magnitudes=True,
            defaults={"density": 1.0, "scope": "tensor", "rescale": "none", "seed": 0, **_ELECTION},
            presets={
                "paper": {"density": 0.2, "scope": "global", **_AS_TIES_PAPER},
                "mergekit": _AS_MERGEKIT,
                "peft": _AS_PEFT,
            },
        ),
        Method(
            name="dare_linear",
            title="weighted sum of what a random dropping of entries leaves",
            paper="https://arxiv.org/abs/2311.03099",
            merge=dare_linear,
            least_density=THINNED,
            defaults={"density": 0.5, "rescale": "inverse_density", "normalize": False, "seed": 0},
            presets={
                "paper": {"density": 0.1},
                "mergekit": {"density": 1.0, "rescale": "l1"},
                "peft": {},  # the same; it has no default density
            },
        ),
        Method(
            name="dare_ties",
            title="mean of those who agree on a sign, of what a random dropping of entries leaves",
            paper="https://arxiv.org/abs/2311.03099",
            merge=dare_ties,
            least_density=THINNED,
            defaults={"density": 0.5, "rescale": "inverse_density", "seed": 0, **_ELECTION},
            presets={
                "paper": {"density": 0.1, **_AS_TIES_PAPER},
                "mergekit": {"density": 1.0, "rescale": "l1", **_AS_MERGEKIT, "normalize": False},
                "peft": _AS_PEFT,
            },
        ),
        Method(
            name="breadcrumbs",
            title="weighted sum of entries that are neither among the largest nor among the smallest",
            paper="https://arxiv.org/abs/2312.06795",
            merge=breadcrumbs,
            least_density=THINNED,
            needs_magnitudes=True,
            defaults={
                "density": 1.0,
                "gamma": 0.01,
                "prefer": "gamma",
                "rescale": "none",
                "normalize": False,
                "seed": 0,
            },
            presets={"paper": {"density": 0.14}, "mergekit": {"prefer": "density"}},
        ),
        Method(
            name="breadcrumbs_ties",
            title="mean of those who agree on a sign, of entries neither among the largest nor the smallest",
            paper="https://arxiv.org/abs/2312.06795",
            merge=breadcrumbs_ties,
            needs_magnitudes=True,
            defaults={"density": 1.0, "gamma": 0.01, "prefer": "gamma", "rescale": "none", "seed": 0, **_ELECTION},
            presets={"mergekit": {"prefer": "density", **_AS_MERGEKIT, "normalize": False}},
        ),
        Method(
            name="della",
            title="mean of those who agree on a sign, of a random dropping that spares large entries",
            paper="https://arxiv.org/abs/2406.11617",
            merge=della,
            needs_magnitudes=True,
            defaults={"density": 0.7, "epsilon": 0.15, "rescale": "inverse_probability", "seed": 0, **_ELECTION},
            presets={
                "paper": {"epsilon": 0.07, **_AS_TIES_PAPER},
                "mergekit": {"density": 1.0, "rescale": "l1", **_AS_MERGEKIT},
            },
        ),
        Method(
            name="della_linear",
            title="weighted sum of what a random dropping that spares large entries leaves",
            paper="https://arxiv.org/abs/2406.11617",
            merge=della_linear,
            least_density=THINNED,
            needs_magnitudes=True,
            defaults={"density": 0.7, "epsilon": 0.15, "rescale": "inverse_probability", "normalize": False, "seed": 0},
            presets={"mergekit": {"density": 1.0, "rescale": "l1"}},
        ),
        Method(
            name="sce",
            title="select entries by variance, weight terms by energy, erase minority signs",
            paper="https://arxiv.org/abs/2408.07990",
            merge=sce,
            needs_magnitudes=True,
            num_terms=(2, MAX_TERMS),
            defaults={"select_topk": 1.0, "tie": "zero", "least_energy": 0.0, "seed": 0},
            presets={"mergekit": {"tie": "positive", "least_energy": 1e-6}},
        ),
        Method(
            name="nps",
            title="sum of what NPS left, by how many terms keep each entry",
            paper="https://arxiv.org/abs/2505.18713",
            merge=nps,
            defaults={"literal": False},
            presets={"paper": {"literal": True}},
        ),
        Method(
            name="consensus_ta",
            title="weighted sum, where several tasks need the entry",
            paper="https://arxiv.org/abs/2405.07813",
            merge=consensus_ta,
            least_density=CHOSEN,
            needs_magnitudes=True,
            num_terms=(2, MAX_TERMS),
            defaults={"lambda": 0.4, "k": 2},
        ),
        Method(
            name="consensus_ties",
            title="sum of those who agree on a sign, where several tasks need the entry",
            paper="https://arxiv.org/abs/2405.07813",
            merge=consensus_ties,
            least_density=CHOSEN,
            needs_magnitudes=True,
            num_terms=(2, MAX_TERMS),
            defaults={"lambda": 0.4, "k": 2, "density": 0.2, "scope": "global", "tie": "zero", "seed": 0},
            presets={"paper": {"lambda": 0.4, "k": 2, "density": 0.2, "scope": "global", "tie": "majority"}},
        ),
        Method(
            name="pcb",
            title="mean weighted by how each entry competes in its task and among tasks",
            paper="https://arxiv.org/abs/2410.02396",
            merge=pcb,
            least_density=CHOSEN,
            needs_magnitudes=True,
            defaults={"ratio": 0.05, "seed": 0},
        ),
        Method(
            name="emr",
            title="one task's share of a vector that is elected for all",
            paper="https://arxiv.org/abs/2405.17461",
            merge=emr,
            needs_magnitudes=True,
            symmetric=False,
            defaults={"task": 0},
        ),
        Method(
            name="tsv_m",
            title="leading singular vectors of all tasks, whitened together",
            paper="https://arxiv.org/abs/2412.00081",
            merge=tsv_m,
        ),
        Method(
            name="iso_c",
            title="sum with all singular values set to their mean",
            paper="https://arxiv.org/abs/2502.04959",
            merge=iso_c,
        ),
        Method(
            name="iso_cts",
            title="common directions and those of each task, all of one singular value",
            paper="https://arxiv.org/abs/2502.04959",
            merge=iso_cts,
            defaults={"common": 0.8},
        ),
        Method(
            name="svc",
            title="sum with singular values calibrated against over-counting",
            paper="https://arxiv.org/abs/2602.05536",
            merge=svc,
            defaults={"lambda": 0.3, "alpha": 0.1, "agreed": False},
            presets={"code": {"lambda": 0.3, "alpha": 0.1, "agreed": True}},
        ),
        Method(
            name="wudi",
            title="least disturbance of each task on its own inputs",
            paper="https://arxiv.org/abs/2503.08099",
            merge=wudi,
            defaults={"ridge": 0.01},
        ),
    )
}


METHODS: Mapping[str, Method] = {**_ROWS, AUTO: replace(_ROWS[BEST], name=AUTO, title=f"the best on average: {BEST}")}


def find_method(name: str) -> Method:
    """The method of that name; for `auto` the one that it stands for, so that a recipe says what it means.

    Raises UnknownMethod, which lists the methods there are.
    """
    if name not in METHODS:
        raise UnknownMethod(f"there is no method {name!r}; the methods are {', '.join(METHODS)}", param="method")
    return METHODS[BEST if name == AUTO else name]
