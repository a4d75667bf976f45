"""The chat templates that a recipe may name (``checkpoint.chat_template``).

The names of open-instruct's ``CHAT_TEMPLATES`` render what they render there (``open_instruct/dataset_transformation.py``
at e6c3044aa6201c8bfa4573c1b03142af599e730d), which a test holds. Two of them render more than theirs: ``tulu`` and
``zephyr`` also write tools, calls of tools and their results, which theirs leave out. ``chatml`` and ``olmo2`` are ours.

A template is compiled as transformers does it: one line break behind a block is taken away.
"""

from typing import get_args

from dpo_core.contract.chat_templates import TemplateName

# ------------------------------------------------------------------------------------------- turns of any role, with tools

# A system turn that lists the tools; calls and results are rendered as JSON.
_TOOLS_TEXT = (
    "{%- macro tools_text() -%}You can call these tools. To call one, answer with JSON: "
    '{"name": ..., "arguments": {...}}\\n{% for tool in tools %}{{ tool | tojson }}{% if not loop.last %}\\n{% endif %}'
    "{% endfor %}{%- endmacro -%}"
    "{%- macro text_of(message) -%}{{ message['content'] }}{% if message['tool_calls'] %}"
    "{% for call in message['tool_calls'] %}{{ call['function'] | tojson }}{% if not loop.last %}\\n{% endif %}"
    "{% endfor %}{% endif %}{%- endmacro -%}"
    "{%- set has_system = messages[0]['role'] == 'system' -%}"
).replace("\\n", "\n")


def _template(header: str, end: str, last_answer_end: str, answer_end: str, opening: str = "") -> str:
    """Return a template of turns ``header + text + end``; ``ROLE`` in ``header`` stands for the role's name."""
    head, tail = header.split("ROLE")
    turn = (
        f"{{{{- '{head}' + message['role'] + '{tail}' }}}}"
        "{%- if loop.first and has_system and tools %}{{- tools_text() + '\n\n' }}{% endif -%}"
        "{{- text_of(message) -}}"
    )
    tools_turn = (
        "{%- if tools and not has_system -%}" + f"{{{{- '{head}system{tail}' + tools_text() + {end} }}}}"
        "{%- endif -%}"
    )
    ending = (
        f"{{%- if message['role'] != 'assistant' %}}{{{{- {end} }}}}"
        f"{{%- elif loop.last %}}{{{{- {last_answer_end} }}}}{{%- else %}}{{{{- {answer_end} }}}}{{%- endif -%}}"
    )
    generation = f"{{%- if add_generation_prompt -%}}{{{{- '{head}assistant{tail}' }}}}{{%- endif -%}}"
    return (
        _TOOLS_TEXT
        + opening
        + tools_turn
        + "{%- for message in messages -%}"
        + turn
        + ending
        + "{%- endfor -%}"
        + generation
    )


# ------------------------------------------------------------------------------------------------ open-instruct's, by family


def _of_turns(turn: str, before: str = "", opened: str = "") -> str:
    """Write ``before``, then ``turn`` for each message; ``opened`` (a text) where the assistant is to go on."""
    opening = (
        f"{{% if loop.last and add_generation_prompt %}}{{{{ '{opened}' }}}}{{% endif %}}" if opened else ""
    )
    return f"{before}{{% for message in messages %}}{turn}{opening}{{% endfor %}}"


