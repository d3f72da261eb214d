"""Submit a job, stream its log, and end with its own exit code (`ray job submit` ends with 0 for a stopped job).

python jobs/submit.py [--address http://127.0.0.1:8265] jobs/train.py --store /shared/features --run.storage /shared/r
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys

import cli


def submit(address: str, command: list[str]) -> int:
    """0: succeeded; the job's own code: failed; 143: stopped."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    job = client.submit_job(entrypoint=shlex.join(["python", *command]),
                            runtime_env={"working_dir": str(cli.REPOSITORY)})
    print(f"submitted {job} to {address}; stop it with: ray job stop --address {address} {job}", file=sys.stderr)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        client.stop_job(job)
        raise
    info = client.get_job_info(job)
    print(f"{job}: {info.status.value}", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return 143
    if info.driver_exit_code is None:  # it never ran
        print(info.message, file=sys.stderr)
    return info.driver_exit_code or 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="script and its options")
    given = parser.parse_args()
    if not given.command:
        parser.error("name a script, such as jobs/train.py, and its options")
    return submit(given.address, given.command)


if __name__ == "__main__":
    cli.run(main)
