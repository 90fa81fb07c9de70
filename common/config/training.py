"""What is trained and how: model, task, sampling, algorithm, stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vcppo.common.config.base import Folder, Lambda, Positive, Seconds, Section


class ModelConfig(Section):
    """The policy's starting weights; the critic shares its architecture."""

    path: str
    """Hugging Face id or folder of the policy RL starts from. The folder `vcppo sft` writes, or your own."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights in forward and backward; float32 on a CPU without bf16 units."""

    trust_remote_code: bool = False
    """Let transformers and vLLM run Python that ships with the model. Off: a model folder can't run code."""


class TaskConfig(Section):
    """Where prompts come from and how responses are verified."""

    name: str = "chain_arithmetic"
    """A built-in task (aime, chain_arithmetic, code, dataset, gpqa, mix) or module:Class of your own."""

    options: dict[str, object] = Field(default_factory=dict)
    """Passed to the task; each task documents its own."""

    overlong: Literal["refuse", "skip"] = "refuse"
    """A prompt that leaves no room for sampling.max_response_tokens in generator.max_model_len. refuse: the learner
    looks at all prompts when it starts, and ends, naming the rows. skip: another problem takes its place, with a log
    line. A task without an end can't be looked through: there it is always skip. An evaluation refuses or leaves out
    held-out problems in the same way, and says how many."""

    verifier_timeout_seconds: Seconds = 5.0
    """A verifier child that takes longer is killed; the outcome is `timeout`."""

    verifier_memory_mib: int = Field(default=4096, ge=256)
    """What a verifier child may hold; when a response makes it need more, the outcome is `crash`."""

    verifier_processes: Positive = 1
    """Verifier children per generator."""

    reward_correct: float = 1.0
    """Reward of a correct response (paper: +1)."""

    reward_wrong: float = -1.0
    """Reward of anything else the verifier judged: wrong, unparsable, timeout, crash (paper: -1)."""


class SamplingConfig(Section):
    """How the behaviour policy samples, and where a response ends (docs/sampling.md)."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature. Not 0: PPO needs a policy that samples."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only 1: RL trains the distribution it samples from (docs/sampling.md). For evaluation: eval.top_p."""

    top_k: int = Field(default=0, ge=0)
    """Only 0, for the same reason. For evaluation: eval.top_k."""

    max_response_tokens: Positive = 256
    """A response cut here has finish reason `length`."""

    stop: list[str] = Field(default_factory=list)
    """Strings that end a response, besides the model's end tokens: for base models, which run on past their answer. The
    response ends with the token that completes the string, finish reason `stop`; that token is trained."""

    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Tokens that end a response, besides the model's own end tokens. The response includes the token."""

    stop_in_text: bool = False
    """Whether the verifier sees the stop string too (it may look for `</answer>`); off: only what comes before it."""


class SftPhase(Section):
    """One pass of supervised training over freshly drawn demonstrations."""

    steps: Positive
    """Optimizer steps."""

    batch_size: Positive = 32
    """Demonstrations a step."""

    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of a cosine schedule."""

    style: dict[str, object] = Field(default_factory=dict)
    """Passed to the task's demonstrations(); each task documents its own."""


class SftConfig(Section):
    """Cold start: supervised fine-tuning on the task's demonstrations (`vcppo sft`)."""

    output: Folder | None = None
    """Where the cold-start model goes; default <run>/cold_start."""

    init: str = "scratch"
    """Model to start from, or `scratch`: the architecture below with random weights (no model hub needed)."""

    architecture: dict[str, object] = Field(default_factory=dict)
    """transformers config fields when init=scratch (model_type, hidden_size, ...)."""

    phases: list[SftPhase] = Field(default_factory=list)
    """Run one after the other; each may draw demonstrations in another style."""


