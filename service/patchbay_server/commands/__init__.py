"""The commands of `patchbay`, one file each. Only `typer` and `rich` are imported before a command runs."""
