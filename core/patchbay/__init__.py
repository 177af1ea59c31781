"""Patchbay's library: compressed deltas of fine-tuned models over one resident backbone."""

__version__ = "0.1.0"
