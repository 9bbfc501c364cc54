"""The command `marlin`. Nothing heavy is imported before a command needs it: `--help` is quick."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process and exit.

    0 ok, 1 failed, 2 usage, 3 model refused, 4 device, 130 interrupted.
    """
    try:
        from marlin.cli.app import app

        app()
    except KeyboardInterrupt:  # while modules were being imported
        sys.exit(130)
