"""Signing a release with an EC key, and checking the signature: OpenSSF model signing, so others' tools read it, too.

The signature (`model.sig`, a sigstore bundle) lists every file of the folder with its SHA-256, but for itself and what
git and the hub's client put beside. It is not deterministic, so a signature is never an output of a stage.
"""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, parse_json_object
from karma_electric.errors import IntegrityError, KarmaError, SetupError
from karma_electric.integrity import atomic_file

SIGNATURE_NAME = "model.sig"
PUBLIC_KEY_NAME = "public-key.pem"
IGNORED = (SIGNATURE_NAME, ".cache/huggingface", ".git", ".gitattributes", ".github", ".gitignore")
MAX_SIGNATURE_BYTES = 64 * 1024 * 1024
MAX_KEY_BYTES = 64 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sign_release(folder: Path, *, private_key: Path) -> Path:
    """Put the public key and a signature over every file into `folder`; the signature's path.

    The key is an EC key in PEM without a password. Raises SetupError for another one.
    """
    from model_signing import signing

    public = folder / PUBLIC_KEY_NAME
    if not public.is_file() or public.read_bytes() != public_key_of(private_key):
        raise SetupError(f"{public}: not the public key of {private_key}; finish the folder with the key that signs it")
    with tempfile.TemporaryDirectory() as outside:  # a file in the folder would be signed itself
        made = Path(outside) / SIGNATURE_NAME
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
        config.set_hashing_config(_hashing()).sign(folder, made)
        data = made.read_bytes()
    with atomic_file(folder / SIGNATURE_NAME) as temporary:
        temporary.write_bytes(canonical_json(parse_json_object(data, SIGNATURE_NAME)).encode("utf-8"))
    return folder / SIGNATURE_NAME


def public_key_of(private_key: Path) -> bytes:
    """The public half of an EC key, in PEM. Raises SetupError for a file that is no such key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    advice = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem`"
    try:
        key = serialization.load_pem_private_key(_key_bytes(private_key), password=None)
    except (ValueError, TypeError):  # the error may quote the file, which is secret
        raise SetupError(f"{private_key}: no private key in PEM without a password; {advice}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{private_key}: no key of an elliptic curve; {advice}")
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def verify_signature(folder: Path, *, public_key: Path | None = None) -> dict[str, str]:
    """Path -> SHA-256 of every signed file, after each file of `folder` was hashed and compared with it.

    Without `public_key` the key that lies in the folder is taken, which shows that the folder is whole, and not who
    signed it. Raises IntegrityError for a signature that is missing, by another key, or over other files.
    """
    from model_signing import verifying

    path = folder / SIGNATURE_NAME
    signed = _signed_files(path)
    key = folder / PUBLIC_KEY_NAME if public_key is None else public_key
    if public_key is None and not key.is_file():
        raise IntegrityError(f"{key}: missing; give the publisher's key: --public-key FILE")
    _key_bytes(key)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        config.set_hashing_config(_hashing()).verify(folder, path)
    except KarmaError:
        raise
    except Exception as error:  # the library raises what its parsers and OpenSSL raise
        reason = str(error) or type(error).__name__
        raise IntegrityError(
            f"{folder}: the signature does not hold ({reason[:300]}); fetch the release again"
        ) from None
    return signed


def _hashing() -> Any:
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", chunk_size=_CHUNK_BYTES)
    return config.set_ignored_paths(paths=IGNORED, ignore_git_paths=True)


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read ({error.strerror}); expected a key in PEM") from None
    if len(data) > MAX_KEY_BYTES or b"-----BEGIN" not in data:
        raise SetupError(f"{path}: no key in PEM; see docs/publishing.md")
    return data


def _signed_files(path: Path) -> dict[str, str]:
    """What the signature lists. Its form is strict, in one spelling, so that no byte of the file is without meaning."""
    if not path.is_file():
        raise IntegrityError(f"{path}: missing, so nobody vouches for these files; fetch the release again")
    with path.open("rb") as stream:
        data = stream.read(MAX_SIGNATURE_BYTES + 1)
    broken = IntegrityError(f"{path}: not a signature of a release; fetch the release again")
    try:
        bundle = parse_json_object(data, str(path))
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        payload = _decoded(envelope["payload"])
        (signature,) = envelope["signatures"]
        _decoded(signature["sig"])
        expected = {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": str(material["publicKey"]["hint"])}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": envelope["payload"],
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": signature["sig"], "keyid": ""}],
            },
        }
        statement = json.loads(payload)["predicate"]
        known = {"method": "files", "allow_symlinks": False, "hash_type": "sha256"}
        serialization = dict(statement["serialization"])
        ignored = set(serialization.pop("ignore_paths"))
        is_form = bundle == expected and len(material["publicKey"]["hint"]) == 64 and serialization == known
        signed = {str(resource["name"]): str(resource["digest"]) for resource in statement["resources"]}
    except (KarmaError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise broken from None
    if not is_form or ignored - set(IGNORED) or canonical_json(bundle).encode("utf-8") != data:
        raise broken
    return signed


def _decoded(text: str) -> bytes:
    """Base64 in its one spelling: spare bits of the last sign are not free."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("not the one spelling")
    return data
