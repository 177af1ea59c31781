"""The artefact: a compressed task vector and its file."""

from patchbay.delta.delta import Delta, Exceptions, NeuronStatistics, SparseRows
from patchbay.delta.file import DeltaFile, read_delta, write_delta
from patchbay.delta.low_rank import Factors
from patchbay.delta.manifest import Manifest

__all__ = [
    "Delta",
    "DeltaFile",
    "Exceptions",
    "Factors",
    "Manifest",
    "NeuronStatistics",
    "SparseRows",
    "read_delta",
    "write_delta",
]
