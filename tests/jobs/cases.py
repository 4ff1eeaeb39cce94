"""Jobs and clusters whose whole rendered text is in `expected/`, one file each.

`python -m tests.jobs.cases` rewrites these files; review the difference before committing it.
"""

from pathlib import Path

from jobs import scheduler
from jobs.scheduler import Stage
from jobs.spec import Cluster, Job

RUN = "/shared/my runs/msanet-7f3c9a1b"
TRAIN = Job(
    id="msanet-7f3c9a1b",
    verb="train",
    arguments=(f"run={RUN}",),
    run=RUN,
    folder=RUN,
    cwd="/home/ann/lacuna",
    code=f"{RUN}/code/0123456789ab",
    commit="0123456789ab",
    env={"MLFLOW_TRACKING_URI": "https://mlflow.example.org"},
)
SHARD = Job(
    id="shard-11112222",
    verb="shard",
    arguments=("config=/shared/runs/shard-11112222/config.yaml",),
    run="s3://bucket/places2",
    folder="/shared/runs/shard-11112222",
    cwd="/home/ann/lacuna",
    code="/shared/runs/shard-11112222/code/0123456789ab",
    elements=tuple((f"task={i}/3",) for i in range(3)),
)
REMOTE = Job(
    id="msanet-7f3c9a1b",
    verb="train",
    arguments=("run=s3://bucket/runs/msanet-7f3c9a1b",),
    run="s3://bucket/runs/msanet-7f3c9a1b",
    folder="s3://bucket/runs/msanet-7f3c9a1b",
    code="s3://bucket/runs/msanet-7f3c9a1b/code/0123456789ab.tar.gz",
    code_sha256="ab" * 32,
    commit="0123456789ab",
)
SLURM = Cluster(
    scheduler="slurm",
    nodes=8,
    gpus_per_node=4,
    cpus_per_node=32,
    memory_gb=480,
    partition="gpu",
    account="vision",
    qos="long",
    time="1-00:00:00",
    sbatch={"constraint": "a100&ib", "exclusive": None, "mail-type": "FAIL,END"},
    setup=["source /etc/profile.d/lmod.sh", "module load cuda/12.6"],
    env={"NCCL_SOCKET_IFNAME": "ib0"},
    secrets_file="/home/ann/.config/lacuna/secrets.env",
    python="/env/bin/python",
)
IMAGE = "registry.example.org/lacuna@sha256:" + "0" * 64
KUBERNETES = Cluster(
    scheduler="kubernetes",
    nodes=2,
    gpus_per_node=8,
    cpus_per_node=64,
    memory_gb=512,
    image=IMAGE,
    namespace="vision",
    queue="gpus",
    secrets=["bucket-credentials"],
    pull_secrets=["registry"],
    volumes={"places2": "/data"},
    node_selector={"gpu": "h100"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    service_account="trainer",
    priority_class="research",
    shm_gb=64,
    env={"NCCL_SOCKET_IFNAME": "eth0"},
    patch={
        "metadata": {"annotations": {"team": "vision"}},
        "spec": {
            "containers": [
                {"name": "main", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
            ]
        },
    },
)
SMALL = Cluster(scheduler="kubernetes", image=IMAGE, kind="jobset", retries=2)

CASES = {
    "slurm-train.sbatch": [Stage(TRAIN, SLURM)],
    "slurm-shard.sbatch": [
        Stage(SHARD, Cluster(scheduler="slurm", throttle=2, python="/env/bin/python", retries=5))
    ],
    "slurm-pyxis.sbatch": [
        Stage(
            TRAIN,
            Cluster(
                scheduler="slurm",
                nodes=2,
                gpus_per_node=8,
                container="pyxis",
                image=IMAGE,
                mounts=["/data:/data"],
            ),
        )
    ],  # fmt: skip
    "slurm-apptainer.sbatch": [
        Stage(
            TRAIN,
            Cluster(
                scheduler="slurm",
                gpus_per_node=1,
                container="apptainer",
                image="/images/my torch.sif",
            ),
        )
    ],  # fmt: skip
    "kubernetes-train.yaml": [Stage(REMOTE, KUBERNETES)],
    "kubernetes-shard.yaml": [
        Stage(SHARD, Cluster(scheduler="kubernetes", image=IMAGE, code="image", throttle=2))
    ],
    "kubernetes-chain.yaml": [
        Stage(SHARD, SMALL),
        Stage(
            REMOTE, Cluster(scheduler="kubernetes", image=IMAGE, kind="jobset", nodes=2, retries=4)
        ),
    ],
    "local-train.sh": [
        Stage(TRAIN, Cluster(python="/env/bin/python", secrets_file="/home/ann/secrets.env"))
    ],
}

if __name__ == "__main__":
    for name, stages in CASES.items():
        text = scheduler.render(stages).text
        (Path(__file__).parent / "expected" / name).write_text(text)
