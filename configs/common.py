"""Settings that the pocket configs share: the agent, its tools, sampling. Not a config to start by itself."""

from ml_collections import ConfigDict, FieldReference


def common(task: str) -> dict:
    """Fields that every task has but `base`."""
    return {
        'task': task,
        'seed': 0,
        'mesh': {
            'data': 1,
            'fsdp': 1,
            'expert': 1,
            'sequence': 1,
            'tensor': 1,
        },  # devices that train; -1, once, takes what is left
        # True where every host of a pod or cluster starts this command; see docs/multi_host.md
        'multi_host': False,
        'meet_timeout_s': 300.0,  # after which a process no longer waits for the others to start
        'peer_timeout_s': 45.0,  # of silence, after which another of its processes counts as gone
        # local folder in which a workdir or policy in a store (gs://, s3://) is worked on; '' is in
        # the user's cache; docs/storage.md
        'scratch': '',
        # folder of compiled programs, which a later start needs not compile; '' is
        'compilation_cache': '',
        # ~/.cache/sensesearch_jax/compiled, on several hosts WORKDIR-compiled; 'none' keeps none
        'min_pixels': 0,
        'max_pixels': 0,  # of a picture as the policy sees it; 0: as the policy's directory says
        'policy': '',  # a Hugging Face directory; '' is the base policy that comes with the project
        'tools': {
            'config': 'configs/tools_pocket.yaml',
            'url': '',  # of a server that runs already; '' starts one on loopback
            'port': 0,  # of the server that is started; 0 takes a free one
            'folder': '',  # where it keeps its pictures and log; '' is the workdir's own
            'deadline_s': 20.0,
            # of the server that is started: live, record, replay or offline; '' is its config's
            'mode': '',
            # its file of answers, in record and replay the recording; '' is its config's
            'answers': '',
        },
    }


def interaction() -> dict:
    """The agent's tools and what it is shown of their results."""
    return {
        'protocol': 'default',
        # of the protocol 'released', see configs/evaluate_mars.py
        'released': {'system_file': '', 'tools_file': '', 'form': 'evaluated', 'crops': 'named'},
        'tools': ('text_search', 'image_search', 'image_crop'),
        # room for a second crop and a second search after "No results."
        'max_turns': 7,
        'text_results': 2,
        'image_results': 3,
        'thumbnails': True,
        'passage_chars': 160,
    }


def agent() -> dict:
    """The same, and how long a policy may write."""
    return {
        **interaction(),
        # turns in a row without a valid action, which end a trajectory as well; 0: they do not
        'max_malformed': 2,
        'turn_tokens': 96,
    }


def sampler() -> dict:
    """One sampler: the room for a trajectory behind its prompt, in tokens, and the sizes of its
    passes.
    """
    return {
        'suffix_capacity': 1152,
        'chunk': 16,
        'tool_threads': 4,
        # Of one pass of tool responses through the decoder; as for pictures, more at once is lost
        # on a CPU.
        'extend_lanes': 8,
        'extend_tokens': 64,
        # or 'bfloat16': of the parameters that are sampled with; RL samples in rl.dtype
        'dtype': 'float32',
        'cache_dtype': 'policy',  # or 'int8': of keys and values while a trajectory grows
        # Pictures through the vision tower at once: a CPU gains nothing by more and loses what is
        # padded.
        'tower_batch': 1,
        # host memory for what comes out; 0: enough for a step, up to half of the host's
        'feature_cache_gib': 0.0,
    }


def rollout(**more) -> dict:
    """Samplers that share out the questions, and the verdicts on the answers that are asked for at
    a time.
    """
    return {
        **sampler(),
        'prompt_capacity': 416,
        'engines': 2,  # each in a thread: one alone does not fill two cores
        'judge_threads': 4,
        **more,
    }


def rl_rollout() -> dict:
    """The samplers of RL; of the same `groups`, questions that are sampled at once, are those of
    mining.
    """
    # all sizes of the programs are compiled before the first step
    return rollout(groups=8, warm_up=True)


def data(**stages) -> dict:
    """The sources of a stage's questions (`train`, `rl`, `validation`, `eval`), and what they share.

    A stage is a text, such as 'my.jsonl,fvqa@train', or a list of objects; docs/data.md has their
    fields.
    """
    return {
        'data': {
            **{name: FieldReference(value, field_type=object) for name, value in stages.items()},
            'seed': 0,  # of what is drawn of a source, and of the order in which RL asks
            'dir': '',  # of converted published sets; '' is tensorflow-datasets' own
            'max_bad_share': 0.01,  # of a source's records that may be no questions
        }
    }


