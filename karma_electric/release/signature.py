"""Signing a release and checking the signature: OpenSSF model signing, so others' tools read it, too.

The signature lists every file of the folder with its SHA-256, but for itself and what git and the hub's client put
beside. It is not deterministic, so a signature is never an output of a stage.

With a key, the key's owner vouches. Without one, whoever an identity token names does: sigstore gives a certificate
that lives for minutes, and writes the signature into its public log.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.integrity import atomic_file
from karma_electric.release.digests import paths_below, sha256_files
from karma_electric.release.signature_file import (
    IGNORED,
    SignatureFile,
    canonical_signature,
    read_signature,
)
from karma_electric.release.signature_file import SIGNATURE_NAME as SIGNATURE_NAME  # of the same thing

PUBLIC_KEY_NAME = "public-key.pem"
TOKEN_VARIABLE = "SIGSTORE_ID_TOKEN"  # noqa: S105 - its name; the one that sigstore's own tools read
MAX_KEY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Keyless:
    """Sign as whom an identity token names: of SIGSTORE_ID_TOKEN, of the CI that we run in, or of a browser's login."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who must have signed without a key: a mail address or a workflow, as `issuer` (an address) attested it."""

    name: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.name}, says {self.issuer}"


Signer = Path | Keyless  # a private EC key in PEM without a password, or none


def sign_release(folder: Path, *, signer: Signer, digests: Mapping[str, str]) -> Path:
    """Put a signature over every file of `folder` into it; `digests` (path -> SHA-256) are of these files, all of them.

    A folder that is signed with a key holds the public key. Raises SetupError for another key, and for a keyless
    signature without an identity or a network.
    """
    from model_signing import signing

    if isinstance(signer, Keyless):
        config = _keyless_config()
    else:
        public = folder / PUBLIC_KEY_NAME
        if not public.is_file() or public.read_bytes() != public_key_of(signer):
            raise SetupError(f"{public}: not the public key of {signer}; finish the folder with the key that signs it")
        config = signing.Config().use_elliptic_key_signer(private_key=signer)
    with tempfile.TemporaryDirectory() as outside:
        made = Path(outside) / SIGNATURE_NAME
        try:
            config.set_hashing_config(_known_digests(digests)).sign(folder, made)
        except Exception as error:
            if not isinstance(signer, Keyless):
                raise
            raise _keyless_failure(error) from None
        data = made.read_bytes()
    with atomic_file(folder / SIGNATURE_NAME) as temporary:
        temporary.write_bytes(canonical_signature(data))
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


def verify_signature(folder: Path, *, signer: Path | Identity | None = None) -> dict[str, str]:
    """Path -> SHA-256 of every signed file, after each file of `folder` was hashed, once, and compared with it.

    `signer` is a public key in PEM, or who signed without one; None takes the key that lies in the folder, which shows
    that the folder is whole, and not who signed it. Raises IntegrityError for a signature that is missing, by another
    signer, or over other files.
    """
    from model_signing import verifying

    signature = read_signature(folder / SIGNATURE_NAME)
    config = verifying.Config()
    if isinstance(signer, Identity):
        _require_kind(folder, signature, keyless=True)
        try:
            config.use_sigstore_verifier(identity=signer.name, oidc_issuer=signer.issuer)
        except Exception as error:  # sigstore's errors share no class with those of its network
            raise SetupError(
                f"sigstore's keys cannot be fetched ({type(error).__name__}), and a keyless signature is checked with "
                "them; is there a network?"
            ) from None
    else:
        _require_kind(folder, signature, keyless=False)
        config.use_elliptic_key_verifier(public_key=_public_key(folder, signer))
    digests = sha256_files(folder, paths_below(folder, ignored=IGNORED))
    try:
        config.set_hashing_config(_known_digests(digests)).verify(folder, folder / SIGNATURE_NAME)
    except Exception as error:  # the library raises what its parsers and OpenSSL raise
        reason = str(error) or type(error).__name__
        raise IntegrityError(
            f"{folder}: the signature does not hold ({reason[:300]}); fetch the release again"
        ) from None
    return signature.files


def _require_kind(folder: Path, signature: SignatureFile, *, keyless: bool) -> None:
    path = folder / SIGNATURE_NAME
    if keyless and not signature.keyless:
        raise IntegrityError(f"{path}: signed with a key, so it proves no identity; give the key: --public-key FILE")
    if signature.keyless and not keyless:
        raise InputError(f"{path}: signed without a key; say by whom it must be: --identity NAME --issuer ADDRESS")


def _public_key(folder: Path, given: Path | None) -> Path:
    key = folder / PUBLIC_KEY_NAME if given is None else given
    if given is None and not key.is_file():
        raise IntegrityError(f"{key}: missing; give the publisher's key: --public-key FILE")
    _key_bytes(key)
    return key


def _keyless_config() -> Any:
    """Raises SetupError before anything is sent when there is nobody to sign as, or no network."""
    from model_signing import signing
    from sigstore.oidc import IdentityToken, detect_credential

    token = os.environ.get(TOKEN_VARIABLE)
    try:
        if token:
            IdentityToken(token)
        nobody = not token and detect_credential() is None and not sys.stderr.isatty()
    except Exception as error:
        raise _keyless_failure(error) from None
    if nobody:
        raise SetupError(
            f"no identity to sign as; set {TOKEN_VARIABLE}, sign in a CI that gives one, or at a terminal, where a "
            "browser asks for it; or sign with a key: --key FILE"
        )
    try:
        return signing.Config().use_sigstore_signer(identity_token=token or None, use_ambient_credentials=True)
    except Exception as error:
        raise _keyless_failure(error) from None


def _keyless_failure(error: Exception) -> SetupError:
    """Without the error's own words: they may quote the token."""
    return SetupError(
        f"keyless signing failed ({type(error).__name__}): it needs sigstore's services and an identity token that "
        f"holds; is there a network, and is {TOKEN_VARIABLE} still valid? or sign with a key: --key FILE"
    )


def _known_digests(digests: Mapping[str, str]) -> Any:
    """A hashing configuration of the library that hashes nothing: it lists what was hashed already."""
    from model_signing import hashing, manifest

    class KnownDigests(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            kind = manifest.SerializationType.from_args(
                {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": IGNORED}
            )
            items = [
                kind.new_item(path, manifest.hashing.Digest("sha256", bytes.fromhex(digest)))
                for path, digest in digests.items()
            ]
            return manifest.Manifest(Path(model_path).resolve().name, items, kind)

    return KnownDigests()


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read ({error.strerror}); expected a key in PEM") from None
    if len(data) > MAX_KEY_BYTES or b"-----BEGIN" not in data:
        raise SetupError(f"{path}: no key in PEM; see docs/publishing.md")
    return data
