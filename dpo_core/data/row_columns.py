"""What stands beside a conversation in a row: tools, verifiable constraints, variables for the chat template."""

from typing import Any

from dpo_core.contract.chat_templates import check_template_arguments
from dpo_core.contract.drops import RowDropped
from dpo_core.data.checkers import is_meant, misfit
from dpo_core.data.ifeval import INSTRUCTIONS
from dpo_core.data.json_text import from_json_text, unambiguous, without_nulls


def tool_list(raw: Any) -> list[dict] | None:
    """Return tools as JSON schemas (``{"type": "function", "function": {...}}``), None for none. Raises ``RowDropped``."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    tools = without_nulls(unambiguous(raw))
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        raise RowDropped("bad_tools", "tools are not a list")
    tools = [unambiguous(tool) for tool in tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowDropped("bad_tools", "a tool is not an object")
    return [
        {"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool
        for tool in tools
    ] or None


def function_list(raw: Any) -> list[dict] | None:
    """Return tools of a column of functions, OpenAI's older form; None where it holds something else, as code."""
    found = from_json_text(raw)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in found
    ):
        return None
    return tool_list(raw)


def constraint_list(raw: Any) -> tuple[dict, ...]:
    """Return verifiable constraints (``{"name": ..., arguments}``); empty where the column holds something else, as the
    rules of another program do. Raises ``RowDropped`` for one of ours that no answer could be held to.
    """
    if raw is None:
        return ()
    found = without_nulls(unambiguous(raw))
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        return ()
    found = [unambiguous(item) for item in found]
    named = all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in found)
    return _fitting(found) if named and any(map(is_meant, found)) else ()


def _fitting(constraints: list[dict]) -> tuple[dict, ...]:
    if wrong := next(filter(None, map(misfit, constraints)), None):
        raise RowDropped("bad_constraints", wrong)
    return tuple(constraints)


def ifeval_constraints(ids: Any, arguments: Any) -> tuple[dict, ...]:
    """Return the constraints of a row of IFEval's format: ``instruction_id_list`` and, of the same length, ``kwargs``. Empty
    where no id is one of IFEval's. Raises ``RowDropped`` like ``constraint_list``."""
    if ids is None and arguments is None:
        return ()
    ids, arguments = unambiguous(ids), without_nulls(unambiguous(arguments))
    if not isinstance(ids, list) or not any(isinstance(one, str) and one in INSTRUCTIONS for one in ids):
        return ()
    arguments = [unambiguous(one) or {} for one in arguments] if isinstance(arguments, list) else []
    if len(arguments) != len(ids) or not all(isinstance(one, dict) for one in arguments):
        raise RowDropped(
            "bad_constraints", f"{len(ids)} in instruction_id_list, but kwargs has not an object for each"
        )
    return _fitting([{**one, "name": name} for name, one in zip(ids, arguments, strict=True)])


def template_arguments(raw: Any) -> dict:
    """Return a row's own variables for the chat template (``{"enable_thinking": false}``); empty for none. Raises
    ``RowDropped``."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return {}
    found = without_nulls(unambiguous(raw))
    if not isinstance(found, dict):
        raise RowDropped("bad_template_kwargs", "chat_template_kwargs is not an object")
    try:
        return check_template_arguments(found)
    except ValueError as error:
        raise RowDropped("bad_template_kwargs", str(error)) from None
