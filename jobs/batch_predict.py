"""Entry point of a Ray job: takes what `rayapp batch-predict` takes; logs on stderr, last one JSON line on stdout.

ray job submit --working-dir . -- python jobs/batch_predict.py --help
"""

import sys

from rayapp.cli import run

if __name__ == "__main__":
    sys.exit(run("batch-predict", sys.argv[1:], prog="jobs/batch_predict.py"))