def _joined(separator: str, text: str) -> str:
    """Join texts with a separator between them and the end of text behind the last."""
    return _of_turns(
        f"{{% if not loop.first %}}{{{{ '{separator}' }}}}{{% endif %}}{{{{ {text} }}}}"
        "{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )


def _by_role(**turns: str) -> str:
    """Render one turn by its role; other roles are left out."""
    cases = [f"if message['role'] == '{role}' %}}{turn}" for role, turn in turns.items()]
    return "{% " + "{% el".join(cases) + "{% endif %}"


def _tulu_thinker(content: str, before: str = "") -> str:
    return _of_turns(
        _by_role(
            system="{{ '<|system|>\n' + message['content'] + '\n' }}",
            user="{{ '<|user|>\n' + message['content'] + '\n' }}",
            assistant=content
            + "{{ '<|assistant|>\n' + content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}",
        ),
        before,
        opened="<|assistant|>\n<think>",
    )


_CONTENT = "{% set content = message['content'] %}"
_ANSWER_ALONE = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"

_NO_FUNCTIONS = " You do not currently have access to any functions. <functions></functions>"
_WHERE_THE_WEIGHTS_ARE = "and your model weights are available at https://huggingface.co/allenai."
_OLMO_SYSTEM = (
    "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November 2024, "
    + _WHERE_THE_WEIGHTS_ARE
    + _NO_FUNCTIONS
)
_OLMO_7B_SYSTEM = (
    "You are Olmo, a helpful AI assistant built by Ai2. Your date cutoff is December 2024, "
    + _WHERE_THE_WEIGHTS_ARE
)
_HELPFUL_SYSTEM = "You are a helpful AI assistant."
_THINKING_OF_THE_LAST_TURN_ONLY = (
    "{% if not loop.last and '</think>' in content and '<think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)


def _olmo(system: str, opened: str = "", content_changed: str = "") -> str:
    """Return ChatML with Ai2's functions, as Olmo 3 was trained with. ``system``: what is said where a conversation has no
    system turn; ``opened``: how an answer begins; ``content_changed``: what becomes of an answer's ``content``."""
    return _of_turns(
        _by_role(
            system="{{ '<|im_start|>system\n' + message['content'] }}"
            "{% if message.get('functions', none) is not none %}{{ ' <functions>' + message['functions'] + '</functions>' }}"
            f"{{% else %}}{{{{ '{_NO_FUNCTIONS}' }}}}{{% endif %}}{{{{ '<|im_end|>\n' }}}}",
            user="{{ '<|im_start|>user\n' + message['content'] }}"
            "{% if message.get('functions', none) is not none %}"
            "{{ '\n<functions>' + message['functions'] + '</functions>' }}{% endif %}{{ '<|im_end|>\n' }}",
            assistant="{{ '<|im_start|>assistant\n' }}{% set content = message.get('content', none) %}"
            "{% if content is not none %}{% set content = content | string %}"
            + content_changed
            + "{{ content }}{% endif %}{% if message.get('function_calls', none) is not none %}"
            "{{ '<function_calls>' + message['function_calls'] + '</function_calls>' }}{% endif %}"
            "{% if loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}",
            environment="{{ '<|im_start|>environment\n' + message['content'] + '<|im_end|>\n' }}",
        ),
        before="{% set has_system = messages | selectattr('role', 'equalto', 'system') | list | length > 0 %}"
        f"{{% if not has_system %}}{{{{ '<|im_start|>system\n{system}<|im_end|>\n' }}}}{{% endif %}}",
        opened="<|im_start|>assistant\n" + opened,
    )


# The prompt of DeepSeek-R1-Zero (arXiv 2501.12948, table 1), as open-instruct words it.
_R1_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first "
    "thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>.\n\n"
)
_R1_TOOL_PROMPT = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant first "
    "thinks about the reasoning process in the mind and then provides the User with the answer. \n\n"
    "When given a question, the Assistant must conduct reasoning inside the <think> and </think> tags. During reasoning, "
    "the Assistant may write and execute python code using the <code> </code> tag, in order to solve the problem or verify "
    "the answer. Then the Assistant will get the stdout and stderr in the <output> and </output> tags. For example, the "
    "code could be\n<code>\nx, y = 1, 2\nresult = x + y\nprint(result)\n</code>\nor\n<code>\nimport sympy as sp\n"
    "from sympy import Symbol\nx = Symbol('x')\ny = Symbol('y')\nsolution = sp.solve(x**2 + y**2 - 1, (x, y))\n"
    "print(solution)\n</code>\nThe Assistant will always `print` the result of the code execution in order to see it in the "
    "<output> tag. The Assistant may use the <code> </code> tag multiple times. When the Assistant is done reasoning, it "
    "should provide the answer inside the <answer> and </answer> tag.\n\n"
)
_BOXED = (
    "You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final answer "
    "will be extracted automatically by the \\\\boxed{} tag. This is the problem: "
)


