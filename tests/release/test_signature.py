"""Signing without a key: the real client against a sigstore of our own, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from karma_electric.canonical import canonical_json, read_json_object
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.release.finishing import finish_release
from karma_electric.release.signature import PUBLIC_KEY_NAME, TOKEN_VARIABLE, Identity, Keyless, verify_signature
from karma_electric.release.signature_file import SIGNATURE_NAME, read_signature
from karma_electric.release.verify import verify_release
from tests.release.mutations import signature_bytes
from tests.release.release_files import make_inputs, signed_release, stage
from tests.release.sigstore_server import LOG_NAME, sigstore_server

SOMEBODY = Identity("somebody@example.org", "https://accounts.example.org")
CLOSED_PORT = "http://127.0.0.1:9"


def identity_token() -> str:
    """A token of the right form, which no issuer vouches for."""
    now = int(time.time())
    claims = {"aud": "sigstore", "iss": SOMEBODY.issuer, "sub": SOMEBODY.name, "iat": now, "nbf": now, "exp": now + 600}
    return jwt.encode(claims, "a secret of at least 32 bytes, or so")


@pytest.fixture(autouse=True)
def _no_identity_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (TOKEN_VARIABLE, "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, CLOSED_PORT)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture(scope="module")
def trust() -> Iterator[str]:
    with sigstore_server() as config:
        yield config


@pytest.fixture
def sigstore(trust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our sigstore in the place of the public one, and a token to sign with."""
    from sigstore.models import ClientTrustConfig

    monkeypatch.setattr(ClientTrustConfig, "production", lambda: ClientTrustConfig.from_json(trust))
    monkeypatch.setenv(TOKEN_VARIABLE, identity_token())


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, not finished, and not to be changed."""
    folder = tmp_path_factory.mktemp("staged")
    return stage(make_inputs(folder / "project"), folder / "release")


@pytest.fixture
def release(staged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(staged, tmp_path / "release")


def test_signed_without_a_key_and_verified_by_who_signed(sigstore: None, release: Path) -> None:
    finish_release(release, private_key=Keyless())
    assert not (release / PUBLIC_KEY_NAME).exists()
    found = verify_release(release, signer=SOMEBODY, report=lambda line: None)
    assert found.signed_by == "somebody@example.org, says https://accounts.example.org"
    others = (Identity("other@example.org", SOMEBODY.issuer), Identity(SOMEBODY.name, "https://other.example.org"))
    for other in others:
        with pytest.raises(IntegrityError, match=r"the signature does not hold \(Certificate's"):
            verify_signature(release, signer=other)
    (release / "versions.yaml").write_text("versions: []\n")
    with pytest.raises(IntegrityError, match=r"the signature does not hold .*versions\.yaml"):
        verify_signature(release, signer=SOMEBODY)


def test_the_token_is_in_no_file(sigstore: None, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = identity_token()
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    finish_release(release, private_key=Keyless())
    for path in release.rglob("*"):
        assert path.is_dir() or token.encode() not in path.read_bytes()


@pytest.mark.parametrize("step", [149, pytest.param(2, marks=pytest.mark.long)])
def test_every_part_of_a_keyless_signature_counts(sigstore: None, release: Path, step: int) -> None:
    """But for the log's own name beside its signature of the checkpoint, which sigstore's client does not compare."""
    finish_release(release, private_key=Keyless())
    path = release / SIGNATURE_NAME
    kept = path.read_bytes()
    name = kept.rindex(f"\u2014 {LOG_NAME} ".encode()) + len("\u2014 ".encode())
    for mutation in signature_bytes(release, step):
        if name <= mutation.start < name + len(LOG_NAME):
            continue
        path.write_bytes(mutation.apply(kept))
        with pytest.raises(IntegrityError):
            verify_signature(release, signer=SOMEBODY)


def test_who_must_have_signed_has_to_be_said(sigstore: None, release: Path, tmp_path: Path) -> None:
    finish_release(release, private_key=Keyless())
    _, key = signed_release(tmp_path / "another")
    for signer in (None, key):
        with pytest.raises(InputError, match="signed without a key; say by whom it must be: --identity NAME"):
            verify_signature(release, signer=signer)


@pytest.mark.parametrize("part", [(), ("verificationMaterial",), ("dsseEnvelope",)])
def test_what_sigstore_does_not_read_is_refused(sigstore: None, release: Path, part: tuple[str, ...]) -> None:
    finish_release(release, private_key=Keyless())
    bundle = read_json_object(release / SIGNATURE_NAME)
    inner: Any = bundle
    for key in part:
        inner = inner[key]
    inner["more"] = "than it reads"
    (release / SIGNATURE_NAME).write_text(canonical_json(bundle), "utf-8")
    with pytest.raises(IntegrityError, match="not a signature of a release"):
        verify_signature(release, signer=SOMEBODY)
    (release / SIGNATURE_NAME).write_text(json.dumps(bundle), "utf-8")
    with pytest.raises(IntegrityError, match="not a signature of a release"):
        read_signature(release / SIGNATURE_NAME)


def test_without_a_network_it_cannot_be_verified(
    sigstore: None, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_release(release, private_key=Keyless())
    monkeypatch.undo()
    monkeypatch.setenv("HTTPS_PROXY", CLOSED_PORT)
    monkeypatch.setenv("HOME", str(release.parent / "home"))
    with pytest.raises(SetupError, match=r"sigstore's keys cannot be fetched \(TUFError\)"):
        verify_signature(release, signer=SOMEBODY)


def test_nobody_to_sign_as(release: Path) -> None:
    with pytest.raises(SetupError, match="no identity to sign as; set SIGSTORE_ID_TOKEN"):
        finish_release(release, private_key=Keyless())
    assert not (release / SIGNATURE_NAME).exists()


@pytest.mark.parametrize(
    ("make_token", "kind"), [(lambda: "no.token.of-mine", "IdentityError"), (identity_token, "TUFError")]
)
def test_a_failure_is_one_line_without_the_token(
    release: Path, monkeypatch: pytest.MonkeyPatch, make_token: Callable[[], str], kind: str
) -> None:
    """The second of them has a token, made now because it soon expires, and no network."""
    token = make_token()
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(SetupError) as caught:
        finish_release(release, private_key=Keyless())
    assert f"keyless signing failed ({kind})" in str(caught.value)
    assert token not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (release / SIGNATURE_NAME).exists()


def test_a_signature_with_a_key_proves_no_identity(tmp_path: Path) -> None:
    release, _ = signed_release(tmp_path)
    with pytest.raises(IntegrityError, match="signed with a key, so it proves no identity"):
        verify_signature(release, signer=SOMEBODY)
