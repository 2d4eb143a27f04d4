"""A neuroenc command that counts its renames, or dies at one: python killable.py COUNT|K|K+ FILE -- ARGS.

With ``K`` the process is killed before its K-th rename, with ``K+`` right behind it, as a power cut would; with
``COUNT`` the number of renames is written to FILE when the command ends. Renames are where one state of a folder
becomes the next.
"""

import os
import signal
import sys

import neuroenc._core.files as files


def main() -> None:
    mode, record, _, *arguments = sys.argv[1:]
    done = 0

    def watched(work):
        def call(*args, **kwargs):
            nonlocal done
            done += 1
            if mode == str(done):
                os.kill(os.getpid(), signal.SIGKILL)
            result = work(*args, **kwargs)
            if mode == f"{done}+":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.replace, os.rename = watched(os.replace), watched(os.rename)
    files._exchange = watched(files._exchange)
    sys.argv = ["neuroenc", *arguments]
    from neuroenc.cli import main as command

    try:
        command()
    finally:
        if mode == "COUNT":
            with open(record, "w") as handle:
                handle.write(str(done))


if __name__ == "__main__":
    main()
