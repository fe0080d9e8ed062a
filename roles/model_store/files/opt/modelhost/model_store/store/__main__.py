# MIT licence (see LICENSE)
"""python -m store [--status FILE] stage|verify JOB.json

Brings the models of a job into the store, or holds what lies there against its manifests. Ends with 0 when all is well;
else with 1 and one line for each model on stderr. Interrupted at any point, it goes on from there when it is run again.
"""

from __future__ import annotations

import argparse
import sys

from . import job as jobs
from . import stage, verify
from .status import Status


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="store")
    parser.add_argument("--status", help="file that tells how far the job is")
    parser.add_argument("command", choices=("stage", "verify"))
    parser.add_argument("job")
    arguments = parser.parse_args()
    status = Status(arguments.status, arguments.command)
    try:
        job = jobs.read(arguments.job)
        if arguments.command == "stage":
            stage.stage(job, status)
        else:
            verify.verify(job, status)
    except (jobs.JobError, stage.Failed, OSError, ValueError) as error:
        status.end("failed", str(error) or repr(error))
        return 1
    except BaseException as error:
        status.end("failed", "this is a fault of the program: %r" % error)
        raise
    status.end("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
