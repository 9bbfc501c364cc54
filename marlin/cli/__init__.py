"""The command `marlin`. Nothing heavy is imported before a command needs it: `--help` is quick."""

from __future__ import annotations

import sys

MODEL_COMMANDS = ("run", "chat", "bench", "perplexity")


def prepare(argv: list[str]) -> None:
    """Begin what takes longest while modules are imported: a command with a model needs a device."""
    if not argv or argv[0] not in MODEL_COMMANDS or "--help" in argv:
        return
    from marlin.device import open_ahead

    which = None
    for here, following in zip(argv, [*argv[1:], ""], strict=True):
        if here == "--device":
            which = following
        elif here.startswith("--device="):
            which = here.removeprefix("--device=")
    open_ahead(which)


def main() -> None:
    """Run the command line of this process and exit.

    0 ok, 1 failed, 2 usage, 3 model refused, 4 device, 130 interrupted.
    """
    try:
        prepare(sys.argv[1:])
        from marlin.cli.app import app

        app()
    except KeyboardInterrupt:  # while modules were being imported
        sys.exit(130)