class RewardModelConfig(Section):
    """A Bradley-Terry reward model (`vcppo reward-model`): what the paper's PPO baseline starts its critic from."""

    output: Folder | None = None
    """Where it goes; default <run>/reward_model. Name it in critic.init to start a critic from it."""

    rollouts: Folder | None = None
    """File of recorded rollouts whose correct and wrong responses to one prompt make pairs, such as a run's
    `value_pretraining/trajectories.msgpack`; null: demonstrations, right against one digit changed."""

    prefix_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of pairs in which a shorter part of a response loses to a longer one; 0 scores complete responses only."""

    prefix_winner: Literal["longer", "complete"] = "longer"
    """What a shorter part loses to: any longer part, so scores rise along a response, or the complete response only, so
    all that is unfinished scores low."""

    centre_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the squared mean score of complete responses: normalises them to 0 on average; 0: no normalisation."""

    steps: Positive = 150
    """Optimizer steps."""

    batch_size: Positive = 32
    """Pairs a step."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak of a cosine schedule."""


class AlgorithmConfig(Section):
    """Advantages, targets and losses. Every piece of VC-PPO, PPO, GRPO and RLOO is a setting here."""

    @model_validator(mode="before")
    @classmethod
    def _no_correction_by_default_with_behaviour(cls, values: Any) -> Any:
        """The default of importance_truncation belongs to old_log_probs=proximal."""
        if isinstance(values, dict) and values.get("old_log_probs") == "behaviour":
            return {"importance_truncation": None, **values}
        return values

    advantage_estimator: Literal["gae", "group_mean", "leave_one_out"] = "gae"
    """gae needs a critic. group_mean is GRPO: rewards less their group's mean, over its standard deviation.
    leave_one_out is RLOO: rewards less the mean of the group's others."""

    gamma: Lambda = 1.0
    """Discount (paper: 1)."""

    lambda_actor: Lambda = 0.95
    """GAE lambda of the advantages (paper: 0.95, useful range [0.95, 1))."""

    lambda_critic: Lambda = 1.0
    """GAE lambda of the value targets (paper: 1.0, exact Monte-Carlo)."""

    length_adaptive_alpha: float | None = Field(default=None, gt=0)
    """VAPO: lambda_actor = 1 - 1/(alpha * length) per sequence, clamped to [0, 1]; null keeps lambda_actor."""

    truncation: Literal["terminal", "bootstrap", "mask"] = "terminal"
    """Responses cut by length: end like EOS, bootstrap with V of the last state, or train on none of their tokens."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Ratio is clipped to [1 - clip_low, 1 + clip_high]."""

    clip_high: float = Field(default=0.2, gt=0, le=10)
    """See clip_low; larger than it (0.28, say) is DAPO's clip-higher."""

    value_clip: float | None = Field(default=None, gt=0)
    """Clip value moves to this range around the old value; null: off. Never applied in value pretraining."""

    whiten_advantages: bool | None = None
    """Zero mean and unit variance, global over ranks and action tokens; never applied to value targets. null: on with
    gae, off with group_mean and leave_one_out. true with these two changes the scale only, so that a group of equal
    rewards keeps advantages of exactly 0."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the starting policy (the one at model.path) in the loss (paper: 0)."""

    old_log_probs: Literal["behaviour", "proximal"] = "proximal"
    """pi_old of the ratio: what the generator recorded, or recomputed by the learner when the batch is claimed
    (decoupled PPO)."""

    importance_truncation: float | None = Field(default=2.0, gt=0)
    """Truncated importance sampling: weight min(pi_proximal / pi_behaviour, this); null: no correction. Only with
    old_log_probs=proximal; with behaviour the default is null."""

    num_mini_batches: Positive = 4
    """M: optimizer steps per pass over a batch."""

    num_epochs: Positive = 1
    """E: passes over a batch."""

    @property
    def has_group_baseline(self) -> bool:
        """Whether the responses to one prompt are each other's baseline, in place of a critic."""
        return self.advantage_estimator != "gae"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened, with the default worked out."""
        return not self.has_group_baseline if self.whiten_advantages is None else self.whiten_advantages


class CriticConfig(Section):
    """Where the critic's weights come from."""

    init: str = "value_pretrained"
    """value_pretrained (this run's value-pretraining checkpoint), policy (cold-start backbone, new head), or a folder
    holding a critic or reward model."""


