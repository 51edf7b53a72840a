"""How a question becomes a prompt: the wordings, as chat messages.

The wordings are ours; the paper's own stand in its repository's recipe files. `--template FILE` takes any other: the
user's message with {question} in it, after a line `---` if a system message comes first. The image of a vision set
stands before the text, or where the wording has <image>.

`own` is the data's text alone, and a base model must see it without a chat template around it. veRL renders every
prompt through the tokenizer's chat template, in its data set and in its agent loop; `+prompt=plain` (a config group of
this package, presets/prompt/plain.yaml) sets `actor_rollout_ref.model.custom_chat_template` to one that adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

import gpg_verl
from gpg_verl.data import DataError
from gpg_verl.data.dataset import Question

QUESTION = "{question}"
IMAGE = "<image>"  # where veRL puts the row's image; before the user's text if a wording does not say
Messages = list[dict[str, str]]  # role and content
# `+prompt=plain`: no chat template. veRL hands over a message with an image as a list of pieces; the marks are Qwen's.
PLAIN = OmegaConf.load(
    Path(gpg_verl.__file__).parent / "presets/prompt/plain.yaml"
).actor_rollout_ref.model.custom_chat_template


@dataclass(frozen=True)
class Template:
    user: str
    system: str | None = None
    plain: bool = False  # the prompt is complete: to be used without the model's chat template

    def messages(self, question: Question) -> Messages:
        text = question.own_prompt if self.plain and question.own_prompt else question.text
        wording = self.user if question.image is None or IMAGE in self.user else IMAGE + self.user
        # No str.format: the wordings hold braces, as in \boxed{}.
        user = {"role": "user", "content": wording.replace(QUESTION, text)}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]


TEMPLATES = {
    # T1: reasoning and answer in tags. The format rewards want each tag on a line of its own.
    "think-answer": Template(
        user=QUESTION,
        system="You solve mathematical problems. Reason first, then answer, in this form, every tag on its own line:\n"
        "<think>\nyour reasoning\n</think>\n<answer>\nyour solution, with the final result in \\boxed{}\n</answer>",
    ),
    # T3: only the reasoning in tags.
    "think": Template(
        user=QUESTION,
        system="You solve mathematical problems. Write your reasoning between a line <think> and a line </think>. "
        "After it give the solution, with the final result in \\boxed{}.",
    ),
    "boxed": Template(user=QUESTION + "\n\nReason step by step and put the final result in \\boxed{}."),
    # T2, and evaluation of a base model without template.
    "own": Template(user=QUESTION, plain=True),
    # T4: a base model continues the text, so that the thinking is already open.
    "choice": Template(
        user="A user asks a question about an image, with options to choose from. An assistant first thinks it over "
        "and closes its thoughts with </think>, then writes the option that is right as <answer>option</answer>.\n"
        f"User: {QUESTION}\nAssistant: Let me think this through step by step.\n<think>",
        plain=True,
    ),
    "box": Template(  # T5
        user=f"Find in the image what this describes: {QUESTION}\n"
        "First reason between <think> and </think>. Then give one box around it between <answer> and </answer>, as "
        "(x1,y1),(x2,y2): its top left and its bottom right corner, in thousandths of the image's width and height."
    ),
    "class": Template(  # T6
        user=f"{QUESTION}\nFirst reason between <think> and </think>. Then write the name, and nothing else, between "
        "<answer> and </answer>."
    ),
    "number": Template(  # T7
        user=f"{QUESTION}\nFirst reason between <think> and </think>. Then write the final number between <answer> "
        "and </answer>."
    ),
}


def get_template(name: str) -> Template:
    """The template of that name, or in that file."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if not path.is_file():
        raise DataError(
            f"--template {name}: neither a file nor one of {', '.join(TEMPLATES)}. A file holds the user's message "
            f"with {QUESTION} in it, after a line --- if a system message comes first."
        )
    system, mark, user = path.read_text(encoding="utf-8").rpartition("\n---\n")
    if QUESTION not in user:
        raise DataError(f"{path}: the user's message has no {QUESTION}. Write it where the question goes.")
    # One line end is the file's own; a prompt that must end in another has an empty line at the end of the file.
    return Template(user.lstrip("\n").removesuffix("\n"), system.strip("\n") if mark else None)