def pocket_train(count: int) -> list:
    """Questions of the cold start: so many of search, and others in proportion."""
    return pocket('train', search=count, perception=count // 2, search_only=count // 3)


def pocket_rl(count: int) -> list:
    """Questions of RL about entities that neither the base policy nor SFT has met: those of the
    split 'validation'.
    """
    return pocket('validation', search=count, perception=count, search_only=count // 2)


def pocket_test(count: int) -> list:
    """Questions of the evaluation, so many of each category."""
    counts = dict.fromkeys(('search', 'perception', 'search_only'), count)
    return [{**source, 'seed': 1} for source in pocket('test', **counts)]


def pocket_validation(count: int) -> list:
    """Questions of validation, so many of each category: other ones than RL's, about its entities.

    No validation asks about those of the split 'test'.
    """
    counts = dict.fromkeys(('search', 'perception', 'search_only'), count)
    return [{**source, 'seed': 2} for source in pocket('validation', **counts)]


def pocket(split: str, world: str = 'pocket', **counts: int) -> list:
    """Sources of the pocket world, or of the invented one, one a category."""
    return [
        {'name': world, 'split': split, 'category': category, 'limit': count}
        for category, count in counts.items()
        if count
    ]


def served_model() -> dict:
    """A model behind any OpenAI-compatible server; prices are US dollars for a million tokens."""
    return {
        'url': '',
        'model': '',
        'key_env': 'OPENAI_API_KEY',
        'timeout_s': 120.0,
        'attempts': 6,
        'retry_pause_s': 1.0,
        'input_usd': 0.0,
        'output_usd': 0.0,
    }


def cold_start() -> dict:
    """Mining and the expert.

    The paper keeps questions that are right at most once in eight times. Some here have two
    answers, of which chance alone gives the right one four times.
    """
    return {
        # US dollars and requests for all served models, over all starts of the run; 0: any number
        'budget': {'usd': 0.0, 'calls': 0},
        'mine': {
            'kind': 'policy',
            'samples': 8,
            'most_right': 5,
            'temperature': 1.0,
            'answer_tokens': 16,
            'threads': 4,
            **served_model(),
        },
        'expert': {
            'kind': 'scripted',
            'questions': 1000,
            'threads': 4,
            **served_model(),
            'temperature': 0.7,
            'turn_tokens': 2048,
            'tries': 3,  # at a turn, until one has reasoning and a valid action
        },
        'validate': {'kind': 'rules', 'tries': 3, 'reply_tokens': 1024, **served_model()},
    }


def optimizer(**changes) -> dict:
    """AdamW as the paper has it, but for the learning rate."""
    return {
        'schedule': 'constant',
        'warmup': 10,
        'b1': 0.9,
        'b2': 0.999,
        'eps': 1e-8,
        'weight_decay': 0.01,
        'clip_norm': 1.0,
        'remat': 'none',
        'dtype': 'float32',
        # Adam moves the row of a token that hardly occurs as far as any other, in a direction of
        # mere noise, and copying rare names suffers. The paper trains the whole decoder.
        'freeze_embedding': True,
        'lora': lora(),
        'threads': 2,  # micro-batches computed side by side: one alone does not fill two cores
        # so many in a row whose gradient is not finite, and which are not made, end the run
        'max_skipped_updates': 5,
        # Steps between validations on data.validation; 0: none. Each costs as much as a small evaluation.
        'validate_every': 0,
        'result': 'last',  # or 'best': the policy of the checkpoint that validation found best
        **changes,
    }


def lora() -> dict:
    """Low-rank adapters, which alone are trained where their rank is above 0; docs/lora.md."""
    attention, mlp = ('q_proj', 'k_proj', 'v_proj', 'o_proj'), ('gate_proj', 'up_proj', 'down_proj')
    return {'rank': 0, 'alpha': 32.0, 'targets': attention + mlp}


def measured() -> dict:
    """Places that metrics go to beside metrics.jsonl (docs/metrics.md), and steps that are traced."""
    return {
        'metrics': {'sinks': ()},  # any of 'tensorboard', 'wandb' and 'mlflow'
        'profile_steps': 0,  # so many steps after the first ones are traced for jax.profiler
    }


def checkpoint() -> dict:
    """The checkpoints of a stage that are kept; the others are deleted."""
    return {
        'keep_last': 1,
        'keep_every': 0,  # steps, by whose multiples checkpoints are kept too; 0: none are
        'keep_best': 1,  # so many with the highest scores in validation are kept too
    }


def sft() -> dict:
    """The imitation of the kept expert trajectories.

    So many batches in a row share out their items by length.
    """
    return optimizer(
        learning_rate=8e-4,
        schedule='cosine',
        warmup=20,
        b2=0.98,
        epochs=1,
        batch=4,
        micro_batch=1,
        # of a row: what their prompts begin with, the system prompt, is run once, and they are
        # packed, a long one with a short one, into 1,536 tokens, seldom into twice as many, so that
        # programs stay few
        row_trajectories=2,
        pack_step=1536,
        length_window=1,
        checkpoint_every=50,
        held_out=0,  # trajectories that are not trained on, for their loss at each validation
    )


def rl() -> dict:
    """Rollouts, rewards and the policy loss; fields as in the paper's table.

    But for the temperature: at 1.0 a policy of this size makes a mistake in most of its trajectories, and at 0.4 it tries
    nothing new; without a KL term, as in the released code, which saves a pass of the reference (with 0.1 and half of the
    questions of perception, RL's gain was no larger); and with a reward for evidence (rewards/evidence.py) in place of one
    for format. After a short SFT most groups of search are all wrong. With accuracy alone they teach nothing; with format,
    that an answer at once is the surest way to be well-formed; evidence tells the trajectory that looked at the right
    thing from near, or searched for it, from the one that did not.
    What is kept is the mean of the parameters over the later two thirds of the steps, also unlike the paper: with so few
    trajectories most of a gradient is noise, and the mean keeps what the steps have in common.
    It asks about entities that neither the base policy nor SFT has met. With those that they have, what is rewarded is
    to remember names, not to read them.
    """
    return optimizer(
        algorithm='bn_gspo',  # bn_gspo | gspo | grpo | sapo | luspo
        baseline='mean_std',  # mean_std | mean | leave_one_out
        aggregation='',  # of the loss: the algorithm's own, or sequence | token | constant
        constant_length=0,  # tokens, of 'constant' alone
        soft_positive=1.0,  # temperatures of sapo alone
        soft_negative=1.05,
        # truncated importance weights of the trainer's old policy against the sampler: token | sequence
        importance='',
        importance_cap=2.0,
        entropy_coefficient=0.0,
        # so many of the policy's mistakes in a row mask what it writes after them; 0: none do
        fatal_mistakes=0,
        # more questions are asked, in so many rounds at most, until enough groups have spread
        sampling_rounds=1,
        # 1: the next step is sampled while this one's last groups end and while it trains
        max_staleness=0,
        batch_scope='batch',  # of bn_gspo's batch layer: the rollout batch, or each 'minibatch'
        learning_rate=1e-4,
        warmup=2,
        steps=24,
        questions_per_step=10,
        members=8,
        # so many of them at first, and as many again while their rewards are equal; 0: all at once
        first_members=0,
        minibatches=1,
        epochs=1,
        micro_batch=1,
        # the policy that is kept is the mean of those after each of the later two thirds of steps
        averaged=True,
        # smallest size of a row's suffixes packed into one run; 0: they stay padded, for fewer
        # programs
        pack_step=0,
        temperature=0.7,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=3.0,  # the last of grpo alone
        kl_coefficient=0.0,
        format_weight=0.0,
        evidence_weight=0.5,
        tool_prices={'text_search': 0.0, 'image_search': 0.0, 'image_crop': 0.0},
        # calls are free before that step: first the policy learns to use its tools, then to spare
        price_from_step=0,
        checkpoint_every=2,
        keep_trajectories=0,  # newest steps whose trajectories are kept; 0: of all steps
        max_failed_steps=3,
    )  # so many in a row in which tools or judge failed every trajectory end the run, to be mended


def validation() -> dict:
    """How the questions of data.validation are asked during training; docs/validation.md.

    Greedy always. Asked several times, or without a tool, it takes so much longer.
    """
    return {
        'lanes': 64,
        'samples': 0,
        'temperature': 0.7,
        'without': (),
        'best_by': 'accuracy',  # or 'avg@k' of the samples, or SFT's 'loss' on sft.held_out
    }


def evaluation() -> dict:
    """Greedy, as many questions at once as there are lanes.

    Whoever tunes SFT does so on the split 'validation'.
    """
    return {'lanes': 64, 'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}


def alarms(*tasks: str) -> dict:
    """Alarms of the tasks `cold_start`, `sft`, `rl` and `evaluate`: their limits (docs/watch.md), whom they
    tell, and which of them end the run. A limit of 0 switches its alarm off.
    """
    of_tools = {'tools_down': 0.5, 'judge_down': 0.5}
    of_answers = {**of_tools, 'same_answer': 0.8}
    of_training = {'non_finite': 1, 'slow_host': 2.0}
    of_learning = {
        'repetition': 0.6,
        'sampler_gap': 0.1,
        # in units of the first steps' mean
        'tool_use': 0.2,
        'format': 0.5,
        'entropy_low': 0.1,
        'entropy_high': 5.0,
        'length_low': 0.2,
        'length_high': 4.0,
        # above the first steps' mean
        'reward_gain': 0.2,
        'reference': 4,
    }
    limits = {
        'cold_start': of_tools,
        'sft': of_training,
        'rl': of_answers | of_training | of_learning,
        'evaluate': of_answers,
    }
    merged = {name: value for task in tasks for name, value in limits[task].items()}
    calls = {'stop_on': (), 'command': '', 'webhook': '', 'deadline_s': 30.0}
    return {'alarms': {**merged, 'window': 2, **calls}}


def config(*parts: dict) -> ConfigDict:
    """The parts as one config; a later part's field wins."""
    merged: dict = {}
    for part in parts:
        merged |= part
    return ConfigDict(merged)