class ValuePretrainingConfig(Section):
    """Frozen policy, Monte-Carlo targets (GAE with lambda = 1), gated by held-out explained variance."""

    num_trajectories: int = Field(default=4096, ge=0)
    """Rollouts recorded once and replayed. When it is raised on a run, the recording goes on. 0 skips the stage: with
    algorithm.advantage_estimator gae, critic.init must then be policy or a folder; with group_mean and leave_one_out 0
    is the default."""

    held_out_fraction: float = Field(default=0.125, gt=0, lt=1)
    """Share of problems (whole groups) that gate the critic and never train it. 20 right and 20 other responses must be
    among them."""

    batch_size: Positive = 128
    """Trajectories per optimizer step."""

    max_steps: Positive = 100
    """Hard cap."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Critic learning rate in this stage."""

    eval_every: Positive = 5
    """Steps between held-out measurements."""

    patience: Positive = 4
    """Stop after this many held-out measurements in which neither explained variance rose nor the loss fell."""

    min_delta: float = Field(default=0.005, ge=0)
    """Least rise of held-out explained variance, or fall of the held-out loss, that counts as progress."""

    min_explained_variance: float = Field(default=0.3, lt=1)
    """The gate: RL starts only when held-out explained variance reaches this; else the run stops and says why
    (docs/value_pretraining.md). At 0 or below nothing is asked of the number of right responses."""

    def num_held_out_groups(self, group_size: int) -> int:
        """How many prompts (groups of `group_size` trajectories) are held out: the fraction, rounded."""
        return round(self.num_trajectories // group_size * self.held_out_fraction)


class RlConfig(Section):
    """The asynchronous loop: batch, credits and optimizers' step sizes."""

    num_steps: Positive = 40
    """Learner steps; each makes one new policy version."""

    batch_size: Positive = 128
    """Trajectories per step (B)."""

    group_size: Positive = 8
    """Responses per prompt; must divide batch_size."""

    max_staleness: int = Field(default=1, ge=0)
    """eta: no trajectory is older than this many versions when trained. 0 is synchronous PPO."""

    straggler: Literal["wait", "drop"] = "wait"
    """wait: train in order of issue, however long the slowest of a batch takes. drop: train whoever has arrived and
    give up what would exceed max_staleness; that starves long, hard prompts, and drops are counted."""

    actor_learning_rate: float = Field(default=3e-5, gt=0)
    """Policy step size (paper, 32B: 1e-6)."""

    critic_learning_rate: float = Field(default=6e-5, gt=0)
    """Critic step size (paper, 32B: 2e-6)."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay of both."""

    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW beta2 of both."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global gradient norm is clipped to this."""

    @property
    def num_credits(self) -> int:
        """Most prompts issued and not yet trained: what bounds staleness."""
        return (self.max_staleness + 1) * self.batch_size


class EvalConfig(Section):
    """`vcppo eval`: pass@1 and pass@k through vLLM."""

    num_problems: Positive = 512
    """Held-out problems; all of them where there are fewer."""

    samples_per_problem: Positive = 1
    """n; pass@k is the unbiased estimate for k <= n."""

    k: Positive = 1
    """k of pass@k."""

    seed: int = Field(default=1_000_003, ge=0)
    """Draws problems no training seed draws."""

    temperature: float | None = Field(default=None, ge=0)
    """null: sampling.temperature. 0: always the likeliest token."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass: sample from the likeliest tokens that hold this much probability; 1 keeps all."""

    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 keeps all."""
