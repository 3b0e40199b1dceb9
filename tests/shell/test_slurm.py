"""Sweeps in Slurm jobs: processes on this machine, and a one-node Slurm if its programs are installed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.shell.engines.cluster.mailbox import Mailbox, SilenceError
from harness.shell.engines.cluster.options import SlurmOptions
from harness.shell.engines.cluster.protocol import SlotResources
from harness.shell.engines.cluster.slurm_scheduler import parameters
from tests.support.clusters import EPOCHS, RUNS, SWEEP, check_retried_once, kill_tree, two_are_running
from tests.support.workspace import Workspace, check_consistent, cleanup, end, wait_until

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")

JOBS = ("hydra/launcher=slurm", "hydra.launcher.jobs=2", "hydra.launcher.silence_s=10")
LOCAL = (*JOBS, "hydra.launcher.cluster=local")


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        workspace.plant({"*": "slow"})
        yield workspace


def job_of_a_run(workspace: Workspace) -> int:
    """The process id of the job that executes the first unfinished run."""
    run = next(run for run in workspace.runs() if run.status is None)
    parents = psutil.Process(run.pid).parents()
    return next(parent.pid for parent in parents if "submitit.local._local" in " ".join(parent.cmdline()))


def check_clean(workspace: Workspace) -> None:
    """Check that no process or file is left over."""
    wait_until(lambda: not workspace.processes())
    # folders of killed jobs, which the next job would remove
    for folder in workspace.temporary.glob("evenbench-node-*"):
        shutil.rmtree(folder)
    check_consistent(workspace)


@pytest.mark.slow
def test_loss_of_a_job(workspace: Workspace) -> None:
    """Catches: a sweep that ends, hangs or omits a run when a job dies; a run that starts from the beginning
    although its checkpoint was sent back; a loss without a message; a folder that stays in the results."""
    process = workspace.sweep(*LOCAL, *SWEEP)
    wait_until(lambda: two_are_running(workspace), process)
    kill_tree(job_of_a_run(workspace))
    status, printed = end(process)
    assert status == 0, printed
    check_retried_once(workspace, printed)
    assert len({run.pid for run in workspace.runs()}) < RUNS + 1  # workers stay warm
    assert list((workspace.results / "slurm").iterdir()) == []
    check_clean(workspace)


@pytest.mark.exhaustive
def test_loss_without_retries_left(workspace: Workspace) -> None:
    """Catches: a run that is repeated forever; one that ends without a result or a reason."""
    process = workspace.sweep(*LOCAL, *SWEEP, "hydra.launcher.retries=0")
    wait_until(lambda: two_are_running(workspace), process)
    kill_tree(job_of_a_run(workspace))
    status, printed = end(process)
    assert status == 1, printed
    runs = workspace.runs()
    assert sorted(str(run.status) for run in runs) == ["finished"] * (RUNS - 1) + ["killed"]
    (lost,) = [run for run in runs if run.status == "killed"]
    assert lost.result["error"]["type"] == "node"
    assert "was lost in the middle of the run" in lost.result["error"]["message"]
    assert lost.attempts == []
    check_clean(workspace)


@pytest.mark.slow
def test_interrupt_and_death_of_the_command(workspace: Workspace) -> None:
    """Catches: jobs and workers that survive Ctrl-C or the death of the command; runs without a result; a
    sweep that can't be resumed."""
    process = workspace.sweep(*LOCAL, *SWEEP)
    wait_until(lambda: two_are_running(workspace), process)
    os.killpg(process.pid, signal.SIGINT)
    status, printed = end(process)
    assert (status, "Traceback" in printed) == (130, False), printed
    assert [run.result["error"]["type"] for run in workspace.runs()] == ["interrupted"] * 2
    check_clean(workspace)
    process = workspace.sweep(*LOCAL, *SWEEP)
    wait_until(lambda: two_are_running(workspace), process)
    process.kill()
    end(process)
    wait_until(lambda: not workspace.processes())  # the jobs end for lack of messages
    status, printed = end(workspace.sweep(*LOCAL, *SWEEP))
    assert status == 0, printed
    for run in workspace.runs():
        assert [event.get("epoch") for event in run.events] == [None, *range(1, EPOCHS + 1)]
    check_clean(workspace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hydra.launcher.jobs=0", "hydra.launcher.cluster=loca"), "did you mean 'local'?"),
        (("workers=2",), "workers=1 hydra.launcher.jobs=<number>"),
        (("threads=1,2",), "the runs differ in threads, and 4 jobs may share a node"),
        (("pin=true",), "runs are pinned on this machine alone"),
    ],
)
def test_mistakes(workspace: Workspace, arguments: tuple[str, ...], message: str) -> None:
    """Catches: a wrong option that is detected after an hour in a queue, or with a traceback of Hydra."""
    local = "hydra.launcher.cluster=local"
    own = () if any(text.startswith("hydra.launcher.cluster") for text in arguments) else (local,)
    status, printed = end(workspace.sweep("hydra/launcher=slurm", *own, *arguments))
    assert status == 2
    assert message in " ".join(printed.split()) and "Traceback" not in printed, printed
    assert workspace.runs() == []


