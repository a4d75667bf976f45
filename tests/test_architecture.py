"""The dependency rules of the house (see docs/contract.md): who may import whom, and no torch in the orchestrator."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 300, 60, 6
VAGUE_NAMES = {"utils", "common", "helpers", "manager", "base", "misc"}
# What a function's summary begins with. A verb that is missing belongs here; a noun ("Rows of ...") does not.
IMPERATIVES = set(
    re.findall(
        r"\w+",
        """
        Add Allow Answer Append Apply Approve Ask Be Become Begin Bring Build Call Change Check Choose Clip Close
        Compare Compute Convert Copy Count Create Cut Delete Describe Do Draw Drop Emit End Evaluate Exit Fetch
        Fill Find Forget Freeze Gather Give Go Hand Have Hold Join Keep Lay Leave Let Link List Load Lock Log Look
        Make Measure Note Open Pass Prepare Print Publish Push Put Raise Read Recognise Record Reject Remove
        Restore Return Round Run Say Score See Send Serve Set Share Show Signal Split Start Stop Sum Take Tell
        Tokenise Train Translate Turn Upload Verify Wait Work Write Yield
        """,
    )
)
SOURCES = sorted(
    path for package in ("flows", "tasks", "dpo_core") for path in (ROOT / package).rglob("*.py")
)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Parsed once for all rules: that takes seconds for all files."""
    return ast.parse(path.read_text(), str(path))


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All of its tree."""
    return tuple(ast.walk(tree_of(path)))


@pytest.fixture(scope="module", autouse=True)
def _trees() -> Iterator[None]:
    """They are kept for the rules of this file, and not for the tests after them."""
    yield
    for kept in (tree_of, nodes_of, imports_of):
        kept.cache_clear()


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, `from a import b` as a.b."""
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_in(*parts: str) -> list[Path]:
    found = [path for path in SOURCES if path.is_relative_to(ROOT.joinpath(*parts))]
    assert found, f"no files in {parts}: the rule would test nothing"
    return found


def offenders(files: list[Path], is_forbidden) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imports_of(path))
        if is_forbidden(name)
    ]


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_orchestrator_knows_only_the_contract_of_dpo_core():
    assert not offenders(
        files_in("flows") + files_in("tasks"),
        lambda name: starts(name, "dpo_core") and not starts(name, "dpo_core.contract"),
    )


def test_olmo_core_is_imported_where_it_was_chosen_alone():
    """It takes seconds, and few environments have it: what needs it does so when it is called."""
    own = {path for path in files_in("dpo_core", "model") if path.name.startswith("olmo_core")}
    at_once = {
        path: {node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)}
        for path in SOURCES
    }
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, nodes in at_once.items()
        for node in nodes
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
        if name.startswith(("olmo_core", "torchao", "dpo_core.model.olmo_core")) and path not in own
    ]
    assert len(own) == 3


def test_the_orchestrator_imports_no_tensor_library():
    def tensors(name: str) -> bool:
        return starts(name, "torch", "transformers", "accelerate", "deepspeed", "datasets", "numpy")

    assert not offenders(files_in("flows") + files_in("tasks"), tensors)


def test_tasks_know_no_flows_and_launchers_know_no_tasks():
    assert not offenders(files_in("tasks"), lambda name: starts(name, "flows"))
    assert not offenders(
        files_in("tasks", "launch"), lambda name: starts(name, "tasks") and not starts(name, "tasks.launch")
    )


def test_launchers_are_free_of_prefect():
    assert not offenders(files_in("tasks", "launch"), lambda name: starts(name, "prefect"))


def test_dpo_core_knows_neither_the_orchestrator_nor_its_tools():
    assert not offenders(
        files_in("dpo_core"), lambda name: starts(name, "prefect", "docker", "flows", "tasks", "typer")
    )


def test_only_the_places_made_for_it_import_docker():
    allowed = {*files_in("tasks", "launch", "docker"), *files_in("tasks", "image")}
    assert not offenders(
        [path for path in SOURCES if path not in allowed], lambda name: starts(name, "docker")
    )


def test_losses_import_torch_and_the_contract_alone():
    def more(name: str) -> bool:
        allowed = starts(name, "torch", "dpo_core.contract", "dpo_core.loss")
        return not (allowed or name.split(".")[0] in sys.stdlib_module_names)

    assert not offenders(files_in("dpo_core", "loss"), more)


