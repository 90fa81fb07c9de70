"""Where it runs: the processes, and what goes between them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vcppo.common.config.base import Folder, Positive, Seconds, Section


class RunConfig(Section):
    """Who this run is and where its files go."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Names the run folder and the Redis key space."""

    folder: Folder = Path("runs")
    """Run folders are made under this one: <folder>/<name>."""

    seed: int = Field(default=0, ge=0)
    """Seeds prompts, sampling, initialisation and mini-batch order."""

    @property
    def path(self) -> Path:
        """The run folder; `vcppo.common.run_folder.RunFolder` knows what is in it."""
        return self.folder / self.name


class OffloadConfig(Section):
    """What a learner rank keeps in host memory instead of on its GPU (docs/memory.md#offload)."""

    optimizer: Literal["none", "cpu"] = "none"
    """cpu: float32 weights, Adam's moments and the step itself are on the host. Needs learner.zero_stage of 1 to 3."""

    parameters: Literal["none", "cpu"] = "none"
    """cpu: a rank's part of the weights is on the host between uses. Needs learner.zero_stage = 3."""


class LearnerConfig(Section):
    """How the learner computes: ranks, sharding, micro-batches, checkpoints."""

    num_ranks: Positive = 1
    """Learner processes (torchrun)."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage of actor and critic."""

    offload: OffloadConfig = Field(default_factory=OffloadConfig)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA when there is one."""

    micro_batch_tokens: Positive = 8192
    """Token budget of one packed micro-batch on one rank; with sequence_parallel_size, at least max prompt +
    response."""

    sequence_parallel_size: Positive = 1
    """So many neighbouring ranks share each pack, by DeepSpeed-Ulysses (docs/gpu.md#long-responses): a pack then holds
    as many times micro_batch_tokens. It divides num_ranks and the model's attention heads. 1: each rank has its own."""

    log_prob_chunk_tokens: Positive | None = None
    """Tokens per chunk of the log-prob kernel; bounds the logits in memory. null: 256 on a CPU, 1024 on CUDA."""

    log_prob_chunk_vocab: Positive | None = None
    """Vocabulary entries per chunk of the log-prob kernel. null: 8192."""

    gradient_checkpointing: bool = False
    """Recompute activations in backward."""

    gradient_checkpointing_every: Positive = 1
    """With gradient_checkpointing: the first of so many layers is recomputed, the others keep their activations. 1:
    every layer is (docs/memory.md#activations)."""

    num_threads: int = Field(default=0, ge=0)
    """torch threads per rank; 0 leaves torch's default."""

    checkpoint_every: Positive = 5
    """Steps between checkpoints; trajectories are committed when one is durable."""

    keep_checkpoints: Positive = 2
    """Older ones are deleted."""

    export_every: int = Field(default=0, ge=0)
    """Steps between exports of the policy as a Hugging Face folder, exports/step-N; training goes on meanwhile. 0: only
    at the end."""

    push_to_hub: str | None = Field(default=None, min_length=1)
    """Hugging Face hub repository, `organisation/name`, to which the export is uploaded at the end of the run. A new
    one is private. The token is the hub's own setting (HF_TOKEN, or hf auth login). null: it stays here."""

    profile_steps: list[Positive] = Field(default_factory=list)
    """RL steps of which a trace and flame graphs are written to <run>/profiles (docs/operations.md#profiling). Such a
    step takes longer."""

    batch_deadline_seconds: Seconds = 600.0
    """A batch that does not fill in this time stops the run with an error that names who is waited for."""

    @property
    def recomputed_every(self) -> int:
        """The first of so many layers is recomputed in backward; 0: none is."""
        return self.gradient_checkpointing_every if self.gradient_checkpointing else 0


class GeneratorConfig(Section):
    """The vLLM side; each generator process owns one engine."""

    num_generators: Positive = 2
    """Processes the local launcher starts; others may join at any time."""

    max_in_flight: Positive = 64
    """Sequences one generator works on at once."""

    max_model_len: Positive = 512
    """vLLM's longest sequence: prompt + response."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """vLLM weights; auto follows model.dtype."""

    tensor_parallel_size: Positive = 1
    """GPUs per engine."""

    initial_weights: Literal["learner", "model"] = "learner"
    """learner: a generator starts with wrong weights on purpose, and takes no prompts until the learner has sent it the
    right ones. That proves that every tensor arrives. model: it reads model.path as version 0, for use without a
    learner, or for a model with weights that are not sent."""

    enforce_eager: bool = False
    """Skip compilation: slower decode, faster start."""

    kv_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache on a CPU."""

    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of the GPU vLLM takes."""

    lease_seconds: Seconds = 60.0
    """A leased prompt not renewed for this long goes back to the queue."""

    heartbeat_seconds: Seconds = 5.0
    """Members and leases are renewed this often."""

    control_host: str = "127.0.0.1"
    """Address the control port binds to and is announced at."""

    engine_options: dict[str, object] = Field(default_factory=dict)
    """More of vLLM's EngineArgs, by name."""

    @property
    def num_ahead(self) -> int:
        """Prompts leased beyond the free places: few, since another generator might have started them at once."""
        return min(4, self.max_in_flight // 8)

    @property
    def max_sequences(self) -> int:
        """Most sequences of one engine: the rollouts in flight, and four that check its weights beside them."""
        return self.max_in_flight + 4


class SecurityConfig(Section):
    """Who may speak with whom. Redis' user and password are in `redis`."""

    curve: Literal["auto", "always", "never"] = "auto"
    """Encrypt and authenticate ZeroMQ by CURVE keys. auto: when transport.endpoints or generator.control_host name
    anything but this machine's loopback."""

    keys: str | None = None
    """Folder of the key files `vcppo keys` makes. null: keys/ in the run folder."""


class RedisConfig(Section):
    """The store. Everything that must survive is in it."""

    url: str | None = None
    """redis://host:port/db. null: the launcher starts an embedded redis-server with an append-only file in the run
    folder."""

    username: str | None = None
    """Of an ACL user; null: Redis' default user."""

    password_file: str | None = None
    """File that holds the password. null: the environment's VCPPO_REDIS_PASSWORD, if set, but for unix:// URLs: the
    embedded server has none."""

    ca_file: str | None = None
    """Certificate authority of a rediss:// server; null: the system's."""

    connect_deadline_seconds: Seconds = 10.0
    """How long to wait for Redis at start before giving up with an error."""

    fsync: Literal["always", "everysec"] = "always"
    """Of the embedded server's append-only file: always keeps what was acknowledged over a power cut, everysec all but
    about the last second of it."""

    maxmemory_mib: float | None = Field(default=None, gt=0)
    """Memory limit of the embedded server; null: none. Near it the learner issues no more prompts and commits what it
    can, at it buffers acknowledge nothing. Nothing is ever evicted."""

    patience_seconds: Seconds = 120.0
    """How long generators and the learner bear with a Redis that went away before they end; buffers bear with it for
    ever."""


class TransportConfig(Section):
    """ZeroMQ between generators and buffers."""

    endpoints: list[str] | None = Field(default=None, min_length=1)
    """Where buffers listen, as [tcp://host:port]; a generator uses the first that answers. Best a port below 32768:
    Linux gives those above to any process that asks for none in particular. null: `vcppo up` chooses a free port of
    this machine's loopback, so that any number of runs fit on one machine."""

    credit_window: Positive = 64
    """Unacknowledged trajectories a sender may have on the wire."""

    ack_deadline_seconds: Seconds = 10.0
    """Unacknowledged for this long: sent again."""

    max_message_mib: float = Field(default=64.0, gt=0)
    """Larger messages are refused and dead-lettered."""

    receive_memory_mib: float = Field(default=2048.0, ge=256)
    """A buffer that holds more than this cuts its connections: hostile peers end there, generators send again. So does
    a generator whose control port has made it grow by this much."""

    spool_memory_mib: float = Field(default=256.0, gt=0)
    """Unacknowledged trajectories above this go to the spool on disk."""

    spool_disk_mib: float = Field(default=4096.0, gt=0)
    """When the spool is this full the generator stops taking prompts."""


class BroadcastConfig(Section):
    """Weights from learner to generators."""

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """auto: nccl on CUDA, gloo on a CPU and with launcher.share_gpus."""

    host: str = "127.0.0.1"
    """Address of learner rank 0 that generators can reach."""

    deadline_seconds: Seconds = 120.0
    """Every call and collective of an update; after it the late member is named and dropped."""

    packed_buffer_mib: float = Field(default=16.0, gt=0)
    """Weights travel in buffers of this size."""

    noise_factor: float = Field(default=3.0, ge=1)
    """How many times as large as rounding explains the mean |log-prob difference| between generator and learner may be
    on the canary tokens. Raise it for a generator that computes less exactly than its dtype says (a quantised one)."""

    attempts: Positive = 3
    """A generator whose update or canary fails is sent the weights anew; after this often in a row it is dismissed by
    name."""

    canary_tokens: Positive = 256
    """Tokens of the task's own prompts whose log-probs are compared after every update."""


class LoggingConfig(Section):
    """structlog."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level written."""

    format: Literal["auto", "json", "pretty"] = "auto"
    """auto: pretty on a terminal, JSON lines elsewhere."""

    tensorboard: bool = True
    """Metrics also go to <run>/tensorboard."""


class MetricsConfig(Section):
    """Where numbers go besides the run folder (docs/metrics.md), and which responses are kept (docs/samples.md)."""

    prometheus_port: int = Field(default=0, ge=0, le=65535)
    """Every process serves /metrics here; 0: none. Under `vcppo up` each takes a port of its own from this one on."""

    prometheus_host: str = "0.0.0.0"  # noqa: S104  (read-only; docs/threats.md)
    """Address the metrics port binds to. It is read-only and not authenticated."""

    wandb_project: str | None = None
    """Metrics also go to this project of Weights & Biases (pip install vcppo[wandb])."""

    mlflow_experiment: str | None = None
    """Metrics also go to this experiment of an MLflow server (pip install vcppo[mlflow])."""

    mlflow_uri: str | None = None
    """The MLflow server, as http://host:port; null: the environment's MLFLOW_TRACKING_URI."""

    trackio_project: str | None = None
    """Metrics also go to this project of trackio (pip install vcppo[trackio])."""

    tracker_samples: int = Field(default=8, ge=0)
    """Responses of each RL step that these three get as a table, out of those that are kept; 0: none."""

    samples_per_step: int = Field(default=256, ge=0)
    """Responses of each RL step that are kept, with the critic's values of each token: all of a smaller batch, of a
    larger one some of every outcome; 0: none."""

    samples_tokens: int = Field(default=262_144, gt=0)
    """Tokens of the kept responses of a step, prompts included. A token takes some 12 bytes on disk."""

    samples_mib: float = Field(default=256.0, gt=0)
    """All kept responses of a run together; beyond it the oldest steps but the first go."""


class WatchdogConfig(Section):
    """The last net under every wait: it ends a process that is stuck, with its stacks in the log folder."""

    stage_seconds: Seconds = 3600.0
    """Longest that learner, generator or buffer may stay in one stage without a sign of getting on."""

    stages: dict[str, Seconds] = Field(default_factory=dict)
    """Other limits for single stages, by the name the log gives them: {broadcast: 600}."""


class LauncherConfig(Section):
    """`vcppo up` on one machine."""

    pin_cores: bool = True
    """Give learner ranks and generators cores of their own (taskset); where there are too few, let the learner go
    first (nice)."""

    share_gpus: bool = False
    """Let an engine share a GPU with a learner rank, both in memory at once (docs/placement.md#one-gpu). Without it
    each has GPUs of its own. generator.gpu_memory_utilization must leave room for the learner; weights go by gloo."""

    startup_deadline_seconds: Seconds = 600.0
    """A process not ready by then stops the run, by name."""

    stop_deadline_seconds: Seconds = 30.0
    """On shutdown, SIGTERM, then SIGKILL after this long."""

    generator_restarts: int = Field(default=3, ge=0)
    """How often in a row a generator that ended is started again, with back-off; then the run goes on with the
    others."""

    learner_restarts: int = Field(default=3, ge=0)
    """How often in a row a learner that ended is started again from its last checkpoint; 0: the run stops and can be
    resumed (`vcppo up --restart-learner N`)."""

    buffer_restarts: int = Field(default=10, ge=0)
    """How often in a row a buffer that ended is started again; generators keep what it did not acknowledge."""

    redis_restarts: int = Field(default=3, ge=0)
    """How often in a row the embedded redis-server is started again, on its append-only file; the others wait."""

    restart_backoff_seconds: Seconds = 1.0
    """Pause before the first restart of a process; doubles with each one in a row, up to 30 seconds."""

    room_warning_hours: float = Field(default=2.0, ge=0)
    """Warn when the disk of the run folder, or that of temporary files, will be full sooner than this at the rate of
    the last hour; 0: never."""

    restart_window_seconds: Seconds = 60.0
    """A process that was up for this long counts its restarts anew, if the run has made a step meanwhile."""
