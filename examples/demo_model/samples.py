"""Print the model's greedy answers to a few prompts: `python -m examples.demo_model.samples`.

Computed in float32 from the shipped bfloat16 weights with `transformers`, which is also what the cluster is compared
with.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.rule import Rule
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = (
    "def ",
    "def read_file(path):",
    "class Stack:",
    "def fibonacci(n):",
    "import os\n\ndef ",
)
CHAT = ({"role": "user", "content": "Return the absolute path of a file."},)


def main() -> None:
    """Parse the options and print the prompts with their answers."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.samples", description=(__doc__ or "").strip())
    parser.add_argument("prompts", nargs="*", help="prompts to complete (default: five, and a chat)")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="model folder (default: this one)")
    parser.add_argument("--tokens", type=int, default=120, help="longest answer in tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model)
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    prompts = list(options.prompts or PROMPTS)
    if not options.prompts:
        prompts.append(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    console = Console(highlight=False)
    for prompt in prompts:
        console.print(Rule(repr(prompt)))
        console.print(complete(model, tokenizer, prompt, options.tokens), markup=False, soft_wrap=True)


def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int) -> str:
    """Return the prompt with the greedy answer of at most `tokens` tokens behind it, special tokens left out."""
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(  # type: ignore[misc]  # its self type is one no model of the library is known to have
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
    )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
