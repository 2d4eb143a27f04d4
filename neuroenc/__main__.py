"""``python -m neuroenc``: the command, of this Python's environment and no other."""

from neuroenc.cli import main

if __name__ == "__main__":
    main()
