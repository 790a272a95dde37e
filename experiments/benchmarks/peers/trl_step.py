"""Steps of trl's GRPO trainer, one for each line on stdin; run by experiments/benchmarks/peers/process.py in
trl's environment.

Arguments: a policy directory, a picture's file, tokens to sample, ids not to sample. Its first line
is the prompt's ids, each later one the seconds of a step. It knows nothing of this project: it is
what a PyTorch user would write.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer

QUESTION = 'What is the title of the painting farthest left, and who has painted it? ' * 12
STEPS = 1000  # more than are asked for


class Processor(Qwen2_5_VLProcessor):
    """The policy's, without the part for videos, which wants torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        """Takes None for videos."""


class Steps(TrainerCallback):
    """Waits for a line before each step, and says how long it took."""

    def on_step_begin(self, *_, **__):
        if not sys.stdin.readline():
            sys.exit()
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        print(time.perf_counter() - self.began, flush=True)


def main(folder: str, picture: str, tokens: int, unsampled: list[int]) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for parameter in model.model.visual.parameters():
        parameter.requires_grad = False
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Processor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=tokenizer.chat_template,
    )
    image = Image.open(picture)
    content = [{'type': 'image', 'image': image}, {'type': 'text', 'text': QUESTION}]
    prompt = [{'role': 'user', 'content': content}]
    found = processor.apply_chat_template(
        [prompt], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    print(json.dumps([int(i) for i in found['input_ids'][0]]), flush=True)
    rows = Dataset.from_dict(
        {'prompt': [[{'role': 'user', 'content': QUESTION}]] * STEPS, 'image': [image] * STEPS}
    )
    settings = GRPOConfig(
        'trl-steps',
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=tokens,
        generation_kwargs={'min_new_tokens': tokens, 'suppress_tokens': unsampled},
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        learning_rate=1e-6,
        max_steps=STEPS,
        beta=0.0,
        max_grad_norm=1.0,
        importance_sampling_level='sequence',
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_strategy='no',
        save_strategy='no',
        disable_tqdm=True,
    )
    draw = torch.Generator().manual_seed(0)

    def reward(completions, **_):
        return torch.rand(len(completions), generator=draw).tolist()

    reward.__name__ = 'random'
    GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[Steps()],
    ).train()


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
