"""A one-node Slurm cluster on loopback, for tests: in one folder, ending only its own processes.

As a program it runs one command inside such a cluster:  python tests/slurm_cluster.py COMMAND...
"""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "munged")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def why_not():
    """Return why no cluster can be started here, or "" if one can."""
    missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if missing: return f"{', '.join(missing)} not installed: bash scripts/system.sh brings Slurm"
    if os.geteuid(): return "starting Slurm's daemons needs root"
    return ""


def free_ports(n):
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets: one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def write_configuration(folder, cpus, gpus):
    """Write slurm.conf and what belongs to it; everything of the cluster stays in the folder."""
    host = socket.gethostname().split(".")[0]
    control, node = free_ports(2)
    for name in ("state", "spool"): (folder / name).mkdir()
    devices = ("/dev/null", "/dev/zero", "/dev/full")[:gpus]     # Slurm wants character devices
    gres = f"Gres=gpu:{gpus}" if gpus else ""
    (folder / "gres.conf").write_text("".join(
        f"Name=gpu File={device} Flags=nvidia_gpu_env\n" for device in devices))
    (folder / "slurm.conf").write_text(f"""
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
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
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=3
InactiveLimit=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} \
ThreadsPerCore=1 RealMemory=8000 {gres} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=side Nodes={host} MaxTime=INFINITE State=UP
""")
    return host


def start_daemons(folder, env):
    """Start munge and Slurm in the foreground of this process's children."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
             f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
             f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    commands = [munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]]
    daemons = []
    for command in commands:
        log = open(folder / f"{command[0]}.out", "w")
        daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log,
                                        start_new_session=True))
        if command is munge: wait_until(lambda: (folder / "munge.socket").exists(), 10, "munge")
    return daemons


def wait_until(condition, seconds, what):
    """Return when a condition holds; fail after some time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end: raise TimeoutError(f"{what}: not ready after {seconds} s")
        time.sleep(0.1)


def ask(env, *command):
    """Return the output of a Slurm command."""
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout


@contextlib.contextmanager
def cluster(cpus=2, gpus=2):
    """Yield (environment, host name) of a running cluster; end its daemons and jobs afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    host = write_configuration(folder, cpus, gpus)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    daemons = []
    try:
        daemons = start_daemons(folder, env)
        try: wait_until(lambda: "idle" in ask(env, "sinfo", "-h", "-o", "%T"), 30, "Slurm")
        except TimeoutError as error:
            logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
            raise RuntimeError(f"{error}\n{logs}") from None
        yield env, host
    finally:
        if daemons:
            ask(env, "scancel", "--full", "--me")
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not ask(env, "squeue", "-h", "--me"), 15, "end of jobs")
        for daemon in reversed(daemons): daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try: daemon.wait(10)
            except subprocess.TimeoutExpired: daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if reason := why_not(): sys.exit(f"slurm_cluster: {reason}")
    if not sys.argv[1:]: sys.exit(__doc__)
    with cluster() as (environment, _):
        sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
