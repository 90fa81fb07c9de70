"""A critic of another model than the policy reads the policy's tokens: both must mean the same by a number."""

from __future__ import annotations

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.model_folder.stated_config import find_file
from vcppo.common.model_folder.tokenizer import load_tokenizer
from vcppo.common.model_folder.vocabulary import first_difference, vocabulary_of
from vcppo.learner.models.models import vocabulary_size


class VocabularyDiffers(VcppoError):
    """The critic would read other tokens than the policy wrote."""

    exit_code = EXIT_REFUSED


def usable_vocabulary(config: VcppoConfig) -> int:
    """How many tokens both models have an embedding for; a response with a number beyond is rejected.

    Models of one family often pad their embeddings to different sizes; no token has those numbers.

    Raises:
        VocabularyDiffers: the critic's model has another vocabulary than the policy's, or can't be compared.
        VcppoError: a model or tokenizer can't be read.
    """
    trust = config.model.trust_remote_code
    of_policy = vocabulary_size(config.model.path, trust)
    if not config.algorithm.has_critic:
        return of_policy
    if config.critic.model is not None:
        path, setting = config.critic.model, "critic.model"
    elif config.critic.init not in ("value_pretrained", "policy"):
        path, setting = config.critic.init, "critic.init"
    else:
        return of_policy
    of_critic = vocabulary_size(path, trust)
    if setting == "critic.init" and find_file(path, "tokenizer.json") is None:
        # A critic or reward model of ours: no tokenizer is saved with it.
        if of_critic != of_policy:
            raise VocabularyDiffers(
                f"{setting} = {path}: has no tokenizer.json to compare, and {of_critic} embeddings where model.path has"
                f" {of_policy}: copy the tokenizer of its model into the folder, or choose another critic.init"
            )
        return of_policy
    _compare(config, path, setting, of_critic)
    return min(of_policy, of_critic)


def _compare(config: VcppoConfig, path: str, setting: str, of_critic: int) -> None:
    trust = config.model.trust_remote_code
    policy = vocabulary_of(load_tokenizer(config.model.path, trust))
    critic = vocabulary_of(load_tokenizer(path, trust, field=setting))
    if (difference := first_difference(policy, critic)) is not None:
        raise VocabularyDiffers(
            f"{setting} = {path}: its tokenizer has another vocabulary than that of model.path = {config.model.path}:"
            f" {difference}: choose a model with the same tokenizer for critic.model, or null"
        )
    if of_critic <= (last := max(critic.values(), default=0)):
        raise VocabularyDiffers(
            f"{setting} = {path}: its tokenizer has tokens up to {last}, and the model embeddings of {of_critic}: "
            "choose another critic.model, or null"
        )
