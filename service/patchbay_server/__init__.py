"""Patchbay's service: the REST API, its stores and the command line over the `patchbay` library."""
