"""Entry point of a Ray job: takes what `rayapp evaluate` takes; logs on stderr, at the end one JSON line on stdout.

ray job submit --working-dir . -- python jobs/evaluate.py --help
"""

import sys

from rayapp.cli import run

if __name__ == "__main__":
    sys.exit(run("evaluate", sys.argv[1:], prog="jobs/evaluate.py"))