def test_data_never_imports_the_model():
    assert not offenders(files_in("dpo_core", "data"), lambda name: starts(name, "dpo_core.model"))


def rooms_of(path: Path) -> tuple[str, ...]:
    """("tasks", "report") for tasks/report/page.py, ("tasks",) for a task itself."""
    return path.relative_to(ROOT).parts[:-1][:2]


@pytest.mark.parametrize("package", ["flows", "tasks", "dpo_core"])
def test_no_folder_leads_back_to_itself(package):
    """Folders of a package import each other one way, over any number of rooms: then each can be read by itself."""
    leads_to: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in files_in(package):
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != package:
                continue
            is_folder = len(parts) > 1 and (ROOT / package / parts[1]).is_dir()
            leads_to.setdefault(rooms_of(path), set()).add(tuple(parts[:2]) if is_folder else (package,))
    order = TopologicalSorter({room: rooms - {room} for room, rooms in leads_to.items()})
    order.prepare()  # raises CycleError, which names the rooms


def test_the_root_of_tasks_holds_the_tasks_alone():
    roots = [
        path for path in files_in("tasks") if path.parent == ROOT / "tasks" and path.name != "__init__.py"
    ]
    assert not [path.name for path in roots if "@task(" not in path.read_text()]


def calls_of(path: Path) -> set[str]:
    """Names of what a file calls: `print`, `shlex.quote`, and `.print` for a method of something."""
    calls = {node.func for node in nodes_of(path) if isinstance(node, ast.Call)}
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    methods = [call for call in calls if isinstance(call, ast.Attribute)]
    return names | {f".{call.attr}" for call in methods} | {ast.unparse(call) for call in methods}


def test_text_of_others_is_shown_by_the_functions_made_for_it():
    """What is printed, escaped or made an artifact elsewhere is what somebody forgets to escape."""
    places = {
        "tasks/text/terminal.py": {"print", ".print"},
        "tasks/text/escape.py": {"html.escape", "shlex.quote", "quote"},
        "tasks/show/artifacts.py": {"create_table_artifact", "create_markdown_artifact"},
        "tasks/launch/slurm/batch.py": {"shlex.quote"},  # a script, which bash reads
        "tasks/image/inventory.py": {"print"},  # a program of its own, whose JSON an engine reads
        "examples/chain/rlvr_flow.py": {"create_table_artifact"},
    }  # a neighbour's, of numbers
    shows = {
        *set.union(*places.values()),
        "escape",
        "typer.echo",
        "sys.stdout.write",
        "sys.stderr.write",
        "create_link_artifact",
        "create_image_artifact",
        "create_progress_artifact",
    }
    files = [*files_in("flows"), *files_in("tasks"), *(ROOT / "examples").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): calls_of(path) & shows for path in files}
    assert not {name: calls for name, calls in found.items() if calls - places.get(name, set())}
    assert not offenders(
        [path for path in files if path != ROOT / "tasks/text/terminal.py"],
        lambda name: starts(name, "rich.table", "rich.markdown", "rich.text"),
    )


@pytest.mark.parametrize(
    "module",
    ["flows.terminal.cli", "flows.terminal.plan", "flows.dpo_stage", "dpo_core", "dpo_core.__main__"],
)
def test_importing_the_orchestrator_loads_no_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS
        ).returncode
        == 0
    )


def test_every_module_of_the_orchestrator_can_be_imported():
    """A deployment's module is imported by no test otherwise, and a name that moved would show only when a run starts."""
    chain = (ROOT / "examples/chain/sft_flow.py", ROOT / "examples/chain/rlvr_flow.py")
    paths = [*files_in("flows"), *files_in("tasks"), *chain]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]
    script = f"import importlib; [importlib.import_module(name) for name in {names!r}]"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_asking_for_help_does_not_load_prefect():
    script = "import sys, flows.terminal.cli, flows.terminal.plan; sys.exit('prefect' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS
        ).returncode
        == 0
    )


def test_no_file_or_function_outgrows_the_house():
    too_long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path in SOURCES
        if (count := len(path.read_text().splitlines())) > MAX_FILE_LINES
    ]
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = node.end_lineno - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {count} lines")
    assert not too_long


