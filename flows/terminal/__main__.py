"""``python -m flows.terminal``: the command line where ``pairline`` is not installed as a program."""

from flows.terminal.cli import main

if __name__ == "__main__":
    main()
