#!/usr/bin/env python3
"""Turn `gpuspool results`, read on stdin, into the output file of an OpenAI batch, on stdout.

A request whose task failed, or whose result is lost, has an `error` and no `response`. The exit
status is 3 if some are not finished; these are left out.
"""

import json
import sys


def main() -> int:
    """Write a line for each finished request, in the order of the input file."""
    missing = 0
    for result in map(json.loads, sys.stdin):
        if result["state"] == "missing":
            missing += 1
            continue
        name = f"batch_req_{result['index']}"
        line = {"id": name, "custom_id": result["key"], "response": None, "error": None}
        # A complete task has an error if its result cannot be read any more.
        if result["error"] is None:
            line["response"] = {"request_id": name, **result["result"]}
        else:
            error = result["error"]
            line["error"] = {"code": error["kind"], "message": error["message"]}
        print(json.dumps(line))
    if missing:
        print(f"to_batch.py: {missing} requests are not finished", file=sys.stderr)
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
