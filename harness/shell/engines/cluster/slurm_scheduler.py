"""Submit, query and cancel Slurm jobs, or their stand-ins: processes on this machine.

submitit submits the jobs and does nothing else. Its own way to wait for results calls `sacct`, which fails
without accounting, and then waits forever. A job reports through its mailbox instead, and `squeue` says
whether it is queued or running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from harness.shell.engines.cluster.options import SlurmOptions
from harness.shell.engines.cluster.protocol import SlotLostError, SlotResources
from harness.shell.engines.cluster.slurm_job import serve

COMMANDS = ("sbatch", "squeue", "scancel")
LIVE_STATES = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "RESIZING", "SIGNALING")
SQUEUE_TIMEOUT_S = 60.0


class SlurmScheduler:
    """Jobs with the given options; `cluster=local` starts them as processes on this machine."""

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options
        self._submit_lock = threading.Lock()  # submitit keeps state in its executors

    def submit(self, folder: Path, resources: SlotResources) -> Any:
        """Submit a job that serves runs through `folder`; raises SlotLostError if it is rejected."""
        import submitit

        options = self._options
        with self._submit_lock:
            if options.cluster == "local":
                executor: Any = submitit.LocalExecutor(folder=folder)
                executor.update_parameters(
                    timeout_min=options.time_minutes,
                    gpus_per_node=int(resources.gpu),
                    setup=list(options.setup),
                )
            else:
                executor = submitit.SlurmExecutor(folder=folder)
                executor.update_parameters(**parameters(options, resources))
            # a process inherits the signals that its parent's thread blocks: Ctrl-C must not reach the job
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return executor.submit(serve, str(folder), options.silence_s)
            except (submitit.core.utils.FailedJobError, OSError) as error:
                text = " ".join(str(error).split())
                raise SlotLostError(f"the job was rejected: {text[:300]}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def has_ended(self, job: Any) -> bool:
        """Whether a job has ended; False if Slurm does not answer."""
        if self._options.cluster == "local":
            return bool(job.done())
        command = ["squeue", "--noheader", "--jobs", str(job.job_id), "--format", "%T"]
        try:
            squeue = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        if squeue.returncode:
            return "Invalid job id" in squeue.stderr  # Slurm has forgotten it; other errors say nothing
        return squeue.stdout.strip() not in LIVE_STATES

    def cancel(self, job: Any) -> None:
        """End a job unless it has ended."""
        if self.has_ended(job):
            return
        if self._options.cluster == "local":
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit sends SIGINT, which the job has blocked
        else:
            job.cancel(check=False)


def parameters(options: SlurmOptions, resources: SlotResources) -> dict[str, Any]:
    """The parameters of a job, in submitit's names for sbatch's options."""
    optional = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}M",
        "exclusive": options.exclusive or None,
        "gpus_per_node": 1 if resources.gpu else None,
        "setup": list(options.setup) or None,
    }
    return {
        "job_name": "evenbench",
        "time": options.time_minutes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.threads,
        # a job that Slurm restarts would find its mailbox full of old messages
        "additional_parameters": {"no_requeue": True, **options.parameters},
        **{key: value for key, value in optional.items() if value is not None},
    }


def last_log_line(job: Any) -> str:
    """The last line of a job's standard error, to append to a message; empty if there is none."""
    try:
        text = Path(job.paths.stderr).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
