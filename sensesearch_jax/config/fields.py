"""Every field of a config: its type, its meaning, and whether it may change when a run goes on.

A field that pins a workdir has a part in the run's result. The others say where things are found,
on what and in what pieces they are computed, and how often something is looked at; rounding aside,
they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sensesearch_jax.errors import UserError


class Field(NamedTuple):
    """A field of a config.

    Args:
        type: of its value; a tuple's items may be of any type.
        meaning: in a phrase, with its unit and special values.
        pins: whether it pins the workdir.
    """

    type: type
    meaning: str
    pins: bool = True


def _operational(kind: type, meaning: str) -> Field:
    return Field(kind, meaning, pins=False)


_OPTIMIZER = {
    'learning_rate': Field(float, 'of AdamW, after the warm-up'),
    'schedule': Field(str, "'constant', or 'cosine' down to a twentieth"),
    'warmup': Field(int, 'updates over which the learning rate rises'),
    'b1': Field(float, 'AdamW, decay of the first moment'),
    'b2': Field(float, 'AdamW, decay of the second moment'),
    'eps': Field(float, 'AdamW, added to the root of the second moment'),
    'weight_decay': Field(float, 'of AdamW, on matrices alone, not of biases and norms'),
    'clip_norm': Field(float, 'global norm that gradients are clipped to'),
    'freeze_embedding': Field(bool, 'whether the embedding, and a head tied to it, is not trained'),
    'lora.rank': Field(
        int, 'rank of adapters, which alone are trained then; 0: none; docs/lora.md'
    ),
    'lora.alpha': Field(float, 'their product is scaled by alpha / rank'),
    'lora.targets': Field(tuple, "matrices of the decoder that have one, by PEFT's names"),
    'dtype': Field(
        str, "of activations: 'float32' or 'bfloat16'; master weights and moments are float32"
    ),
    'remat': _operational(
        str, "kept for the backward pass: 'none' (all), 'dots', 'attention' or 'full'"
    ),
    'micro_batch': _operational(
        int, 'rows of one forward and backward pass, on all devices together'
    ),
    'threads': _operational(int, 'micro-batches computed side by side in a process'),
    'checkpoint_every': _operational(int, 'steps between checkpoints'),
    'validate_every': _operational(int, 'steps between validations, docs/validation.md; 0: none'),
    'result': Field(str, "policy that is written at the end: 'last', or 'best' by validation"),
    'max_skipped_updates': _operational(
        int, 'updates in a row with a gradient that is not finite, after which the run ends'
    ),
}


def _served(part: str) -> dict[str, Field]:
    """The fields of a model behind an OpenAI-compatible service."""
    return {
        f'{part}.url': _operational(str, "address of the 'openai' service, up to and with /v1"),
        f'{part}.model': Field(str, 'name of its model'),
        f'{part}.key_env': _operational(str, 'environment variable that has its key'),
        f'{part}.timeout_s': _operational(float, 'seconds that one attempt may take'),
        f'{part}.attempts': _operational(int, 'attempts at a request, the first included'),
        f'{part}.retry_pause_s': _operational(
            float, 'seconds before the second attempt at most, then doubling'
        ),
        f'{part}.input_usd': _operational(float, 'price of a million tokens of its prompts'),
        f'{part}.output_usd': _operational(float, 'price of a million tokens of its replies'),
    }


FIELDS = {
    'task': Field(
        str, 'the run: cold_start, sft, rl, evaluate, ask, build_benchmark, pocket or base'
    ),
    'seed': Field(int, 'seed of all random draws but those of questions, of which data.seed is'),
    'policy': Field(
        str, "a Hugging Face directory, or a run's checkpoint; '' is the project's own base policy"
    ),
    'min_pixels': Field(
        int, 'fewest pixels of an image as the policy sees it; 0: as its directory says'
    ),
    'max_pixels': Field(
        int, 'most pixels of an image as the policy sees it; 0: as its directory says'
    ),
    'multi_host': _operational(bool, 'whether every host starts this command; docs/multi_host.md'),
    'meet_timeout_s': _operational(
        float, 'seconds that a process waits at its start for the others to come'
    ),
    'peer_timeout_s': _operational(
        float, 'seconds without a sign of life after which another process counts as gone'
    ),
    'scratch': _operational(
        str, "local folder of workdirs and policies in a store; '' is in the user's cache"
    ),
    'compilation_cache': _operational(
        str, "folder of compiled programs; '' is the user's cache, or beside the workdir; 'none'"
    ),
    'mesh.data': _operational(
        int, 'devices along the data axis, which shards rows; -1: all that are left'
    ),
    'mesh.fsdp': _operational(
        int, 'devices along the fsdp axis, which shards rows and parameters; -1: as above'
    ),
    'mesh.expert': _operational(
        int, 'devices along the expert axis, which shards rows and experts; -1: as above'
    ),
    'mesh.sequence': _operational(
        int, 'devices along the sequence axis, which shards tokens and parameters; -1: as above'
    ),
    'mesh.tensor': _operational(
        int, 'devices along the tensor axis, which shards heads and feed-forward; -1: as above'
    ),
    'tools.config': Field(str, 'configuration of the tool server that is started'),
    'tools.url': _operational(str, "address of a tool server that runs already; '' starts one"),
    'tools.port': _operational(int, 'port of the server that is started; 0: any free one'),
    'tools.folder': Field(str, "where it keeps images and log; '' is the workdir's own"),
    'tools.deadline_s': _operational(float, 'seconds that a tool call may take'),
    'tools.mode': Field(str, "live, record, replay or offline; '' is its configuration's"),
    'tools.answers': Field(str, "its file of recorded answers; '' is its configuration's"),
    'agent.protocol': Field(str, "text form of turns: 'default' or 'released'"),
    'agent.released.system_file': Field(
        str, "the release's manifest, or a file of its system text alone; '' is ours"
    ),
    'agent.released.tools_file': Field(str, "the release's tool configuration; '' is ours"),
    'agent.released.form': Field(str, "'evaluated' or 'trained': schemas and breaks between turns"),
    'agent.released.crops': Field(str, "'named' or 'original': the image that crops are cut from"),
    'agent.tools': Field(tuple, 'tools that the policy may call'),
    'agent.max_turns': Field(int, 'most turns of a trajectory'),
    'agent.turn_tokens': Field(int, 'most tokens that the policy may write in a turn'),
    'agent.max_malformed': Field(
        int, 'turns in a row without a valid action that end a trajectory; 0: none do'
    ),
    'agent.text_results': Field(int, 'passages of a text search that are shown'),
    'agent.image_results': Field(int, 'matches of an image search that are shown'),
    'agent.thumbnails': Field(bool, 'whether an image search shows images'),
    'agent.passage_chars': Field(
        int, "characters of a passage that are shown; at least the tools' text_search.max_chars"
    ),
    'rollout.groups': _operational(
        int, 'groups sampled at once by each replica of the policy; docs/7b.md'
    ),
    'rollout.engines': _operational(
        int, "engines that share out a replica's groups, a thread each"
    ),
    'rollout.prompt_capacity': Field(int, 'tokens that a prompt may have'),
    'rollout.suffix_capacity': Field(int, 'tokens that a trajectory may have behind its prompt'),
    'rollout.chunk': _operational(int, 'tokens decoded between two checks by the host'),
    'rollout.extend_lanes': _operational(int, 'trajectories of one pass of tool responses'),
    'rollout.extend_tokens': _operational(int, 'tokens of one pass of tool responses'),
    'rollout.tool_threads': _operational(int, 'tool calls at a time'),
    'rollout.judge_threads': _operational(int, 'verdicts asked for at a time'),
    'rollout.tower_batch': _operational(int, 'images of one pass through the vision tower'),
    'rollout.feature_cache_gib': _operational(
        float, 'GiB of host memory for visual features; 0: enough for a step, at most half'
    ),
    'rollout.dtype': Field(str, "of the sampled policy's parameters: 'float32' or 'bfloat16'"),
    'rollout.cache_dtype': Field(str, "of the KV cache: 'policy' (as the parameters) or 'int8'"),
    'rollout.warm_up': _operational(bool, 'whether all shapes are compiled before the first step'),
    'data.train': Field(tuple, 'sources of the cold start; docs/data.md: my.jsonl,fvqa@train'),
    'data.rl': Field(tuple, 'sources of RL, mixed by their weights'),
    'data.eval': Field(tuple, 'sources of the evaluation, of which each question is asked once'),
    'data.validation': Field(
        tuple, 'sources of validation in training, which asks each question every time'
    ),
    'data.seed': Field(int, 'seed of the choice of questions by limits, and of their order in RL'),
    'data.dir': _operational(str, "folder of converted sets; '' is tensorflow-datasets' own"),
    'data.max_bad_share': Field(float, 'share of a source that may be no questions, left out'),
    'budget.usd': _operational(float, 'US dollars for all served models of a run; 0: any number'),
    'budget.calls': _operational(int, 'requests to them, retries included; 0: any number'),
    'mine.kind': Field(str, "'policy', or 'openai' for any compatible service"),
    **_served('mine'),
    'mine.threads': _operational(int, 'questions at a time that a served model is asked'),
    'validate.kind': Field(str, "'rules', or 'openai' for a served model after the rules"),
    **_served('validate'),
    'validate.tries': Field(int, 'replies until one can be read'),
    'validate.reply_tokens': Field(int, 'most tokens of a reply'),
    'mine.samples': Field(int, 'answers that are sampled to each question'),
    'mine.most_right': Field(int, 'most right answers of a question that counts as hard'),
    'mine.temperature': Field(float, 'of sampling these answers'),
    'mine.answer_tokens': Field(int, 'most tokens of such an answer'),
    'expert.kind': Field(
        str, "'scripted' (pocket world), 'references' (answers at once) or 'openai' (any service)"
    ),
    'expert.questions': Field(int, 'most trajectories that are made'),
    'expert.threads': _operational(int, 'trajectories made at a time'),
    **_served('expert'),
    'expert.temperature': Field(float, 'of the served model'),
    'expert.turn_tokens': Field(int, 'most tokens that the served model may write in a turn'),
    'expert.tries': Field(int, 'replies per turn until one has reasoning and a valid action'),
    **{f'sft.{name}': field for name, field in _OPTIMIZER.items()},
    'sft.data': Field(str, 'file of trajectories, kept.jsonl of a cold start'),
    'sft.epochs': Field(int, 'passes over the trajectories'),
    'sft.batch': Field(int, 'trajectories of an update'),
    'sft.row_trajectories': _operational(
        int, 'trajectories of a row, which share the tokens that their prompts begin with'
    ),
    'sft.pack_step': _operational(
        int, "unit of the lengths of a row's packed trajectories; 0: they stay padded"
    ),
    'sft.length_window': Field(int, 'batches among which trajectories are sorted by length'),
    'sft.held_out': Field(
        int, 'trajectories that are not trained on, whose loss is a metric of validation'
    ),
    'profile_steps': _operational(
        int, 'steps after the first ones that are traced for jax.profiler; 0: none'
    ),
    'metrics.sinks': _operational(
        tuple, "where metrics go beside metrics.jsonl: 'tensorboard', 'wandb', 'mlflow'"
    ),
    'checkpoint.keep_last': _operational(int, 'newest checkpoints of a stage that are kept'),
    'checkpoint.keep_every': _operational(
        int, 'steps, by whose multiples checkpoints are kept too; 0: none are'
    ),
    'checkpoint.keep_best': _operational(
        int, 'checkpoints with the highest scores in validation that are kept too; 0: none are'
    ),
    **{f'rl.{name}': field for name, field in _OPTIMIZER.items()},
    'rl.algorithm': Field(str, "'bn_gspo', 'gspo', 'grpo', 'sapo' or 'luspo'; docs/method.md"),
    'rl.baseline': Field(
        str,
        "what rewards are compared with: 'mean_std' of the group, its 'mean' or 'leave_one_out'",
    ),
    'rl.aggregation': Field(
        str, "mean of the policy loss: 'sequence', 'token' or 'constant'; '': the algorithm's own"
    ),
    'rl.constant_length': Field(
        int, "tokens that 'constant' divides a trajectory's sum by; 0 with the others"
    ),
    'rl.soft_positive': Field(float, "temperature of 'sapo' where the advantage is positive"),
    'rl.soft_negative': Field(float, "temperature of 'sapo' elsewhere"),
    'rl.importance': Field(
        str, "weights against the sampler's distribution, by 'token' or 'sequence'; '': none"
    ),
    'rl.importance_cap': Field(float, 'most that such a weight may be'),
    'rl.entropy_coefficient': Field(float, 'weight of the entropy bonus; 0: none'),
    'rl.fatal_mistakes': Field(
        int, "the policy's mistakes in a row after which its tokens are masked; 0: none are"
    ),
    'rl.sampling_rounds': Field(
        int, 'rounds of questions of a step at most, until enough groups have spread; 1: no more'
    ),
    'rl.max_staleness': Field(
        int,
        'steps that the policy may be ahead of what it learns from; 0: sampling awaits training',
    ),
    'rl.batch_scope': Field(
        str, "what the advantages are normalized over: the rollout 'batch', or each 'minibatch'"
    ),
    'rl.steps': Field(int, 'rollout batches; more of them go on where the schedule is constant'),
    'rl.questions_per_step': Field(int, 'groups of a rollout batch'),
    'rl.members': Field(int, 'trajectories of a group'),
    'rl.first_members': Field(
        int, 'of them at first, and as many again while their rewards are equal; 0: all at once'
    ),
    'rl.minibatches': Field(int, 'updates of an epoch over a rollout batch'),
    'rl.epochs': Field(int, 'passes over a rollout batch'),
    'rl.averaged': Field(
        bool, 'whether the result is the mean of the policies of the later two thirds of the steps'
    ),
    'rl.pack_step': _operational(
        int, 'smallest length of packed suffixes, in tokens; 0: padded, not packed'
    ),
    'rl.temperature': Field(float, 'of sampling'),
    'rl.clip_low': Field(float, 'how far the ratio may fall below 1'),
    'rl.clip_high': Field(float, 'how far the ratio may rise above 1'),
    'rl.dual_clip': Field(
        float, "bound of the ratio where the advantage is negative, 'grpo' only; 0: none"
    ),
    'rl.kl_coefficient': Field(float, 'weight of the KL term; 0: no forward pass of the reference'),
    'rl.format_weight': Field(float, 'weight of format in the reward'),
    'rl.evidence_weight': Field(float, 'weight of evidence in the reward'),
    'rl.tool_prices': Field(dict, "a call's price in the reward, by tool"),
    'rl.price_from_step': Field(
        int, 'first step, from 1, whose calls cost that; 0: the first of all'
    ),
    'rl.keep_trajectories': _operational(
        int, 'newest steps whose trajectories are kept; 0: of all steps'
    ),
    'rl.max_failed_steps': _operational(
        int, 'steps in a row without a usable group, after which the run ends'
    ),
    'alarms.tools_down': _operational(
        float, "share of a step's trajectories on which tools fail, from which on is an alarm"
    ),
    'alarms.judge_down': _operational(float, 'the same, of those that the judge fails on'),
    'alarms.tool_use': _operational(
        float, "tool calls per trajectory, below which, in units of the first steps'"
    ),
    'alarms.same_answer': _operational(
        float, 'share of equal pairs of answers to different questions, above which'
    ),
    'alarms.format': _operational(float, "well-formed share, below which, of the first steps'"),
    'alarms.entropy_low': _operational(float, "entropy, below which, of the first steps'"),
    'alarms.entropy_high': _operational(float, "entropy, above which, of the first steps'"),
    'alarms.repetition': _operational(
        float, 'share of trajectories that repeat a call, above which'
    ),
    'alarms.length_low': _operational(float, "tokens of a response, below which, of the first's"),
    'alarms.length_high': _operational(float, "tokens of a response, above which, of the first's"),
    'alarms.sampler_gap': _operational(
        float, 'nats per token between sampler and trainer, above which'
    ),
    'alarms.reward_gain': _operational(
        float, 'gain of reward since the first steps, from which on, if accuracy has not risen'
    ),
    'alarms.non_finite': _operational(
        int, 'updates of the window that are not finite, from which on is an alarm'
    ),
    'alarms.slow_host': _operational(
        float, "a host's time in units of the others', above which, at each step of the window"
    ),
    'alarms.window': _operational(int, 'last steps whose mean is compared'),
    'alarms.reference': _operational(int, 'first steps whose mean is compared with'),
    'alarms.stop_on': _operational(tuple, 'names of alarms that end the run; docs/watch.md'),
    'alarms.command': _operational(
        str, "shell command run at an alarm, with ALARM_TEXT, ALARM_NAME and others; '' for none"
    ),
    'alarms.webhook': _operational(
        str, "address that an alarm is posted to as JSON, or $VARIABLE that has it; '' for none"
    ),
    'alarms.deadline_s': _operational(float, 'seconds that one command or request may take'),
    'validation.lanes': _operational(int, 'trajectories sampled at once by each replica'),
    'validation.samples': Field(
        int, 'trajectories of a question that are sampled, beside a greedy one; 0: none'
    ),
    'validation.temperature': Field(float, 'of sampling these'),
    'validation.without': Field(tuple, 'tools without each of which all is asked once more'),
    'validation.best_by': Field(
        str, "score of a checkpoint: greedy 'accuracy', 'avg@k' of the samples, or SFT's 'loss'"
    ),
    'evaluate.name': Field(str, 'name of the policy in the summary'),
    'evaluate.mode': Field(
        str, "'agent', 'rag' (results of image search in the prompt) or 'direct'"
    ),
    'evaluate.samples': Field(int, 'trajectories of a question, k of Avg@k'),
    'evaluate.agent.kind': Field(str, "'policy', or 'openai' for any compatible service"),
    **_served('evaluate.agent'),
    'evaluate.lanes': _operational(
        int, 'trajectories sampled at once by each replica, or asked for at once'
    ),
    'evaluate.temperature': Field(float, 'of sampling; 0 is greedy'),
    'evaluate.top_k': Field(int, 'most likely tokens that are drawn from; 0: all'),
    'evaluate.top_p': Field(
        float, 'probability of the most likely tokens that are drawn from; 1: all'
    ),
    'benchmark.data': Field(str, 'JSONL file of pictures, boxes and questions'),
    'benchmark.min_width': Field(int, "least pixels of a picture's longer side"),
    'benchmark.min_height': Field(int, "least pixels of a picture's shorter side"),
    'benchmark.max_area': Field(float, "share of its picture that an item's box stays below"),
    'benchmark.max_likeness': Field(
        float, 'of two pictures, beyond which they are nearly the same'
    ),
    'benchmark.samples': Field(int, 'answers of the policy to each sound item; 0: none'),
    'benchmark.temperature': Field(float, 'of sampling these answers'),
    'ask.page': _operational(bool, 'whether a page is served on which to ask; docs/watch.md'),
    'ask.port': _operational(int, "the page's port; 0: any free one"),
    'image': Field(str, "files of the images to ask about, with commas between; '' for none"),
    'question': Field(str, 'text of the question'),
    'temperature': Field(float, 'of sampling; 0 is greedy'),
    'top_k': Field(int, 'most likely tokens that are drawn from; 0: all'),
    'top_p': Field(float, 'probability of the most likely tokens that are drawn from; 1: all'),
}

# each may be a text as well
SOURCES = 'data.train', 'data.rl', 'data.validation', 'data.eval'

# The fields of `base` are the pocket policy's own; they are documented in configs/base.py.
OPERATIONAL = (
    *(name for name, field in FIELDS.items() if not field.pins),
    # of `base`
    'evaluate_every',
    'checkpoint_minutes',
    'max_minutes',
    'max_skipped_updates',
)


def leaves(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Names and values of a config's fields, depth first.

    Args:
        config: the config, or a part of it. A part that is one field of `FIELDS` is not entered.
        prefix: of the names.
    """
    for name, value in config.items():
        whole = FIELDS.get(f'{prefix}{name}')
        if isinstance(value, ConfigDict) and not (whole and whole.type is dict):
            yield from leaves(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def check_types(config: ConfigDict) -> None:
    """Whether each field is one, with a value of its type.

    Args:
        config: of any task but `base`.

    Raises:
        UserError: a field is unknown or of another type.
    """
    for name, value in leaves(config):
        if name not in FIELDS:
            raise UserError(
                f'The config has an unknown field {name}; `python -m sensesearch_jax.config` lists all.'
            )
        wanted = FIELDS[name].type
        if name in SOURCES and isinstance(value, str):
            continue
        given = (
            dict
            if isinstance(value, ConfigDict)
            else tuple
            if isinstance(value, list)
            else type(value)
        )
        if given is not wanted and not (wanted is float and given is int):
            raise UserError(f'{name} is {value!r}; give a value of type {wanted.__name__}.')
