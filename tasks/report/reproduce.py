"""How to make the same run again, and what it ran on."""

from tasks.report.blocks import Block, Code, Column, Details, PageSection, Table, Text
from tasks.report.tables import counted
from tasks.run.files import RunFiles
from tasks.run.folder import CONFIG_FILE
from tasks.text.escape import shell_word


def commands(run: RunFiles) -> str:
    """Return the shell commands; relative paths of the config start in the run's working directory."""
    environment, lines = run.environment, []
    if environment and environment.commit:
        lines.append(
            f"git checkout {shell_word(environment.commit)}   # in the source tree of Pairline"
            + ("; it had local changes" if environment.has_local_changes else "")
        )
    elif environment:
        lines.append("pip install " + shell_word(f"pairline=={environment.packages.get('pairline', '?')}"))
    if environment:
        lines.append(f"cd {shell_word(environment.directory)}")
    return "\n".join([*lines, f"pairline run {shell_word(str(run.folder / CONFIG_FILE))}"])


def reproduce_section(run: RunFiles) -> PageSection:
    """Return commands, settings, software and machine."""
    same_bits = (
        "On the same machine and versions the weights come out with the same bits on a CPU; elsewhere they agree "
        "but for rounding. Steps that are in the store already are reused."
    )
    rows = run.environment.changed_settings if run.environment else ()
    blocks: list[Block] = [
        Code(commands(run)),
        Text(same_bits, "muted"),
        Table(
            (Column("setting", "code"), Column("value", "words"), Column("default")),
            rows,
            "Settings that differ from their defaults; all of them stand in config.json beside this page.",
        ),
    ]
    if machine := _machine(run):
        blocks.append(Table((Column("machine and software"), Column("", "words")), machine))
    return PageSection("Reproduce", "reproduce", (*blocks, *_software(run)))


def _machine(run: RunFiles) -> tuple[tuple[str, str], ...]:
    environment = run.environment
    if environment is None:
        return ()
    trainer = next(
        (
            step.environment
            for name in ("train", "reference", "evaluate", "mix")
            if name in run.steps and (step := run.steps[name]).environment
        ),
        None,
    )
    commit = environment.commit or "not a checkout"
    rows = [
        ("commit", commit + (" with local changes" if environment.has_local_changes else "")),
        (
            "machine",
            f"{environment.processor}, {environment.num_cores} cores, {environment.memory_gib:g} GiB, "
            f"{environment.num_gpus or 'no'} GPUs",
        ),
        ("system", environment.platform),
        ("orchestrator", f"Python {environment.python}, Prefect {environment.packages.get('prefect', '?')}"),
    ]
    if trainer:
        threads = trainer.threads_per_process
        per_process = f"{counted(threads, 'thread')} each" if threads else "threads not set"
        main = ", ".join(
            f"{name} {trainer.packages[name]}"
            for name in ("torch", "transformers", "accelerate", "deepspeed")
            if name in trainer.packages
        )
        rows += [
            ("trainer", f"Python {trainer.python}, {main}"),
            (
                "trained on",
                f"{trainer.device}, {trainer.num_processes} process"
                f"{'es' if trainer.num_processes != 1 else ''}, {per_process}",
            ),
        ]
    return tuple(rows)


def _software(run: RunFiles) -> tuple[Block, ...]:
    versions: dict[str, str] = dict(run.environment.packages) if run.environment else {}
    for step in run.steps.values():
        versions |= step.environment.packages if step.environment else {}
    if not versions:
        return ()
    rows = tuple((name, versions[name]) for name in sorted(versions))
    return (
        Details(
            "Versions of all packages that take part", (Table((Column("package"), Column("version")), rows),)
        ),
    )
