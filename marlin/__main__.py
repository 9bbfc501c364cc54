"""`python -m marlin` is the command `marlin`."""

from marlin.cli import main

if __name__ == "__main__":
    main()
