"""Why a row can be left out of the mixture. Every reason is counted in the ledger, none is silent."""

from typing import Literal, get_args

DropReason = Literal[
    "not_a_preference_row",
    "not_text",
    "last_turn_not_assistant",
    "prompt_mismatch",
    "empty_prompt",
    "empty_answer",
    "identical_pair",
    "bad_tools",
    "bad_constraints",
    "bad_template_kwargs",
    "bad_system",
    "template_without_tools",
    "template_error",
    "over_limits",
    "token_without_row",
    "too_long",
    "no_label_left",
    "identical_tokens",
    "answer_left_out",
    "contaminated",
    "in_held_out_set",
    "exact_duplicate",
    "bad_weight",
    "zero_weight",
    "bad_margin",
    "near_duplicate",
    "bad_answers",
    "tied_answers",
    "repeated_name",
]
FormatName = Literal["messages", "prompt_messages", "prompt_text", "hh_rlhf", "sharegpt", "unrecognised"]

MEANING: dict[str, str] = {  # by reason
    "not_a_preference_row": "no pair of answers to a prompt was recognised",
    "not_text": "the row holds images, sound or video, which would be left out",
    "last_turn_not_assistant": "an answer does not end with the assistant's turn",
    "prompt_mismatch": "chosen and rejected answer different prompts",
    "empty_prompt": "there is no prompt",
    "empty_answer": "an answer is empty",
    "identical_pair": "chosen and rejected are the same text",
    "bad_tools": "the tools column is neither a list of tools nor JSON of one",
    "bad_constraints": "a constraint names no known instruction, or has other arguments than it takes",
    "bad_template_kwargs": "the chat_template_kwargs column is no object of variables for the chat template, or names "
    "what every rendering is told",
    "bad_system": "the system prompt beside the conversation is no text or message, or another than its own",
    "template_without_tools": "the row has tools, which the chat template would leave out",
    "template_error": "the chat template refuses the conversation or its turns cannot be told apart",
    "over_limits": "the chat template or the tokenizer takes more time, memory or text for the conversation than a row may",
    "token_without_row": "a token of the row has no row in the model's embedding, which was not resized for it",
    "too_long": "longer than max_length_tokens",
    "no_label_left": "truncation left no token to train on",
    "identical_tokens": "both sides are the same tokens: what differs was cut off, or the chat template leaves it out",
    "answer_left_out": "the chat template writes nothing of an answer",
    "contaminated": "the prompt holds an instance of an evaluation set (quality.evaluation_sets)",
    "in_held_out_set": "the prompt stands in a set of evaluation.sets, which is measured and never trained on",
    "exact_duplicate": "another row is the same tokens (quality.exact_duplicates)",
    "bad_weight": "the weight column holds no number from 0.000001 to 1,000,000",
    "zero_weight": "the weight is 0, so the pair would train nothing",
    "bad_margin": "the margin column holds no number from 0 to 1,000,000",
    "near_duplicate": "another row is nearly the same words (quality.near_duplicates)",
    "bad_answers": "the row has no two answers with a number each, as `pairs` needs them",
    "tied_answers": "no answer of the row is better than another",
    "repeated_name": "a column, or an object in one, has one name with several values, and nobody can tell which is meant",
}
assert set(MEANING) == set(get_args(DropReason))


class RowDropped(Exception):
    """A row that cannot be used; caught per row, never seen by the user."""

    def __init__(self, reason: DropReason, detail: str = "", format: FormatName = "unrecognised") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DropReason = reason
        self.detail = detail
        self.format: FormatName = format