def test_parameters_of_a_job() -> None:
    """Catches: an option that never reaches sbatch; a job that Slurm may restart."""
    options = SlurmOptions(
        partition="gpu", account="lab", time_minutes=30, memory_gb=1.5, exclusive=True, setup=("module x",)
    )
    job_parameters = parameters(options, SlotResources(4, gpu=True))
    assert job_parameters == {
        "job_name": "evenbench",
        "time": 30,
        "ntasks_per_node": 1,
        "cpus_per_task": 4,
        "additional_parameters": {"no_requeue": True},
        "partition": "gpu",
        "account": "lab",
        "mem": "1536M",
        "exclusive": True,
        "gpus_per_node": 1,
        "setup": ["module x"],
    }
    assert not {"partition", "exclusive", "gpus_per_node"} & set(
        parameters(SlurmOptions(), SlotResources(1, False))
    )


def test_a_mailbox(tmp_path: Path) -> None:
    """Catches: half a line that is read as a whole one; a message that is lost or read twice; silence that
    is not noticed, or is reported although the other side lives."""
    into, out = tmp_path / "into", tmp_path / "out"
    mailbox = Mailbox(into, out, None)
    assert mailbox.receive() is None
    into.write_text('{"a": 1}\n{"event": "pulse"}\n{"b": 2}\n{"c"')
    assert [mailbox.receive() for _ in range(3)] == [{"a": 1}, {"b": 2}, None]
    with into.open("a") as file:
        file.write(": 3}\n")
    assert [mailbox.receive(), mailbox.receive()] == [{"c": 3}, None]
    mailbox.silence_s = 0.0
    time.sleep(0.01)
    with pytest.raises(SilenceError):
        mailbox.receive()
    mailbox.silence_s = 60.0
    assert mailbox.receive() is None
    mailbox.send({"d": 4})
    mailbox.close()
    other = Mailbox(out, into, None)
    assert other.receive() == {"d": 4}
    other.close()


CONF = """\
ClusterName=evenbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of one node, this machine, with its own keys and ports, and without accounting."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        needed = ", ".join(["root"] * (os.geteuid() != 0) + missing)
        pytest.skip(f"needs {needed} (Debian: slurmctld slurmd slurm-client munge)")
    # the path of a socket is limited to 107 characters, and pytest's folders are longer
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        host, ports = platform.node(), {"port": free_port(), "other_port": free_port()}
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, **ports))
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        files = {"key-file": "key", "socket": "munge.socket", "seed-file": "seed", "pid-file": "pid"}
        options = [f"--{option}={folder / file}" for option, file in files.items()]
        for command in (
            ["munged", "--foreground", "--force", *options],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            daemons.enter_context(_daemon(command))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists)
        wait_until(lambda: "idle" in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout)
        yield


@contextlib.contextmanager
def _daemon(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_real_slurm(workspace: Workspace, slurm: None) -> None:
    """Catches: a job that Slurm rejects; one that waits for accounting on a cluster without it; a cancelled
    job whose run is lost; jobs that stay in the queue."""
    process = workspace.sweep(*JOBS, *SWEEP)
    wait_until(lambda: two_are_running(workspace), process)
    squeue = ["squeue", "--noheader", "--format", "%i"]
    first, *more = subprocess.run(squeue, capture_output=True, text=True, check=True).stdout.split()
    assert len(more) == 1
    subprocess.run(["scancel", first], check=True)
    status, printed = end(process)
    assert status == 0, printed
    check_retried_once(workspace, printed)
    wait_until(lambda: not subprocess.run(squeue, capture_output=True, text=True, check=True).stdout.strip())
    check_clean(workspace)
