"""A small sigstore over HTTP: a certificate authority with its transparency log, and a log of signatures.

It implements what the real client asks when it signs (`/api/v2/signingCert`, `/api/v1/log/entries`, the issuer's
endpoints), with keys of its own that `trust_config` names. A certificate holds the identity of the token, as it is.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
TIMESTAMPS_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
LOG_NAME = "log.example.org"
MINUTE = datetime.timedelta(minutes=1)
VALID = {"start": "2020-01-01T00:00:00Z"}


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_der(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Sigstore:
    """The authority and both logs."""

    def __init__(self) -> None:
        self.authority, self.certificate_log, self.signature_log = new_key(), new_key(), new_key()
        self.root = self._root()

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
        builder = builder.public_key(self.authority.public_key())
        builder = builder.not_valid_before(now - MINUTE).not_valid_after(now + 60 * MINUTE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key())
        return builder.add_extension(identifier, critical=False).sign(self.authority, hashes.SHA256())

    def certificates(self, request: x509.CertificateSigningRequest, token: str) -> list[str]:
        """A certificate for the token's identity with the timestamp of the certificate log, and the root; PEM."""
        claims = jwt.decode(token, options={"verify_signature": False})
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self.root.subject)
        builder = builder.public_key(request.public_key()).serial_number(x509.random_serial_number())  # type: ignore[arg-type]
        builder = builder.not_valid_before(now - MINUTE).not_valid_after(now + 10 * MINUTE)
        names = x509.SubjectAlternativeName([x509.RFC822Name(claims["sub"])])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        issuer = x509.UnrecognizedExtension(ISSUER_EXTENSION, claims["iss"].encode())
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key())
        builder = builder.add_extension(names, critical=True).add_extension(usage, critical=False)
        builder = builder.add_extension(key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(issuer, critical=False).add_extension(above, critical=False)
        body = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        stamped = x509.UnrecognizedExtension(TIMESTAMPS_EXTENSION, self._timestamps(body))
        made = builder.add_extension(stamped, critical=False).sign(self.authority, hashes.SHA256())
        return [each.public_bytes(serialization.Encoding.PEM).decode() for each in (made, self.root)]

    def _timestamps(self, body: bytes) -> bytes:
        """RFC 6962's list of one signed timestamp over a certificate's body, in an OCTET STRING."""
        milliseconds = int(time.time() * 1000)
        issuer = hashlib.sha256(public_der(self.authority)).digest()
        entry = issuer + struct.pack("!I", len(body))[1:] + body
        signature = sign(self.certificate_log, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\0\0")
        stamp = b"\0" + hashlib.sha256(public_der(self.certificate_log)).digest() + struct.pack("!QH", milliseconds, 0)
        stamp += struct.pack("!BBH", 4, 3, len(signature)) + signature
        listed = struct.pack("!H", len(stamp)) + stamp
        listed = struct.pack("!H", len(listed)) + listed
        assert len(listed) < 256
        return bytes([0x04, 0x81, len(listed)]) + listed if len(listed) > 127 else bytes([0x04, len(listed)]) + listed

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """The log's entry for a signature: the only one of its tree."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        hashed = {"envelopeHash": content["envelope"].encode(), "payloadHash": payload}
        spec: dict[str, Any] = {
            name: {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()} for name, data in hashed.items()
        }
        (signed,), (verifier,) = envelope["signatures"], content["verifiers"]
        spec["signatures"] = [{"signature": signed["sig"], "verifier": verifier}]
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        root = hashlib.sha256(b"\0" + body).digest()
        log_id = hashlib.sha256(public_der(self.signature_log)).digest()
        note = f"{LOG_NAME}\n1\n{text64(root)}\n"
        checkpoint = f"{note}\n\u2014 {LOG_NAME} {text64(log_id[:4] + sign(self.signature_log, note.encode()))}\n"
        head = {"body": text64(body), "integratedTime": int(time.time()), "logID": log_id.hex(), "logIndex": 0}
        proof = {"logIndex": 0, "rootHash": root.hex(), "treeSize": 1, "hashes": [], "checkpoint": checkpoint}
        promise = text64(sign(self.signature_log, rfc8785.dumps(head)))  # type: ignore[arg-type]
        return {"1": {**head, "verification": {"signedEntryTimestamp": promise, "inclusionProof": proof}}}

    def trust_config(self, address: str) -> str:
        """What a client trusts and where it asks, as JSON."""

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            der = public_der(key)
            public = {"rawBytes": text64(der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": VALID}
            identifier = {"keyId": text64(hashlib.sha256(der).digest())}
            return {"baseUrl": address, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": identifier}

        chain = {"certificates": [{"rawBytes": text64(self.root.public_bytes(serialization.Encoding.DER))}]}
        subject = {"organization": "test", "commonName": "test authority"}
        service = [{"url": address, "majorApiVersion": 1, "validFor": VALID, "operator": "test"}]
        kind = "application/vnd.dev.sigstore."
        root = {
            "mediaType": f"{kind}trustedroot+json;version=0.1",
            "tlogs": [log(self.signature_log)],
            "certificateAuthorities": [{"subject": subject, "uri": address, "certChain": chain, "validFor": VALID}],
            "ctlogs": [log(self.certificate_log)],
            "timestampAuthorities": [],
        }
        signing = {
            "mediaType": f"{kind}signingconfig.v0.2+json",
            "caUrls": service,
            "oidcUrls": service,
            "rekorTlogUrls": service,
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }
        config = {"mediaType": f"{kind}clienttrustconfig.v0.1+json", "trustedRoot": root, "signingConfig": signing}
        return json.dumps(config)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextlib.contextmanager
def sigstore_server() -> Iterator[str]:
    """The trust configuration of a running server, as JSON."""
    sigstore = Sigstore()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/v2/signingCert":
                request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
                chain = sigstore.certificates(request, self.headers["Authorization"].removeprefix("Bearer "))
                answer: dict[str, Any] = {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}
            else:
                assert self.path == "/api/v1/log/entries"
                answer = sigstore.entry(body)
            self.answer(answer)

        def do_GET(self) -> None:
            assert self.path == "/.well-known/openid-configuration"
            self.answer({"authorization_endpoint": "nowhere", "token_endpoint": "nowhere"})

        def answer(self, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield sigstore.trust_config(f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()
