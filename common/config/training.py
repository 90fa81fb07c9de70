"""What is trained and how: model, sampling, algorithm, stages. The task: task.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vcppo.common.config.base import Folder, Lambda, Pattern, Positive, Section


class ModelConfig(Section):
    """The policy's starting weights; the critic shares its architecture unless critic.model names another."""

    path: str
    """Hugging Face id or folder of the policy RL starts from. The folder `vcppo sft` writes, or your own."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights in forward and backward; float32 on a CPU without bf16 units."""

    trust_remote_code: bool = False
    """Let transformers and vLLM run Python that ships with the model. Off: a model folder can't run code."""


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
    def _defaults_that_belong_together(cls, values: Any) -> Any:
        """The default of importance_truncation belongs to old_log_probs=proximal, that of kl_estimator to a loss."""
        if not isinstance(values, dict):
            return values
        if values.get("old_log_probs") == "behaviour":
            values = {"importance_truncation": None, **values}
        return {"kl_estimator": "k1", **values} if values.get("kl_in") == "reward" else values

    advantage_estimator: Literal[
        "gae", "group_mean", "group_centred", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline"
    ] = "gae"
    """gae needs a critic, the others none. group_mean is GRPO: rewards less their group's mean, over its standard
    deviation. group_centred is the same without the deviation (Dr.GRPO). leave_one_out is RLOO: rewards less the mean
    of the group's others. reinforce_plus_plus is the return, KL in the reward included, whitened over the batch;
    its baseline variant takes the group's mean away first."""

    advantage_level: Literal["token", "turn", "segment"] = "token"
    """With gae, what one step is. turn: a run of action tokens without other text between. segment: a piece of a turn,
    with so many tokens that the policy found unlikely. All tokens of one have one advantage, and V is asked where it
    begins."""

    segment_cutpoints: int = Field(default=5, ge=1)
    """With advantage_level segment: a segment ends behind so many cutpoints (SPO: 5)."""

    segment_probability: float = Field(default=0.9, gt=0, le=1)
    """With advantage_level segment: a token that had at most this probability when it was sampled is a cutpoint (SPO:
    0.9). 1: each is, so segments have a fixed number of tokens."""

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

    dual_clip: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """Bound of the objective where an advantage is negative: at least this times the advantage, however large the
    ratio; 3 is usual. null: none but that ratios end at 148."""

    objective: Literal["ppo", "gspo", "cispo", "dis"] = "ppo"
    """ppo clips each token's ratio. gspo clips the geometric mean over its response (clip_low=3e-4 clip_high=4e-4
    aggregation=sequence in its paper). cispo weighs log pi by the clipped ratio: what is clipped still trains. dis
    weighs it by the ratio, and leaves out what is clipped on either side (SAO, with old_log_probs=behaviour)."""

    aggregation: Literal["token", "sequence", "fixed_length"] = "token"
    """How the actor's terms become one loss: their mean over all trained tokens; the mean over responses of each
    one's mean; or their sum over responses times sampling.max_response_tokens (Dr.GRPO)."""

    entropy_coefficient: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the policy's entropy, which is then raised; it takes one more block of logits in backward."""

    entropy_target: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nats a token. In place of a fixed entropy_coefficient: after each step it goes up by entropy_step where entropy
    was below this, else down, and it is in force only while entropy is not above (Skywork-OR1). null: off."""

    entropy_step: float = Field(default=0.005, gt=0, allow_inf_nan=False)
    """See entropy_target."""

    entropy_limit: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """With entropy_target, the largest coefficient: a larger one may raise entropy without end."""

    positive_nll_coefficient: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """VAPO: weight of the negative log-likelihood of the tokens of correct responses (0.1 in its paper)."""

    value_clip: float | None = Field(default=None, gt=0)
    """Clip value moves to this range around the old value; null: off. Never applied in value pretraining."""

    whiten_advantages: bool | None = None
    """Zero mean and unit variance, global over ranks and action tokens; never applied to value targets. null: on with
    gae and REINFORCE++, off with the group estimators. true with these changes the scale only, so that a group of
    equal rewards keeps advantages of exactly 0."""

    kl_coefficient: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the KL penalty to the reference policy, which is the one at model.path (paper: 0)."""

    kl_in: Literal["loss", "reward"] = "loss"
    """Where the penalty goes: a term of the actor's loss, or taken from each token's reward before advantages and value
    targets are made (InstructGPT, REINFORCE++)."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of the KL penalty, with d = log pi_reference - log pi: k1 = -d, k2 = d^2/2, k3 = e^d - d - 1. In a loss, the mean
    gradient of k1 is 0 and that of k2 is the KL's. In a reward that of k1 is: the default with kl_in=reward."""

    reference_refresh_steps: Positive | None = None
    """The reference policy becomes the current one after each multiple of this many learner steps. Checkpoints then
    hold its weights too. null: it stays the one at model.path."""

    old_log_probs: Literal["behaviour", "proximal"] = "proximal"
    """pi_old of the ratio: what the generator recorded, or recomputed by the learner when the batch is claimed
    (decoupled PPO)."""

    importance_truncation: float | None = Field(default=2.0, gt=0)
    """Truncated importance sampling: weight min(pi_proximal / pi_behaviour, this); null: no correction. Only with
    old_log_probs=proximal; with behaviour the default is null."""

    importance_level: Literal["token", "sequence", "geometric"] = "token"
    """Whose ratio the weight is made of: the token's, the product over its response, or its geometric mean."""

    importance_normalised: bool = False
    """Divide the weights by their mean over the batch's trained actions: a batch far off-policy then takes steps as
    large as any other."""

    rejection: Literal["token", "sequence", "geometric"] | None = None
    """Leave out of the actor's loss what lies outside [rejection_low, rejection_high] with pi_proximal / pi_behaviour.
    token: each token by its own ratio (IcePop); sequence, geometric: whole responses, by the product or the geometric
    mean. What is left out is not counted by the loss' mean either. The critic is trained on all. null: nothing."""

    rejection_low: float = Field(default=0.5, gt=0, lt=1)
    """See rejection."""

    rejection_high: float = Field(default=2.0, gt=1, allow_inf_nan=False)
    """See rejection."""

    num_mini_batches: Positive = 4
    """M: optimizer steps per pass over a batch."""

    num_epochs: Positive = 1
    """E: passes over a batch."""

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a critic: of all estimators GAE alone asks one."""
        return self.advantage_estimator == "gae"

    @property
    def has_group_baseline(self) -> bool:
        """Whether the responses to one prompt are each other's baseline, in place of a critic."""
        return self.advantage_estimator not in ("gae", "reinforce_plus_plus")

    @property
    def centres(self) -> bool:
        """Whether whitening takes the batch's mean away too. A group's own baseline it would spoil, so that a group of
        equal rewards had an advantage; REINFORCE++ is defined that way."""
        return self.advantage_estimator in ("gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline")

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened, with the default worked out."""
        return self.centres if self.whiten_advantages is None else self.whiten_advantages


# The bins of critic.head=hl_gauss reach so many deviations of its Gaussian beyond the range of returns on each side.
HL_GAUSS_MARGIN = 3.0


class CriticConfig(Section):
    """Where the critic's weights come from, what its head predicts, and how often it goes over a batch in RL."""

    init: str = "value_pretrained"
    """value_pretrained (this run's value-pretraining checkpoint), policy (cold-start backbone, new head), or a folder
    holding a critic or reward model."""

    model: str | None = None
    """Hugging Face id or folder of the model whose backbone a new head is put on, of another size or architecture than
    the policy; null: model.path. Its tokenizer must have the policy's vocabulary, token by token."""

    freeze: list[Pattern] = Field(default_factory=list)
    """Regular expressions over the names of the critic's parameters (`model.layers.0.`, `embed_tokens`); what one is
    found in is not trained, in value pretraining and in RL. One that is found nowhere is refused."""

    head: Literal["scalar", "two_hot", "hl_gauss"] = "scalar"
    """scalar: one number, trained by half the squared error. two_hot and hl_gauss: a distribution over bins, trained by
    cross entropy; the value is its mean (docs/critic.md). A new scalar head says 0 everywhere, a new one with bins the
    middle of its range."""

    num_bins: int = Field(default=51, ge=2, le=4096)
    """Bins of a head that is not scalar."""

    value_min: float | None = None
    """Least return the bins can hold; null: the low end of task.reward_range, or 0 where that is above 0 (a discount
    takes returns there)."""

    value_max: float | None = None
    """Greatest return the bins can hold; null: the high end of task.reward_range, or 0 where that is below 0."""

    sigma_ratio: float = Field(default=0.75, ge=0.25, le=16)
    """With critic.head=hl_gauss: deviation of the Gaussian around a return, in widths of a bin (0.75 in its paper)."""

    sees_log_probs: bool = False
    """Whether the critic reads with each token how unlikely it was when it was sampled. A slip of the policy is an
    unlikely token, so it tells the critic where to look (docs/critic.md)."""

    passes: Positive | Literal["auto"] = 1
    """Passes of the critic over each batch. The first goes with the actor's updates (algorithm.num_epochs of them count
    as one), the others while generators make the next batch. auto: as long as explained variance rises on prompts of
    the newest batch that are held out."""

    max_passes: Positive = 8
    """With critic.passes=auto, this many at most."""

    max_seconds: float | None = Field(default=None, gt=0)
    """Time for all passes over a batch but the first; a pass that would take longer is not begun. null: no limit."""

    num_mini_batches: Positive | None = None
    """Optimizer steps in each pass but the first; null: algorithm.num_mini_batches."""

    replay_batches: int = Field(default=0, ge=0)
    """All passes but the first go over this many earlier batches too, with the targets of then."""

    held_out_fraction: float = Field(default=0.125, gt=0, lt=1)
    """With critic.passes=auto: share of a batch's prompts, one at least, that the critic is measured on. It is not
    trained on their responses, unless critic.replay_batches takes them up later."""

    min_rise: float = Field(default=0.005, ge=0)
    """With critic.passes=auto: rise of held-out explained variance for a pass to count as one that helped."""

    patience: Positive = 2
    """With critic.passes=auto: this many passes in a row that did not help are the last. Small rises add up."""

    def value_range(self, rewards: tuple[float, float]) -> tuple[float, float]:
        """(least, greatest) return that a head with bins holds: given, or what rewards and any discount can make.

        Args:
            rewards: the least and the greatest there are, `VcppoConfig.reward_rule`'s.
        """
        low, high = min(0.0, rewards[0]), max(0.0, rewards[1])
        return (low if self.value_min is None else self.value_min, high if self.value_max is None else self.value_max)


