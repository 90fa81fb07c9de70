"""What saving a model needs besides its weights, tried before training.

transformers refuses to save a generation config that it loaded without a word (a temperature without ``do_sample``),
so a run would fail after its last step, and again at every restart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import structlog
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


class NotSaveable(VcppoError):
    """The model could be trained and not be saved; the text says why."""

    exit_code = EXIT_REFUSED


def make_saveable(model: PreTrainedModel) -> None:
    """Mend the generation config where transformers would not save it, then save and read back all but the weights.

    Raises:
        NotSaveable: the config can't be saved, or not be read again.
    """
    if model.can_generate():
        model.generation_config = _valid(model.generation_config, model.name_or_path)
    with tempfile.TemporaryDirectory(prefix="vcppo-save-") as folder:
        try:
            _save_configs(model, folder)
            _read_configs(model, folder)
        except Exception as error:  # transformers' validators raise many kinds
            raise NotSaveable(
                f"model {model.name_or_path}: it can be trained, but not be saved afterwards ({one_line(error)}): "
                "mend its config.json and generation_config.json, or choose another model.path"
            ) from error


def _save_configs(model: PreTrainedModel, folder: str) -> None:
    config = deepcopy(model.config)
    config._auto_class = None  # code files are copied with the weights
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _read_configs(model: PreTrainedModel, folder: str) -> None:
    if not model.is_remote_code():
        AutoConfig.from_pretrained(folder)
    if model.can_generate() and (Path(folder) / "generation_config.json").exists():
        GenerationConfig.from_pretrained(folder)


def _valid(given: GenerationConfig, path: str) -> GenerationConfig:
    """As given where transformers would save it; else with as few changes as it takes, which are logged."""
    before = _settings(given)
    for candidate in _repaired(given):
        try:
            candidate.validate(strict=True)
        except (ValueError, TypeError, AttributeError):
            continue
        after = _settings(candidate)
        changed = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
        if changed:
            log.warning(
                "generation_config_mended",
                model=path,
                changed={name: changed[name] for name in sorted(changed)},
                effect="exported models get these; transformers would not save them as they were",
            )
        return candidate
    raise NotSaveable(
        f"model {path}: its generation_config.json is not valid and can't be mended; correct it, or delete all but its "
        "token ids"
    )


def _repaired(given: GenerationConfig) -> Iterator[GenerationConfig]:
    """As it is; with sampling on, which is what sampling settings ask for, or without them where it says "greedy";
    the same without beams; token ids alone."""
    yield given
    sampling = deepcopy(given)
    if given.do_sample is False:
        for name in _SAMPLING:
            if hasattr(sampling, name):
                setattr(sampling, name, None)
    else:
        sampling.do_sample = True
    yield sampling
    without_beams = deepcopy(sampling)
    plain = GenerationConfig()
    for name in (
        "num_beams",
        "num_beam_groups",
        "early_stopping",
        "length_penalty",
        "diversity_penalty",
        "constraints",
    ):
        if hasattr(without_beams, name):
            setattr(without_beams, name, getattr(plain, name, None))
    yield without_beams
    tokens = {name: getattr(given, name, None) for name in _TOKENS}
    yield GenerationConfig(**{name: value for name, value in tokens.items() if _is_token(value)})


def _is_token(value: Any) -> bool:
    """A token id, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(each, int) and each >= 0 for each in values)


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
