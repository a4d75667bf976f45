"""Which chat template a recipe means: a name, or a template's own text. Torch-free; the templates themselves stand in
``dpo_core/data/named_templates.py``."""

from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from dpo_core.contract.quantities import Real, Whole

TemplateName = Literal[
    "assistant_message_only",
    "chatml",
    "olmo",
    "olmo2",
    "olmo_old",
    "olmo_thinker",
    "olmo_thinker_code_rlzero",
    "olmo_thinker_no_think_7b",
    "olmo_thinker_no_think_sft_tokenization",
    "olmo_thinker_remove_intermediate_thinking",
    "olmo_thinker_rlzero",
    "qwen_instruct_user_boxed_math",
    "r1_simple_chat",
    "r1_simple_chat_postpend_think",
    "r1_simple_chat_postpend_think_orz_style",
    "r1_simple_chat_postpend_think_tool_vllm",
    "simple_chat",
    "simple_concat_with_new_line",
    "simple_concat_with_space",
    "tulu",
    "tulu_thinker",
    "tulu_thinker_r1_style",
    "zephyr",
]
TEMPLATE_NAMES: tuple[TemplateName, ...] = get_args(TemplateName)
# Those that close an answer with no special token, as open-instruct has them: what generation stops at is another's to say.
WITHOUT_END_MARK: frozenset[TemplateName] = frozenset(
    {
        "assistant_message_only",
        "olmo_thinker_code_rlzero",
        "olmo_thinker_rlzero",
        "r1_simple_chat",
        "r1_simple_chat_postpend_think",
        "r1_simple_chat_postpend_think_orz_style",
        "r1_simple_chat_postpend_think_tool_vllm",
    }
)
MAX_TEMPLATE_CHARACTERS = 1 << 20  # the largest known ones have 50 thousand
OLMO_NOTE = (
    "`olmo` is Olmo 3's ChatML with functions, as in open-instruct. OLMo 2's template (<|user|>, <|assistant|> behind a "
    "bos token), which had this name here before, is now `olmo2`: set checkpoint.chat_template to olmo2 if that is meant."
)
# What a rendering is told anyway, and so cannot be set beside the conversation.
RESERVED_ARGUMENTS = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


def is_template_text(value: str) -> bool:
    """Tell whether a template's own text is meant: it writes something or does something, which no name and no path does."""
    return "{{" in value or "{%" in value


def named_in_plan(chosen: str | None) -> str:
    """Return what a plan tells of a chosen template, behind its other settings of the data."""
    if chosen is None:
        return ""
    if is_template_text(chosen):
        return ", chat template given in the recipe"
    return f", chat template {chosen}" + (f". {OLMO_NOTE}" if chosen == "olmo" else "")


def template_content(chosen: str | None) -> str | None:
    """Return what stands for a chosen template in fingerprints.

    What is called ``olmo2`` was called ``olmo`` when the first of them were made, and is found again under that name; what
    is called ``olmo`` now must not be.
    """
    return {"olmo2": "olmo", "olmo": "olmo of open-instruct"}.get(chosen, chosen) if chosen else chosen


def check_choice(value: str | None) -> str | None:
    """Return ``value`` where it can be a template: a known name, a file's path, a template's text. Raises ``ValueError``."""
    if not value:
        return None
    if value in TEMPLATE_NAMES or is_template_text(value) or PurePath(value).suffix or "/" in value:
        return value
    raise ValueError(
        f"There is no chat template named `{value[:80]}`. Known names: {', '.join(TEMPLATE_NAMES)}. A file needs its "
        "ending (.jinja) or its folder (./...); a template's own text writes something ({{ ... }})"
    )


def check_template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` where each name may be a variable of a template. Raises ``ValueError``."""
    for name in value:
        if name in RESERVED_ARGUMENTS or not name.isidentifier():
            raise ValueError(
                f"chat_template_kwargs cannot name `{name}`: "
                + (
                    "it is set for every rendering"
                    if name in RESERVED_ARGUMENTS
                    else "it is no variable's name"
                )
            )
    return value


TemplateChoice = Annotated[str | None, AfterValidator(check_choice)]
Plain = None | bool | Whole | Real | str
TemplateArguments = Annotated[
    dict[str, Plain | list[Plain] | dict[str, Plain]], AfterValidator(check_template_arguments)
]