class LoraConfig(Section):
    """Low-rank adapters (LoRA) instead of full fine-tuning: actor and critic over one frozen base (docs/lora.md)."""

    rank: Positive | None = None
    """Rank of the adapters of actor and critic; the critic's head is trained in full beside them. null: no adapters,
    all weights are trained. The cold start and the reward model are always trained in full."""

    alpha: float | None = Field(default=None, gt=0)
    """An adapter counts alpha / rank times; null: 2 * rank."""

    target_modules: list[str] = Field(default_factory=list)
    """Linear layers that get an adapter, by the last part of their name (`q_proj`, `v_proj`). Empty: all of the
    backbone's. Never the output layer, nor the critic's head."""

    @property
    def alpha_or_default(self) -> float:
        """With its default worked out."""
        assert self.rank is not None
        return 2 * self.rank if self.alpha is None else self.alpha


class ValuePretrainingConfig(Section):
    """Frozen policy, Monte-Carlo targets (GAE with lambda = 1), gated by held-out explained variance."""

    num_trajectories: int = Field(default=4096, ge=0)
    """Rollouts recorded once and replayed. When it is raised on a run, the recording goes on. 0 skips the stage: with
    algorithm.advantage_estimator gae, critic.init must then be policy or a folder; with a group estimator 0
    is the default."""

    recordings: list[Folder] = Field(default_factory=list)
    """Folders of other runs whose recorded responses the critic learns of too, beside num_trajectories of its own.
    Task, rewards, model and sampling must be the same; seeds may differ. A prompt of both counts once."""

    held_out_fraction: float = Field(default=0.125, gt=0, lt=1)
    """Share of problems (whole groups) that gate the critic and never train it. 20 right and 20 other responses must be
    among them, unless rewards are graded."""

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
    (docs/value_pretraining.md). At 0 or below nothing is asked of the number of right responses, and returns that do
    not vary pass."""

    def num_held_out_groups(self, group_size: int, num_taken: int = 0) -> int:
        """How many prompts are held out: the fraction, rounded, of the run's own (groups of `group_size` trajectories)
        and those taken from other recordings."""
        return round((self.num_trajectories // group_size + num_taken) * self.held_out_fraction)


class DifficultyConfig(Section):
    """Which problems of a finite data set RL asks, by how often each was answered right (docs/sampling.md)."""

    enabled: bool = False
    """Draw by difficulty. false: in the task's own order, each problem once before any comes again."""

    new_share: float = Field(default=1.0, ge=0, le=1)
    """Share of groups that ask a problem never answered yet, while there is one. 1: all others wait until then."""

    easy_share: float = Field(default=0.1, ge=0)
    """Of the other groups, how many ask an easy problem; the three shares are taken in proportion to their sum. A pool
    without a free problem gives its share to the others."""

    edge_share: float = Field(default=0.8, ge=0)
    """How many ask one that is sometimes answered right."""

    hard_share: float = Field(default=0.1, ge=0)
    """How many ask a hard one. Above 0, so that it is seen when it no longer is."""

    easy_from: float = Field(default=0.8, gt=0, le=1)
    """Easy: at least this share of responses were correct."""

    hard_to: float = Field(default=0.2, ge=0, lt=1)
    """Hard: at most this share were."""

    window: Positive = 2
    """How many of its newest groups count."""


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

    dynamic_sampling: Literal["rewards", "outcomes"] | None = None
    """Leave finished groups out of training that teach nothing, and fill the batch with others (DAPO). rewards: those
    whose rewards are all the same. outcomes: besides, those that are all correct or all not. null: off."""

    dynamic_sampling_max_batches: Positive = 4
    """At most so many batches of groups are left out before a step; then it is trained with what there is. So a task
    that is solved, or hopeless, never waits for ever."""

    difficulty: DifficultyConfig = DifficultyConfig()
    """Which problems are asked."""

    actor_learning_rate: float = Field(default=3e-5, gt=0)
    """Policy step size (paper, 32B: 1e-6)."""

    critic_learning_rate: float = Field(default=6e-5, gt=0)
    """Critic step size (paper, 32B: 2e-6)."""

    actor_freeze: list[Pattern] = Field(default_factory=list)
    """Regular expressions over the names of the policy's parameters (`model.layers.0.`, `embed_tokens`); what one is
    found in is not trained. It is still sent to generators. One that is found nowhere is refused."""

    critic_freeze: list[Pattern] = Field(default_factory=list)
    """The same for the critic in RL only, beside `critic.freeze`: value pretraining trains what is named here."""

    actor_warmup_steps: int = Field(default=0, ge=0)
    """Learner steps over which the policy's step size rises to rl.actor_learning_rate."""

    critic_warmup_steps: int = Field(default=0, ge=0)
    """The same for rl.critic_learning_rate."""

    actor_schedule: Literal["constant", "cosine"] = "constant"
    """Of the policy's step size after the warm-up; cosine falls to 0 at rl.num_steps."""

    critic_schedule: Literal["constant", "cosine"] = "constant"
    """The same for the critic."""

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


