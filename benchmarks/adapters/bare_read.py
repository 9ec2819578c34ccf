"""The least that a reader of gpuspool's journals must do: check the seal of each line, and decode
task and state.

Prints how many lines say "complete". What a scan of a finished run takes is held against this
process's time.
"""

import sys
from zlib import crc32

import msgspec


class Line(msgspec.Struct):
    state: str
    # That an attempt is idle is a line of no task.
    task: int | None = None


def main():
    complete, decode = 0, msgspec.json.Decoder(Line).decode
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")[1:-1]
        for line in lines:
            if int(line[-10:-2], 16) != crc32(line[:-18]):
                raise ValueError(f"{path}: {line[:80]!r}")
            complete += decode(line).state == "complete"
    print(complete)


main()
