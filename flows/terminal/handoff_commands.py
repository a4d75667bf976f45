"""`pairline intake`, `signing-key`: the commands of both ends of a hand-off. Prefect is imported when one runs."""

from pathlib import Path
from typing import Annotated

import typer

from dpo_core.contract.importing import importing
from dpo_core.contract.visible import one_line
from flows.terminal.server_commands import Store
from tasks.text.terminal import say


def intake(
    handoff: Annotated[str, typer.Argument(help="Path or file:// address of a handoff.json.")],
    store: Store = Path(".pairline"),
    token_block: Annotated[
        str | None,
        typer.Option(
            help="Prefect Secret block with the Hub token of a private repository; without it HF_TOKEN."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of the Hub to fetch from, and to send the token to; "
            "without it HF_ENDPOINT, or the Hugging Face Hub."
        ),
    ] = None,
    max_download_gib: Annotated[
        float, typer.Option(min=0, max=1_000_000, help="The most that is downloaded.")
    ] = 1000.0,
    trusted_key: Annotated[
        list[str],
        typer.Option(
            help="Public key (ed25519:...) that the hand-off must be signed with. May be given several times."
        ),
    ] = [],  # noqa: B006
    allow_remote_code: Annotated[
        list[str],
        typer.Option(help="Python file of the checkpoint that may run. May be given several times."),
    ] = [],  # noqa: B006
) -> None:
    """Verify a hand-off on the receiving side: schema, files, revision, RLVR rules, a fresh load that answers."""
    from flows.serve.local_prefect import start_prefect
    from flows.settings.overrides import validated
    from tasks.handoff.intake_config import IntakeConfig

    settings = validated(
        {
            "endpoint": endpoint,
            "trusted_keys": trusted_key,
            "allow_remote_code": allow_remote_code,
            "max_download_gib": max_download_gib,
        },
        "pairline intake",
        IntakeConfig,
    )
    wait_for_server = start_prefect(store)
    with importing():
        from flows.rlvr_intake import rlvr_intake
        from tasks.intake import who_wrote

    wait_for_server()
    accepted = rlvr_intake(handoff, store, token_block=token_block, intake=settings)
    for check in accepted.rules:
        say(one_line(f"{'ok  ' if check.passed else 'FAIL'}  {check.rule}: {check.detail}"))
    say(one_line(who_wrote(accepted)))
    say(one_line(f"accepted: {accepted.checkpoint.uri}"))


def signing_key(
    path: Annotated[Path, typer.Argument(help="File of the key. A new one is made if there is none.")],
) -> None:
    """Make a key to sign hand-offs with (handoff.signing_key_file), and print what receivers list in trusted_keys."""
    from tasks.handoff.signature import parsed_key, public_key_of, read_key_file, write_key_file

    if not path.exists():
        write_key_file(path)
    say(public_key_of(parsed_key(read_key_file(path), str(path))))
