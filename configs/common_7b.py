"""Settings that the 7B configs share: the paper's agent, and a mesh. Not a config to start by itself."""

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError


def as_7b(settings: ConfigDict) -> ConfigDict:
    """A pocket config with the paper's turns, results and budgets where it has such fields, on all
    devices.

    `policy` is a directory of Qwen2.5-VL-7B-Instruct, or of what SFT made of it. The directory as
    it is released allows pictures of 12.8 million pixels, 16,384 tokens; here they are the paper's.
    """
    settings.min_pixels, settings.max_pixels = 65_536, 8_294_400
    settings.mesh.fsdp = -1
    # SFT calls tools only where it is validated; else its server serves pictures, and needs no keys.
    if 'agent' in settings and settings.task != 'sft':
        settings.tools.update(config='configs/tools_online.yaml', deadline_s=60.0)
    set_there(
        settings,
        'agent',
        max_turns=10,
        max_malformed=0,
        turn_tokens=8192,
        text_results=5,
        image_results=5,
        passage_chars=8192,
    )
    # A 4K picture is about 10,500 tokens; prompt and trajectory together are truncated at 32,768.
    set_there(
        settings,
        'rollout',
        groups=16,
        prompt_capacity=11_264,
        suffix_capacity=21_504,
        chunk=64,
        tool_threads=64,
        judge_threads=64,
        extend_lanes=4,
        extend_tokens=1024,
        tower_batch=8,
        engines=1,
        dtype='bfloat16',
        warm_up=False,
    )  # sizes are many and compile for long: as they come
    set_there(settings, 'data', validation='')  # of your own, where a stage is validated
    set_there(settings, 'validation', lanes=8)
    return settings


def as_mars(settings: ConfigDict) -> ConfigDict:
    """A 7B config with the released protocol, for policies of Qwen3-VL-8B."""
    settings.agent.update(protocol='released', turn_tokens=4096)
    return settings


def with_adapters(settings: ConfigDict, stage: str, variant: str) -> ConfigDict:
    """A 7B config of a stage for eight devices of one machine, where adapters alone are trained: its
    variant 'lora' (docs/lora.md); as it is for 'full'.

    The rate is ten times that of the whole decoder, as found best for adapters of all matrices (J. Schulman
    and Thinking Machines Lab, LoRA Without Regret, 2025).
    """
    if variant == 'lora':
        part = settings[stage]
        part.update(freeze_embedding=True, learning_rate={'sft': 1e-4, 'rl': 1e-5}[stage])
        part.micro_batch = 8 // settings.mesh.tensor
        part.lora.rank = 32
    elif variant != 'full':
        raise UserError(f"configs/{stage}_7b.py:{variant} is unknown; choose 'full' or 'lora'.")
    return settings


def set_there(settings: ConfigDict, part: str, **values) -> None:
    """Sets those of the values that the part has a field for."""
    if part in settings:
        settings[part].update(
            {name: value for name, value in values.items() if name in settings[part]}
        )