class BenchmarkConfig(Section):
    """Held-out problems of another task, evaluated during training beside the run's own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    """What its figures are called: eval/NAME/accuracy."""

    task: str
    """As task.name: a built-in task, or module:Class of your own. One turn."""

    options: dict[str, object] = Field(default_factory=dict)
    """As task.options."""


class EvalConfig(Section):
    """Pass@1 and pass@k on held-out problems: of a model by `vcppo eval`, and on the way while a run trains."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations during training, by the run's own generators. The last step is evaluated too. 0:
    none."""

    at_start: bool = False
    """Evaluate the untrained policy as well, before the first step."""

    num_problems_during_training: int = Field(default=128, ge=1, le=99_999)
    """Held-out problems of one evaluation during training; the first ones of those `vcppo eval` asks."""

    benchmarks: list[BenchmarkConfig] = Field(default_factory=list)
    """Other tasks whose held-out problems are asked as well, each eval.num_problems_during_training of them at most."""

    best_by: Literal["pass_at_1", "pass_at_k"] = "pass_at_1"
    """Which figure of the task's own held-out problems says which evaluated version is the best."""

    keep_best: bool = True
    """The best evaluated version's policy is kept as exports/best, and is what the run exports at its end. Its
    checkpoint is kept beside the newest ones where there is one, that is where eval.every is a multiple of
    learner.checkpoint_every. Costs a copy of the weights in memory and on disk at each evaluation."""

    patience: int = Field(default=0, ge=0)
    """End the run when so many evaluations in a row were no better than the best before them. 0: never."""

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

    @property
    def is_during_training(self) -> bool:
        """Whether anything is evaluated while a run trains."""
        return self.every > 0 or self.at_start

    @property
    def keeps_best_version(self) -> bool:
        """Whether the best of what is evaluated is kept."""
        return self.keep_best and self.is_during_training
