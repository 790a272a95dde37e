"""The trained part of a policy: filters of its parameters, chosen by the config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from sensesearch_jax.model.lora import Lora, add_adapters, is_adapter
from sensesearch_jax.model.policy import Policy


def decoder(path: tuple[str, ...], _: Any) -> bool:
    """Filter of the language model, not the vision tower and projector."""
    return path[0] == 'language'


def inner_decoder(path: tuple[str, ...], _: Any) -> bool:
    """The language model without its embedding, and so without its head where the two are tied."""
    return decoder(path, _) and path[1] != 'embedding'


def trained_part(config: ConfigDict) -> Callable[[tuple[str, ...], Any], bool]:
    """The filter of the parameters that the config's `lora` and `freeze_embedding` leave to train."""
    if config.lora.rank:
        return is_adapter
    return inner_decoder if config.freeze_embedding else decoder


def to_train(policy: Policy, config: ConfigDict, seed: int) -> Policy:
    """The policy as training takes it: with the adapters that the config asks for, else as it is.

    Args:
        policy: that training starts from; its arrays are shared.
        config: the stage's.
        seed: of the adapters.
    """
    return add_adapters(policy, Lora.of(config.lora), seed)


def start_dtype(config: ConfigDict) -> str:
    """Type of the parameters that training starts from: float32 of what is trained itself, and where
    adapters alone are, that of the forward pass, which the frozen matrices are kept in.
    """
    return config.dtype if config.lora.rank else 'float32'
