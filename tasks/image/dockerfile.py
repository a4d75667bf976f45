"""``images/trainer/Dockerfile`` cut in two: the stages of the dependency image and the stage of the code image.

The classic builder, the only one that docker-py speaks, runs every stage that stands before the one asked for. So each
build gets only its own stages, and a change of one does not build the other again.
"""

import re

from dpo_core.contract.errors import ConfigError

CODE_STAGE = "trainer"


def split_dockerfile(text: str) -> tuple[str, str]:
    """Return (stages of the dependency image, stage of the code image), each with the arguments that stand above all
    stages.

    Comments are cut out: they build nothing, so changing one must not build anything again. Raises ``ConfigError``.
    """
    lines = [
        line for line in text.splitlines(keepends=True) if line.strip() and not line.lstrip().startswith("#")
    ]
    starts = [number for number, line in enumerate(lines) if re.match(r"FROM\s", line)]
    codes = [
        number for number in starts if re.search(rf"\sAS\s+{CODE_STAGE}\s*$", lines[number], re.IGNORECASE)
    ]
    if len(codes) != 1 or codes[0] != starts[-1] or codes[0] == starts[0]:
        raise ConfigError(
            f"images/trainer/Dockerfile must end with the stage `{CODE_STAGE}` (FROM ... AS {CODE_STAGE}), "
            f"after the stages of the dependency image; it has {len(starts)} stages."
        )
    arguments = lines[: starts[0]]
    return "".join(lines[: codes[0]]), "".join(arguments + lines[codes[0] :])
