"""Task: SFT checkpoint (Hub id, directory, package, GGUF) -> pinned local snapshot."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.data_jobs import ConvertJob, ConvertResult, DequantiseJob
from dpo_core.contract.refs import CheckpointRef
from dpo_core.contract.store import fingerprint
from tasks.checkpoint.files import WeightSource, extra_templates, files_for_conversion
from tasks.checkpoint.other_tokenizer import with_tokenizer
from tasks.checkpoint.own_files import check_inside, hash_named
from tasks.checkpoint.shards import check_safetensors
from tasks.checkpoint.source import Located, locate, snapshot
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry


def convert(located: Located, place: Workplace) -> Located:
    """Run the step that makes safetensors of GGUF and allowed pickle, and plain weights of 8-bit floats."""
    weights = located.weights
    if weights.kind == "safetensors":
        return located
    together = files_for_conversion(located.folder, weights)
    check_inside(located.folder, [*together, *sorted(extra_templates(located.folder))])
    # A GGUF file says all; pickle weights need the configuration and tokenizer beside them.
    names = list(weights.names) if weights.kind == "gguf" else together
    if weights.kind == "fp8":
        check_safetensors(located.folder, weights.names)
        dequantise = DequantiseJob(
            source_dir=located.folder,
            source_sha256=fingerprint(hash_named(located.folder, together)),
            weight_files=weights.names,
        )
        return _converted(place.run(dequantise), located)
    job = ConvertJob(
        source_dir=located.folder,
        source_sha256=fingerprint(hash_named(located.folder, names)),
        gguf_file=weights.names[0] if weights.kind == "gguf" else None,
        pickle_files=weights.names if weights.kind == "pickle" else (),
    )
    return _converted(place.run(job), located)


def _converted(result: ConvertResult, located: Located) -> Located:
    safetensors = tuple(sorted(name for name in result.files if name.endswith(".safetensors")))
    return Located(result.path, WeightSource("safetensors", safetensors), located.revision, linkable=True)


@task(
    name="fetch checkpoint",
    retries=3,
    retry_delay_seconds=[10, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def fetch_checkpoint(config: CheckpointConfig, place: Workplace) -> CheckpointRef:
    """Fetch the checkpoint as ``<store>/checkpoints/<id>/``: safetensors, tokenizer, chat template, hashes of contents.

    Retried because a download may break off; what arrived stays in the Hub's cache. Raises ``CheckpointError`` for a
    checkpoint that cannot be used, ``ConfigError`` for a refused access, ``RemoteError`` when the Hub does not answer.
    """
    located = with_tokenizer(convert(locate(config, place.store), place), config, place.store)
    checkpoint = snapshot(located, config, place.store)
    pinned = f"commit {checkpoint.revision}" if checkpoint.revision else "its contents"
    get_run_logger().info(
        "%s, pinned by %s: weights %s, tokenizer %s, in %s",
        config.source,
        pinned,
        checkpoint.fingerprint[:12],
        checkpoint.tokenizer_fingerprint[:12],
        checkpoint.path,
    )
    return checkpoint
