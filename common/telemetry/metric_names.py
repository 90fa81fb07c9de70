"""Every metric a service writes, by name: what it means and what it is called in Prometheus. Pure; no I/O.

One name, ``reward/mean``, in the run folder's JSON lines, in TensorBoard and in Weights & Biases; in Prometheus it is
``vcppo_reward_mean``. ``python -m vcppo.common.telemetry.metric_names > docs/metrics.md`` writes the page; a test
notices a stale one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PREFIX = "vcppo_"
Kind = Literal["gauge", "running", "since"]


class Metric(NamedTuple):
    """One metric, or a family of them.

    Attributes:
        name: as services write it; a last ``*`` stands for the values of `label`.
        text: what it is, with its unit.
        kind: ``gauge``: a value of now. ``running``: counted since the process began. ``since``: counted since the
            line before; Prometheus sees the sum. The last two are counters there.
        family: its name in Prometheus; empty: made from `name`.
        label: what the ``*`` is called in Prometheus.
    """

    name: str
    text: str
    kind: Kind = "gauge"
    family: str = ""
    label: str = ""


class Series(NamedTuple):
    """Where a value goes in Prometheus: one metric family and its labels beyond service and run."""

    metric: Metric
    family: str
    label: str  # value of metric.label; empty without one


LEARNER = (
    Metric("reward/mean", "mean reward of the step's trajectories"),
    Metric("reward/kl", "what the KL adds to a response's rewards, mean (algorithm.kl_in=reward); not in reward/mean"),
    Metric("reward/accuracy", "share of them judged correct"),
    Metric("reward/num_responses", "how many trajectories these are: what rates of the step are of"),
    Metric("reward/*", "mean of a part of the reward by name, unweighted, over the responses that have it"
           " (docs/rewards.md)", family="vcppo_reward_component", label="component"),
    Metric("turns/mean", "mean turns of the policy in an environment's rollouts"),
    Metric("turns/max", "most turns of one of them"),
    Metric("turns/segments", "mean conversations of an agent's rollouts, where one has several (docs/agents.md)"),
    Metric("turns/segments_max", "most conversations of one of them"),
    Metric("turns/masked_fraction", "share of their response tokens that the environment said"),
    Metric("turns/environment_seconds", "mean seconds that one of them waited for its environment"),
    Metric("turns/reward_by_turn", "mean reward of the first turn, the second, …, over the rollouts that have it"),
    Metric("turns/tool_calls", "mean calls of tools in one of them (docs/tools.md)"),
    Metric("turns/tool_errors", "mean of those that came to nothing"),
    Metric("turns/tool_seconds", "mean seconds that one of them spent in tools"),
    Metric("length/mean", "mean response length, action tokens"),
    Metric("length/max", "longest response, action tokens"),
    Metric("length/truncated_fraction", "share of responses that met the length limit"),
    Metric("outcome/*", "share of trajectories by verdict", family="vcppo_outcome_fraction", label="outcome"),
    Metric("explained_variance/token", "of the critic that met the batch, against Monte-Carlo returns, by token"),
    Metric("explained_variance/sequence", "the same, all sequences alike"),
    Metric("explained_variance/within_prompt", "the same, of what differs between rollouts of one problem"),
    Metric("critic_worth/critic/*", "the critic's explained variance where the problem has another response",
           label="measure"),
    Metric("critic_worth/prompt_mean/*", "on the same tokens: what the mean of the problem's other responses explains",
           label="measure"),
    Metric("critic_worth/num_responses", "responses whose problem has another"),
    Metric("reward_signal/*", "how much of the outcome value targets with this lambda hold, by distance to the end"
           " (from 0, 8, 16, 32, … tokens on)", label="lambda"),
    Metric("policy/loss", "clipped objective, negated, mean over tokens"),
    Metric("policy/clip_fraction", "share of action tokens whose ratio was clipped"),
    Metric("policy/ratio_mean", "mean probability ratio, policy over proximal policy"),
    Metric("policy/entropy", "nats a token"),
    Metric("policy/approx_kl", "policy against proximal policy, nats a token"),
    Metric("policy/importance_weight", "mean truncated weight, proximal over behaviour policy, of what is trained"),
    Metric("policy/entropy_coefficient", "weight of the entropy bonus in this step (algorithm.entropy_target)"),
    Metric("policy/kl_penalty", "against the reference policy, nats a token (algorithm.kl_in=loss)"),
    Metric("policy/reference_version", "which version the reference policy was in this step; 0 is the starting policy"),
    Metric("policy/positive_nll", "negative log-likelihood of the tokens of correct responses, nats"),
    Metric("policy/behaviour_gap", "mean |log-prob difference| of learner and generator, nats"),
    Metric("off_policy/mismatch_kl", "behaviour against proximal policy (k3): mean, nats a token; one token counts"
           " 142 at most"),
    Metric("off_policy/mismatch_kl_p99", "the same, of the token that 1 % are above"),
    Metric("off_policy/mismatch_kl_max", "the same, of the worst token"),
    Metric("off_policy/ess", "effective sample size of the ratios proximal over behaviour policy, share of tokens"),
    Metric("off_policy/ess_trained", "the same of the weights as trained: truncated, 0 where rejected"),
    Metric("off_policy/rejected", "share of tokens left out by algorithm.rejection"),
    Metric("off_policy/staleness/mismatch_kl_*", "mismatch KL by staleness", label="staleness"),
    Metric("off_policy/staleness/ess_*", "effective share by staleness", label="staleness"),
    Metric("off_policy/staleness/rejected_*", "share left out by staleness", label="staleness"),
    Metric("off_policy/versions/mismatch_kl_*", "mismatch KL by how many policy versions made the response",
           label="versions"),
    Metric("off_policy/versions/ess_*", "effective share by the same", label="versions"),
    Metric("off_policy/versions/rejected_*", "share left out by the same", label="versions"),
    Metric("policy/grad_norm", "of the actor, before clipping"),
    Metric("critic/loss", "half the squared error against the value targets; with bins, the cross entropy with them"),
    Metric("critic/grad_norm", "of the critic, before clipping"),
    Metric("policy/learning_rate", "of the policy in this step"),
    Metric("critic/learning_rate", "of the critic in this step"),
    Metric("critic/passes", "over the batch before this one, that beside the actor's updates included"),
    Metric("critic/held_out_explained_variance_before", "of its held-out responses, before the passes but the first"),
    Metric("critic/held_out_explained_variance_after", "and after them"),
    Metric("staleness/mean", "policy versions between the oldest token and the learner, at claim time"),
    Metric("staleness/max", "the same, of the stalest trajectory"),
    Metric("staleness/mixed_version_fraction", "share of trajectories made by more than one policy version"),
    Metric("staleness/ratio_mean_*", "mean probability ratio by staleness", label="staleness"),
    Metric("staleness/clip_fraction_*", "clip fraction by staleness", label="staleness"),
    Metric("staleness/explained_variance_*", "explained variance (token) by staleness", label="staleness"),
    Metric("time/*", "seconds by phase: `checkpoint`, `broadcast` and `critic_passes` are of the step before, `claim`,"
           " `values`, `old_log_probs` and `update` of this one; `pause`: the longest a generator stood still for"
           " weights; `step`: all of it", family="vcppo_phase_seconds", label="phase"),
    Metric("dynamic_sampling/groups_left_out", "groups without signal that were left out before this step"
           " (rl.dynamic_sampling)"),
    Metric("dynamic_sampling/all_correct", "of these, those of which every response was correct"),
    Metric("dynamic_sampling/all_wrong", "those of which none was"),
    Metric("dynamic_sampling/same_reward", "those of which some were, and all had the same reward"),
    Metric("dynamic_sampling/share_left_out", "groups left out, as a share of them and the step's own"),
    Metric("dynamic_sampling/accuracy", "share of correct responses, groups left out included; reward/accuracy is of"
           " those trained"),
    Metric("dynamic_sampling/response_tokens_left_out", "response tokens generated for groups that were left out"),
    Metric("dynamic_sampling/tokens_not_trained", "tokens of groups left out, prompts included: what training was"
           " spared"),
    Metric("dynamic_sampling/trained_without_signal", "groups of the step's batch that have no signal: only where"
           " rl.dynamic_sampling_max_batches was reached"),
    Metric("difficulty/problems/*", "problems of the data set by pool, after the step (rl.difficulty)", label="pool"),
    Metric("difficulty/drawn/*", "share of the step's groups, those left out included, by the pool their problem was"
           " drawn from", label="pool"),
    Metric("difficulty/accuracy/*", "share of their responses that were correct, by the same", label="pool"),
    Metric("tokens/step", "tokens trained in the step, prompts included"),
    Metric("tokens/per_second", "the same by the whole step's seconds"),
    Metric("ledger/*", "prompts by state when the step was trained, before its commit; `without_signal` is of the"
           " rejected",
           family="vcppo_ledger_prompts", label="state"),
    Metric("eval/accuracy", "pass@1 on held-out problems, of the policy version that is the line's step"),
    Metric("eval/accuracy_low", "lower end of its 95 % interval"),
    Metric("eval/accuracy_high", "upper end of its 95 % interval"),
    Metric("eval/pass_at_k", "pass@k of the same, k = eval.k; where k is above 1"),
    Metric("eval/pass_at_k_low", "lower end of its 95 % interval"),
    Metric("eval/pass_at_k_high", "upper end of its 95 % interval"),
    Metric("eval/mean_reward", "of the held-out responses"),
    Metric("eval/mean_length", "tokens the policy chose in them"),
    Metric("eval/truncated_fraction", "share of them cut off at sampling.max_response_tokens"),
    Metric("eval/num_problems", "held-out problems that were answered"),
    Metric("eval/num_lost", "problems left out since an answer was given up"),
    Metric("eval/seconds", "from the issue of the prompts to the last answer"),
    Metric("eval/stall_seconds", "of these, those in which the learner waited for nothing else"),
    Metric("eval/*", "of a benchmark (eval.benchmarks): `NAME/accuracy`, `NAME/accuracy_low`, `NAME/accuracy_high`",
           family="vcppo_eval_benchmark", label="figure"),
    Metric("vp/recorded", "trajectories recorded for value pretraining"),
    Metric("vp/reward", "value pretraining: mean reward of what is recorded"),
    Metric("vp/reward/*", "value pretraining: mean of a part of the reward by name, unweighted",
           family="vcppo_vp_reward_component", label="component"),
    Metric("vp/accuracy", "value pretraining: share of recorded responses judged correct"),
    Metric("vp/outcome/*", "value pretraining: share of recorded responses by verdict",
           family="vcppo_vp_outcome_fraction", label="outcome"),
    Metric("vp/num_outcome/*", "value pretraining: recorded responses by verdict",
           family="vcppo_vp_responses", label="outcome"),
    Metric("vp/cut_fraction", "value pretraining: share of recorded responses that met the length limit"),
    Metric("vp/num_cut", "value pretraining: recorded responses that met the length limit"),
    Metric("vp/length/mean", "value pretraining: mean recorded response, action tokens"),
    Metric("vp/length/max", "value pretraining: longest recorded response, action tokens"),
    Metric("vp/num_prompts", "value pretraining: problems with a recorded response"),
    Metric("vp/num_prompts_with_both", "value pretraining: problems with right and other responses"),
    Metric("vp/prompts_with_both_fraction", "value pretraining: the same, as a share of problems with two responses"),
    Metric("vp/train_loss", "value pretraining: loss since the last measurement"),
    Metric("vp/held_out_loss", "value pretraining: loss on held-out problems"),
    Metric("vp/held_out_explained_variance", "value pretraining: on held-out problems, all tokens alike"),
    Metric("vp/held_out_explained_variance_low", "value pretraining: lower end of its 90 % interval over problems"),
    Metric("vp/held_out_explained_variance_high", "value pretraining: upper end"),
    Metric("vp/held_out_explained_variance_sequence", "value pretraining: the same, all sequences alike"),
    Metric("vp/held_out_explained_variance_within_prompt", "value pretraining: the same, within problems"),
    Metric("sft/loss", "cold start: nats a token"),
    Metric("sft/grad_norm", "cold start: before clipping"),
    Metric("sft/learning_rate", "cold start: of this step"),
    Metric("sft/tokens_per_second", "cold start: tokens trained a second"),
    Metric("reward_model/loss", "reward model: Bradley-Terry and centring, nats a pair"),
    Metric("reward_model/accuracy", "reward model: share of the step's pairs it ranked right"),
)  # fmt: skip

GENERATOR = (
    Metric("generator/tokens", "response tokens of finished rollouts", kind="since"),
    Metric("generator/tokens_per_second", "the same a second, since the last heartbeat"),
    Metric("generator/rollouts", "finished rollouts", kind="since"),
    Metric("generator/in_flight", "prompts that have, or wait for, a place in vLLM"),
    Metric("generator/queue_wait", "seconds with free places and no prompt to lease", kind="since",
           family="vcppo_generator_queue_wait_seconds"),
    Metric("generator/paused", "seconds stood still for weight updates", kind="running",
           family="vcppo_generator_paused_seconds"),
    Metric("generator/tool_calls", "calls of tools in environments (docs/tools.md)", kind="since"),
    Metric("generator/tool_errors", "those that came to nothing", kind="since"),
    Metric("generator/tool_seconds", "seconds in tools, summed over rollouts side by side", kind="since"),
    Metric("generator/environment_calls", "calls of environments that have ended", kind="since"),
    Metric("generator/environment_errors", "those of them that raised or were late", kind="since"),
    Metric("generator/environment_seconds", "seconds in them, summed over calls side by side", kind="since"),
    Metric("generator/agent_requests", "requests of agents that the policy has answered", kind="since"),
    Metric("generator/segments", "conversations that agents began anew within a rollout, each trained as a trajectory"
           " of its own", kind="since"),
    Metric("generator/unacked", "trajectories sent and not yet acknowledged"),
    Metric("generator/policy_version", "of the weights in vLLM; none while they are half loaded"),
    Metric("reward_source/waiting", "responses that wait for a reward service or a judge (docs/rewards.md)"),
    Metric("reward_source/away", "seconds that it has been away, leasing paused; 0: it answers",
           family="vcppo_reward_source_away_seconds"),
    Metric("reward_source/seconds", "mean of its answered requests, since the last heartbeat"),
    Metric("reward_source/requests", "requests made to it", kind="since"),
    Metric("reward_source/failed_requests", "of these, not answered with a reward", kind="since"),
    Metric("reward_source/bad_answers", "answers about one response that are no reward", kind="since"),
    Metric("reward_source/handed_back", "prompts handed back since it was away for too long", kind="since"),
    Metric("reward_source/rejected", "prompts rejected since it never gave a reward", kind="since"),
)  # fmt: skip

BUFFER = (
    Metric("buffer/*", "messages by their fate", kind="running", family="vcppo_buffer_messages", label="result"),
    Metric("buffer/bytes", "bytes received", kind="running"),
    Metric("store/up", "whether Redis answers the buffer"),
    Metric("store/queue/*", "prompts by state, now", family="vcppo_store_prompts", label="state"),
    Metric("store/settled/*", "prompts settled since the run began, by how; `without_signal` is of the rejected",
           family="vcppo_store_settled", label="how"),
    Metric("store/ledger_difference", "issued prompts that are in no state; anything but 0 is a bug"),
    Metric("store/credits_used", "prompts issued and not yet claimed"),
    Metric("store/credits", "as many as the staleness bound allows: (max_staleness + 1) * batch_size"),
    Metric("store/dead_letters", "in the dead-letter stream, which keeps the newest 10,000"),
    Metric("store/memory_bytes", "Redis' used_memory"),
    Metric("store/memory_limit_bytes", "Redis' maxmemory; 0: none"),
    Metric("store/members/*", "live members by role", family="vcppo_store_members", label="role"),
)  # fmt: skip

STEP = Metric("step", "the writer's own count: learner steps, generator heartbeats, seconds of a buffer")
METRICS = (STEP, *LEARNER, *GENERATOR, *BUFFER)

_EXACT = {metric.name: metric for metric in METRICS if not metric.label}
_FAMILIES = sorted((metric for metric in METRICS if metric.label), key=lambda metric: -len(metric.name))


def series_of(name: str) -> Series:
    """Where the metric ``name`` goes. One nobody declared here becomes a gauge of its own."""
    if (metric := _EXACT.get(name)) is not None:
        return Series(metric, family_of(metric), "")
    for metric in _FAMILIES:
        start = metric.name.removesuffix("*")
        if name.startswith(start) and len(name) > len(start):
            return Series(metric, family_of(metric), name.removeprefix(start))
    metric = Metric(name, name)
    return Series(metric, family_of(metric), "")


def family_of(metric: Metric) -> str:
    """Its name in Prometheus, without the ``_total`` that counters get."""
    plain = metric.name.removesuffix("*").rstrip("_/")
    return metric.family or PREFIX + "".join(c if c.isalnum() else "_" for c in plain)


def exposed_name(metric: Metric) -> str:
    """As a query says it."""
    return family_of(metric) + ("" if metric.kind == "gauge" else "_total")


def render_markdown() -> str:
    """The text of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `python -m vcppo.common.telemetry.metric_names > docs/metrics.md`. Edit the texts there.",
        "",
        "Every number has one name and goes to several places: `<run>/metrics/<service>.jsonl`, TensorBoard",
        "(`logging.tensorboard`), Prometheus (`metrics.prometheus_port`) and, if asked for, [trackers](trackers.md):",
        "Weights & Biases, MLflow, trackio. Curves by position are in the JSON lines only. In",
        "Prometheus each series has the labels `service` and `run`; what is undefined has no sample, null in JSON.",
        "",
        "**Endpoint.** `metrics.prometheus_port: 9400` makes every process serve `/metrics`; under `vcppo up`, where",
        "several share a machine, buffers take that port and the next ones, then the learner, then the generators. It",
        "is read-only and open to whoever reaches the port: `metrics.prometheus_host: 127.0.0.1` keeps it here.",
        "Beside ours there are the process's own figures; `changes(process_start_time_seconds[1h])` is how often it",
        "was started again. `deploy/monitoring/` has a Prometheus config and a Grafana dashboard.",
    ]
    for title, metrics in (("Learner", LEARNER), ("Generator", GENERATOR), ("Buffer, and Redis through it", BUFFER)):
        lines += ["", f"## {title}", "", "| name | in Prometheus | meaning |", "|---|---|---|"]
        lines += [_row(metric) for metric in metrics]
    return "\n".join(lines) + "\n"


def _row(metric: Metric) -> str:
    label = f"{{{metric.label}}}" if metric.label else ""
    text = {"gauge": "", "running": "; since the process began", "since": "; since the line before"}[metric.kind]
    return f"| `{metric.name}` | `{exposed_name(metric)}{label}` | {(metric.text + text).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_markdown())
