"""Generator of the tokenizer `policysmith/tiny`: byte-level BPE (Sennrich et al., 2016), which encodes any text.

python tools/tiny_tokenizer.py components/pretrained/tokenizers/policysmith--tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 480  # below the 512 embeddings of the tiny models, whose last ids are those of images
SPECIAL = ["<pad>", "<bos>", "<eos>"]
VERBS = (
    "open",
    "close",
    "pick up",
    "put",
    "push",
    "pull",
    "place",
    "turn",
    "press",
    "insert",
    "stack",
    "pour",
)
THINGS = (
    "drawer",
    "door",
    "red block",
    "blue cube",
    "cup",
    "bowl",
    "lid",
    "button",
    "handle",
    "box",
    "bottle",
    "shelf",
)
PLACES = ("", " on the table", " into the box", " to the left", " to the right", " from the tray")


def corpus() -> list[str]:
    """Return instructions as robots receive them, some with the numbers of a state."""
    tasks = [f"{verb} the {thing}{place}" for verb in VERBS for thing in THINGS for place in PLACES]
    numbers = [" ".join(str((7 * i + 31 * j) % 256) for j in range(8)) for i in range(64)]
    return [*tasks, *(f"Task: {t}, State: {n};\nAction: " for t, n in zip(tasks, numbers, strict=False))]


def main(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    whole.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
