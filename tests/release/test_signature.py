"""Signing without a key, as far as it goes without sigstore's services: who would sign, what is refused and said."""

from __future__ import annotations

import base64
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from karma_electric.canonical import canonical_json, read_json_object
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.release.finishing import finish_release
from karma_electric.release.signature import TOKEN_VARIABLE, Identity, Keyless, verify_signature
from karma_electric.release.signature_file import SIGNATURE_NAME, read_signature
from tests.release.release_files import signed_release

SOMEBODY = Identity("somebody@example.org", "https://accounts.example.org")
CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return signed_release(tmp_path)[0]


@pytest.fixture(autouse=True)
def _no_identity_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (TOKEN_VARIABLE, "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, CLOSED_PORT)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def identity_token() -> str:
    """A token of the right form, which no issuer vouches for."""
    claims = {"aud": "sigstore", "iss": SOMEBODY.issuer, "sub": SOMEBODY.name, "email": SOMEBODY.name}
    now = int(time.time())
    return jwt.encode({**claims, "iat": now, "nbf": now, "exp": now + 600}, "a secret of at least 32 bytes, or so")


def test_nobody_to_sign_as(release: Path) -> None:
    with pytest.raises(SetupError, match="no identity to sign as; set SIGSTORE_ID_TOKEN"):
        finish_release(release, private_key=Keyless())
    assert not (release / SIGNATURE_NAME).exists(), "the old one would be about other files"


@pytest.mark.parametrize(("token", "kind"), [("no.token.of-mine", "IdentityError"), (identity_token(), "TUFError")])
def test_a_failure_is_one_line_without_the_token(
    release: Path, monkeypatch: pytest.MonkeyPatch, token: str, kind: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(SetupError) as caught:
        finish_release(release, private_key=Keyless())
    assert f"keyless signing failed ({kind})" in str(caught.value)
    assert token not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (release / SIGNATURE_NAME).exists()


def test_a_signature_with_a_key_proves_no_identity(release: Path) -> None:
    with pytest.raises(IntegrityError, match="signed with a key, so it proves no identity"):
        verify_signature(release, signer=SOMEBODY)


def keyless_bundle(release: Path) -> dict[str, Any]:
    """The signature of `release` in the form that sigstore gives one: self-made, so that it can prove nothing."""
    bundle = read_json_object(release / SIGNATURE_NAME)
    hint = {
        "logId": {"keyId": base64.b64encode(bytes(32)).decode()},
        "kindVersion": {"kind": "dsse", "version": "0.0.1"},
    }
    hashed = base64.b64encode(bytes(32)).decode()
    proof = {
        "logIndex": "0",
        "rootHash": hashed,
        "treeSize": "1",
        "hashes": [],
        "checkpoint": {"envelope": "nobody's\n"},
    }
    entry = {"logIndex": "0", **hint, "integratedTime": "0", "inclusionProof": proof}
    entry["canonicalizedBody"] = base64.b64encode(b"{}").decode()
    certificate = {"rawBytes": base64.b64encode(self_signed()).decode()}
    bundle["verificationMaterial"] = {"certificate": certificate, "tlogEntries": [entry]}
    from sigstore.models import Bundle

    whole = Bundle.from_json(json.dumps(bundle)).to_json()
    parsed: dict[str, Any] = json.loads(whole)
    return parsed


def self_signed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(minutes=10))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
    ).add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_signature_without_a_key_asks_by_whom_it_must_be(release: Path, tmp_path: Path) -> None:
    path = release / SIGNATURE_NAME
    signed = read_signature(path).files
    path.write_text(canonical_json(keyless_bundle(release)), "utf-8")
    found = read_signature(path)
    assert (found.keyless, found.files) == (True, signed)
    for signer in (None, release / "public-key.pem"):
        with pytest.raises(InputError, match="signed without a key; say by whom it must be: --identity NAME"):
            verify_signature(release, signer=signer)
    with pytest.raises(SetupError, match=r"sigstore's keys cannot be fetched \(TUFError\)"):
        verify_signature(release, signer=SOMEBODY)


@pytest.mark.parametrize(
    "part", [(), ("verificationMaterial",), ("dsseEnvelope",), ("verificationMaterial", "tlogEntries", 0)]
)
def test_what_sigstore_does_not_read_is_refused(release: Path, part: tuple[str | int, ...]) -> None:
    bundle = keyless_bundle(release)
    inner: Any = bundle
    for key in part:
        inner = inner[key]
    inner["more"] = "than it reads"
    (release / SIGNATURE_NAME).write_text(canonical_json(bundle), "utf-8")
    with pytest.raises(IntegrityError, match="not a signature of a release"):
        verify_signature(release, signer=SOMEBODY)
