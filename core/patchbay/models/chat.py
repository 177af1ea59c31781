"""Messages made into one text, by the template that came with a chat model. Knows nothing of where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from patchbay.errors import InputError

Message = Mapping[str, str]  # `role` and `content`, and what else the template may look at


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text up to where the answer begins, with all special tokens that belong there.

    Raises InputError without a template, and where it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "this model's tokenizer has no chat template: send a plain prompt instead, or put the chat_template.jinja "
            "of a model that was trained the same way into the base's folder",
            param="messages",
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of somebody else's
        raise InputError(f"the model's chat template refuses these messages: {error}", param="messages") from error
    return str(text)
