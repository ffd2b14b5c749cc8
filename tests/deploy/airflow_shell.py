"""Runs commands of Airflow one after another in one process: most of the time of a command is the start of Airflow.

Reads a command as a JSON list a line: the arguments of `airflow`, or "-c" and Python. Writes its exit code a line to
the file descriptor given as the first argument. Runs in .venv-airflow.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def exit_code(command: list[str]) -> int:
    """That of one command, as if it were a process of its own."""
    from airflow.__main__ import main  # type: ignore[import-not-found]  # not where the tests run

    try:
        if command[0] == "-c":
            exec(command[1], {})
        else:
            sys.argv = ["airflow", *command]
            main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code)
            return 1
        return int(stop.code or 0)  # True is 1
    except Exception:  # noqa: BLE001  # as Python itself does with one that nobody catches
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    results = int(sys.argv[1])
    for line in sys.stdin:
        code = exit_code(json.loads(line))
        sys.stdout.flush()
        os.write(results, f"{code}\n".encode())
