"""Entry point of a Ray job: takes what `rayapp tune` takes; logs on stderr, at the end one JSON line on stdout.

ray job submit --working-dir . -- python jobs/tune.py --help
"""

import sys

from rayapp.cli import run

if __name__ == "__main__":
    sys.exit(run("tune", sys.argv[1:], prog="jobs/tune.py"))
