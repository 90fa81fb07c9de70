"""Where a run keeps the weights of a policy version: the model it starts from, or one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.files.fingerprints import file_digest, model_contents
from vcppo.common.run_folder import CRITIC_FOLDER, RunFolder, checkpoints_in
from vcppo.deploy.run.run_config import RunError


@dataclass(frozen=True)
class PolicyWeights:
    """A policy version and its critic.

    Attributes:
        version: learner steps done; 0 is the policy at ``model.path``.
        name: of the weights, by what they hold; `critic`: of the critic, None without one.
        model: the Hugging Face folder (or hub id) to sample from; of a checkpoint it has to be exported first.
        checkpoint: None for version 0.
    """

    version: int
    name: str
    model: str
    critic: str | None
    checkpoint: Path | None = None


def find_weights(folder: RunFolder, config: VcppoConfig, version: int | None) -> PolicyWeights:
    """Of this version; None is the newest there is.

    Raises:
        RunError: the weights are gone, or were never there.
    """
    there = checkpoints_in(folder.checkpoints)
    version = max(there, default=0) if version is None else version
    if version == 0:
        return _before_rl(folder, config)
    if version not in there:
        kept = f"{', '.join(map(str, there))} and 0" if there else "only 0"
        raise RunError(
            f"--version {version}: its weights are gone, or not made yet: {folder.checkpoints} keeps a checkpoint every"
            f" learner.checkpoint_every = {config.learner.checkpoint_every} steps, the last learner.keep_checkpoints ="
            f" {config.learner.keep_checkpoints} of them. There are {kept}: choose of these"
        )
    checkpoint = there[version]
    name = f"step {version} {_manifest(checkpoint)}"
    critic = name if (checkpoint / "critic").is_dir() else None
    return PolicyWeights(version, name, str(folder.explainable / f"policy-{version:06d}"), critic, checkpoint)


def _before_rl(folder: RunFolder, config: VcppoConfig) -> PolicyWeights:
    model = config.model.path
    is_folder = (Path(model).expanduser() / "config.json").is_file()
    if not is_folder and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise RunError(f"--version 0: its weights are gone: model.path = {model} is no model folder; put it back")
    critic = None
    if config.algorithm.has_critic:
        init = config.critic.init
        place = str(folder.value_pretraining / CRITIC_FOLDER) if init == "value_pretrained" else init
        if init != "value_pretrained" or (Path(place) / "config.json").is_file():
            critic = plan_key({"critic": init, "files": model_contents(place, times=True) if init != "policy" else {}})
    name = plan_key({"model": model, "files": model_contents(model, times=True)})
    return PolicyWeights(0, name, model, critic)


def _manifest(checkpoint: Path) -> str:
    """A checkpoint's manifest has the sums of all its files."""
    try:
        return file_digest(checkpoint / "manifest.json")
    except OSError as error:
        raise RunError(f"{checkpoint}: its manifest can't be read ({error}): choose another --version") from error
