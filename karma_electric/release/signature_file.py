"""`model.sig`: a sigstore bundle in one spelling, so that no byte of it is without meaning.

It is made with an EC key (the bundle holds the hash of the public key) or without one (it holds the certificate that
sigstore gave to an identity, and an entry of its public log).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, parse_json_object
from karma_electric.errors import IntegrityError, KarmaError

SIGNATURE_NAME = "model.sig"
IGNORED = (SIGNATURE_NAME, ".cache/huggingface", ".git", ".gitattributes", ".github", ".gitignore")
MAX_SIGNATURE_BYTES = 64 * 1024 * 1024

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SERIALIZATION = {"method": "files", "allow_symlinks": False, "hash_type": "sha256"}


@dataclass(frozen=True, slots=True)
class SignatureFile:
    """What a signature lists, path -> SHA-256, and whether it is without a key. Nothing of it is proven yet."""

    files: dict[str, str]
    keyless: bool


def canonical_signature(data: bytes) -> bytes:
    """A bundle of the library in the one spelling that `read_signature` accepts."""
    return canonical_json(parse_json_object(data, SIGNATURE_NAME)).encode("utf-8")


def read_signature(path: Path) -> SignatureFile:
    """Raises IntegrityError for a file that is missing, of another form, or spelled otherwise."""
    if not path.is_file():
        raise IntegrityError(f"{path}: missing, so nobody vouches for these files; fetch the release again")
    with path.open("rb") as stream:
        data = stream.read(MAX_SIGNATURE_BYTES + 1)
    try:
        bundle = parse_json_object(data, str(path))
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        keyless = "certificate" in material
        form = _keyless_form(bundle) if keyless else _key_form(bundle)
        files = _listed(_decoded(envelope["payload"]))
        sound = bundle == form and canonical_json(bundle).encode("utf-8") == data
    except (KarmaError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise IntegrityError(f"{path}: not a signature of a release; fetch the release again")
    return SignatureFile(files, keyless)


def _key_form(bundle: dict[str, Any]) -> dict[str, Any]:
    hint = str(bundle["verificationMaterial"]["publicKey"]["hint"])
    if len(hint) != 64:
        raise ValueError("no hash of a key")
    return {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": _envelope(bundle, {"keyid": ""}),
    }


def _keyless_form(bundle: dict[str, Any]) -> dict[str, Any]:
    """Certificate and log entries are as sigstore's own reader writes them again; it drops what it does not know."""
    from sigstore.models import Bundle

    try:
        again: dict[str, Any] = json.loads(Bundle.from_json(canonical_json(bundle)).to_json())
    except Exception as error:  # of parsers of certificates and logs
        raise ValueError(str(error)) from None
    _decoded(bundle["verificationMaterial"]["certificate"]["rawBytes"])
    (signature,) = bundle["dsseEnvelope"]["signatures"]
    others = {name: value for name, value in signature.items() if name != "sig" and value == ""}
    return {**again, "mediaType": _MEDIA_TYPE, "dsseEnvelope": _envelope(bundle, others)}


def _envelope(bundle: dict[str, Any], others: dict[str, str]) -> dict[str, Any]:
    (signature,) = bundle["dsseEnvelope"]["signatures"]
    _decoded(signature["sig"])
    return {
        "payload": bundle["dsseEnvelope"]["payload"],
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"sig": signature["sig"], **others}],
    }


def _listed(payload: bytes) -> dict[str, str]:
    statement = json.loads(payload)["predicate"]
    serialization = dict(statement["serialization"])
    ignored = set(serialization.pop("ignore_paths"))
    if serialization != _SERIALIZATION or ignored - set(IGNORED):
        raise ValueError("another way of hashing")
    return {str(resource["name"]): str(resource["digest"]) for resource in statement["resources"]}


def _decoded(text: str) -> bytes:
    """Base64 in its one spelling: spare bits of the last sign are not free."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("not the one spelling")
    return data