def test_tasks_stay_thin_and_retry_by_the_kind_of_the_error():
    """A task's retries are literal, and only what the error tree calls retryable is tried again."""
    tasks = []
    for path in files_in("tasks"):
        for node in tree_of(path).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "task":
                    tasks.append(node.name)
                    settings = {keyword.arg: keyword.value for keyword in decorator.keywords}
                    assert isinstance(settings["retries"], ast.Constant), (
                        f"{node.name}: retries must be a number here"
                    )
                    assert settings["retry_condition_fn"].id == "worth_a_retry", node.name
                    assert node.end_lineno - node.lineno < 40, f"{node.name} has outgrown a task"
        assert (
            sum(
                1
                for node in nodes_of(path)
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "task"
            )
            <= 1
        ), f"{path} holds more than one task"
    assert len(tasks) >= 7


def is_a_form(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its arguments are fields for a person to fill in: a flow's on the run's page, a command's options."""
    is_flow = any(ast.unparse(decorator).startswith("flow(") for decorator in node.decorator_list)
    return is_flow or "typer.Option(" in ast.unparse(node.args)


def test_functions_take_six_arguments_at_most():
    """With more a value is missing that has a name. Forms may have more, and what transformers calls as it pleases."""
    many = {}
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                if len(names - {"self", "cls"}) > MAX_ARGUMENTS and not is_a_form(node):
                    many.setdefault(str(path.relative_to(ROOT)), []).append(node.name)
    assert many == {"dpo_core/model/attention.py": ["sdpa_pairwise", "eager_pairwise"]}  # attention functions


def test_what_a_run_is_told_is_handed_on_and_not_looked_up():
    """But for the filter of log files, whose records come from loggers of the whole process."""
    found = offenders(files_in("flows") + files_in("tasks"), lambda name: name == "contextvars.ContextVar")
    assert found == ["tasks/run/folder.py imports contextvars.ContextVar"]


def test_modules_are_named_for_what_they_answer():
    assert not [path for path in SOURCES if path.stem in VAGUE_NAMES]


def test_a_class_s_name_means_one_thing():
    """``Member`` once was a sweep's and a step's container, ``Section`` part of a page and of a recipe."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_words_are_those_of_the_glossary():
    """Docker's engine is the ``ContainerEngine``; a container without a run is orphaned, and never "nobody's"."""
    classes = {
        path.relative_to(ROOT).parts[:2]
        for path in SOURCES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Engine") and node.name != "ContainerEngine"
    }
    assert classes == {("dpo_core", "engine")}
    texts = [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "prefect.yaml"]
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"nobody'?s\b", line, re.IGNORECASE)
    ]


def test_variables_are_named_for_what_they_hold():
    """``told`` once stood for a text, a dict, an error, a flag and a value of Prefect's."""
    assert not [
        f"{path}:{node.lineno}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.Name) and node.id == "told"
    ]


def public_functions(
    body: list[ast.stmt], owner: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield functions of a module and methods of its classes, by name, that others may call. Properties are values."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_value = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_value and (not node.name.startswith("_") or node.name == "__call__"):
                yield owner + node.name, node


def test_summaries_of_public_functions_are_imperative():
    """``Return the rows ...``, ``Write ...``: what it does, and not only what comes out."""
    summaries = {
        f"{path.relative_to(ROOT)}:{node.lineno} {name}": docstring
        for path in SOURCES
        for name, node in public_functions(tree_of(path).body)
        if (docstring := ast.get_docstring(node))
    }
    assert len(summaries) > 900
    # A verb of the list may be a noun, too: "Score of a pair".
    noun = re.compile(
        r"(Answer|Count|Cut|Link|List|Log|Record|Run|Score|Set|Share|Start|Stop|Sum)s? (of|to|for)\b"
    )
    assert not [
        f"{where}: {text.splitlines()[0]}"
        for where, text in summaries.items()
        if re.split(r"\W", text, maxsplit=1)[0] not in IMPERATIVES or noun.match(text)
    ]


def test_a_type_error_that_is_ignored_has_a_code_and_a_reason():
    ignored = [
        (path, line) for path in SOURCES for line in path.read_text().splitlines() if "# type: ignore" in line
    ]
    unexplained = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path, line in ignored
        if not re.search(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\]  # \w", line)
    ]
    assert ignored
    assert not unexplained


def test_one_function_alone_copies_without_waiting():
    """From memory that may be paged out a copy waits for the card, whatever ``non_blocking`` says: ``to_device`` pins."""
    copying = [path.name for path in files_in("dpo_core") if "non_blocking=" in path.read_text()]
    assert copying == ["pair_batch.py"]