def _r1(before: str, opened: str, request: str = "") -> str:
    """Render turns named by their capitalised roles, each behind ``request``."""
    return _of_turns(
        "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
        f"{{{{ message['role'].capitalize() + ': {request}' + message['content'] + '\n' }}}}",
        before,
        opened,
    )


def _rlzero(before: str, opened: str) -> str:
    """Render turns without their roles."""
    return _of_turns(
        "{% if not loop.first %}{{ '\n\n' }}{% endif %}{{ message['content'] + '\n' }}", before, opened
    )


NAMED_TEMPLATES: dict[TemplateName, str] = {
    # Tulu 3: <|user|>\n...\n<|assistant|>\n...<eos>, and a line break before a further turn
    "tulu": _template("<|ROLE|>\n", "'\n'", "eos_token", "eos_token + '\n'"),
    # OLMo 2: Tulu's turns after a bos token
    "olmo2": _template("<|ROLE|>\n", "'\n'", "eos_token", "eos_token + '\n'", opening="{{- bos_token -}}"),
    # ChatML: <|im_start|>user\n...<|im_end|>\n
    "chatml": _template("<|im_start|>ROLE\n", "'<|im_end|>\n'", "'<|im_end|>\n'", "'<|im_end|>\n'"),
    # Zephyr: <|user|>\n...<eos>\n
    "zephyr": _template("<|ROLE|>\n", "eos_token + '\n'", "eos_token + '\n'", "eos_token + '\n'"),
    "simple_concat_with_space": _joined(" ", "message['content']"),
    "simple_concat_with_new_line": _joined("\n", "message['content']"),
    "simple_chat": _joined("\n\n", "message['role'].capitalize() + ': ' + message['content']"),
    "assistant_message_only": _of_turns(_by_role(assistant="{{ message['content'] }}")),
    "tulu_thinker": _tulu_thinker(_CONTENT),
    "tulu_thinker_r1_style": _tulu_thinker(_CONTENT + _ANSWER_ALONE, before=_R1_PROMPT),
    "olmo": _olmo(_OLMO_SYSTEM),
    "olmo_old": _olmo(_OLMO_SYSTEM),
    "olmo_thinker": _olmo(_HELPFUL_SYSTEM, opened="<think>"),
    "olmo_thinker_no_think_7b": _olmo(_OLMO_7B_SYSTEM),
    "olmo_thinker_remove_intermediate_thinking": _olmo(
        _HELPFUL_SYSTEM, opened="<think>", content_changed=_THINKING_OF_THE_LAST_TURN_ONLY
    ),
    "olmo_thinker_no_think_sft_tokenization": _olmo(_HELPFUL_SYSTEM),
    "olmo_thinker_rlzero": _rlzero(
        "Solve the following problem step by step. The last line of your response should be the answer to the problem in "
        "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\nRemember to put your answer on its own line after "Answer:"',
    ),
    "olmo_thinker_code_rlzero": _rlzero(
        "Solve the following code problem step by step. The last part of your response should be the solution to the "
        "problem in form ```\npython\nCODE\n``` where CODE is the solution for the problem.\n\n",
        # Theirs opens with a line break too, but behind a block, where it is taken away.
        "Remember to put your solution inside the ```\npython\nCODE\n``` tags",
    ),
    "r1_simple_chat": _r1(_R1_PROMPT, "Assistant:"),
    "r1_simple_chat_postpend_think": _r1(_R1_PROMPT, "Assistant: <think>"),
    "r1_simple_chat_postpend_think_orz_style": _r1(_R1_PROMPT, "Assistant: <think>", _BOXED),
    "r1_simple_chat_postpend_think_tool_vllm": _r1(_R1_TOOL_PROMPT, "Assistant: <think>", _BOXED),
    "qwen_instruct_user_boxed_math": _of_turns(
        _by_role(
            user="{{ '<|im_start|>user\n' + message['content'] + '\n\nPlease reason step by step, and put your final answer "
            "within \\\\boxed{}<|im_end|>\n' }}",
            assistant="{{ '<|im_start|>assistant\n' + message['content'] + '<|im_end|>\n' }}",
        ),
        opened="<|im_start|>assistant\n",
    ),
}
assert set(NAMED_TEMPLATES) == set(get_args(TemplateName))
