"""Who wrote a hand-off: an Ed25519 signature of its fingerprint, which stands for all other fields.

The stage signs with a private key, the receiver lists the public ones that it trusts; it needs no secret.
"""

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from dpo_core.contract.errors import ConfigError, HandoffRefused, from_os_error
from dpo_core.contract.regular_file import NotRegular, TooLong, opened, read_at_most
from tasks.handoff.config import HandoffConfig
from tasks.handoff.schema import RLVRHandoff, Signature
from tasks.hub.token import load_secret

PREFIX = "ed25519:"
MAX_KEY_BYTES = 1 << 14
PURPOSE = (
    b"pairline hand-off\n"  # a signature made for something else with the same key is none of a hand-off
)


def new_key() -> bytes:
    """Return a private key as PEM text."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Return what a receiver lists in ``trusted_keys``."""
    return PREFIX + base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def read_key_file(path: Path) -> bytes:
    """Return the text of a key's file. Raises ``ConfigError`` for one that others can read, or that is none."""
    refusal = ConfigError(
        f"The signing key {path} must be a file of yours that nobody else can read: chmod 600 {path}. If "
        "others could read it, make a new key (pairline signing-key)."
    )
    try:
        with opened(path) as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise refusal
            return read_at_most(file, MAX_KEY_BYTES)
    except (NotRegular, TooLong):
        raise refusal from None
    except OSError as error:
        raise ConfigError(
            f"The signing key {path} cannot be read: {error.strerror}. Make one with `pairline signing-key`."
        ) from error


def write_key_file(path: Path) -> None:
    """Write a new key in a new file of mode 0600. Raises ``ConfigError`` if there is one, and the tree's errors of a
    disk.
    """
    try:
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.write(new_key())
    except FileExistsError:
        raise ConfigError(f"{path} exists; a key is never overwritten. Give another path.") from None
    except OSError as error:
        raise from_os_error(error, "writing the signing key") from error


def parsed_key(text: bytes, where: str) -> Ed25519PrivateKey:
    """Return the private key in a PEM text. Raises ``ConfigError`` without a word of it."""
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{where} holds no Ed25519 private key in PEM form without a password. `pairline signing-key` "
            "makes one."
        )
    return key


def signing_key(config: HandoffConfig) -> Ed25519PrivateKey | None:
    """Return the key that hand-offs are to be signed with; None where none is named. Raises ``ConfigError``."""
    if config.signing_key_file is not None:
        return parsed_key(
            read_key_file(config.signing_key_file.expanduser()), f"The file {config.signing_key_file}"
        )
    if config.signing_key_block is not None:
        text = load_secret(config.signing_key_block, "handoff.signing_key_block", "handoff.signing_key_file")
        return parsed_key(text.encode(), f"The Prefect Secret block `{config.signing_key_block}`")
    return None


def signed(handoff: RLVRHandoff, key: Ed25519PrivateKey | None) -> RLVRHandoff:
    """Return the sealed hand-off with its signature, or without one."""
    if key is None:
        return handoff.model_copy(update={"signature": None})
    value = base64.b64encode(key.sign(PURPOSE + handoff.fingerprint.encode())).decode()
    return handoff.model_copy(update={"signature": Signature(public_key=public_key_of(key), value=value)})


def check_signature(handoff: RLVRHandoff, trusted_keys: tuple[str, ...]) -> str | None:
    """Return the key that signed the hand-off, None for an unsigned one where no key is listed. Raises
    ``HandoffRefused``.

    The fingerprint must have been checked against the fields before (``read_handoff`` does).
    """
    signature = handoff.signature
    if signature is None:
        if trusted_keys:
            raise HandoffRefused(
                "The hand-off is not signed, and trusted_keys lists who may sign. Have the stage sign it "
                "(handoff.signing_key_file), or empty trusted_keys to take hand-offs of anybody."
            )
        return None
    if trusted_keys and signature.public_key not in trusted_keys:
        raise HandoffRefused(
            f"The hand-off is signed with {signature.public_key}, which trusted_keys does not list. If "
            "that is your stage's key, add it there."
        )
    try:
        key = base64.b64decode(signature.public_key.removeprefix(PREFIX), validate=True)
        public = Ed25519PublicKey.from_public_bytes(key)
        public.verify(
            base64.b64decode(signature.value, validate=True), PURPOSE + handoff.fingerprint.encode()
        )
    except (InvalidSignature, ValueError) as error:
        raise HandoffRefused(
            "The signature of the hand-off is not one of its contents: it was changed after it was signed. "
            "Ask the DPO stage for it again."
        ) from error
    return signature.public_key
