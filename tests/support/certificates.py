"""A certificate authority for a test: certificates with openssl, lists of revoked ones with cryptography."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from fedmq_broker_config.revocation import name_extension


class Authority:
    """Makes keys and certificates below one directory. Skips the test where there is no openssl."""

    def __init__(self, directory: Path, *, name: str = "test authority") -> None:
        program = shutil.which("openssl")
        if program is None:
            pytest.skip("needs the openssl command")
        self._program = program
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.crt"
        self._ca_key = directory / "ca.key"
        self._run("req", "-x509", "-subj", f"/CN={name}", "-days", "2",
                  "-addext", "keyUsage=critical,keyCertSign,cRLSign", *self._new_key(self._ca_key),
                  "-out", str(self.ca_file))  # fmt: skip

    def issue(self, name: str, *, address: str | None = None, file: str | None = None) -> tuple[Path, Path]:
        """Certificate and key for a CN; with an address, for a server there. `file`: where the CN is no file name."""
        cert, key, request = (self._directory / f"{file or name}.{end}" for end in ("crt", "key", "csr"))
        subject = "/CN=" + name.replace("/", "\\/").replace("+", "\\+")
        self._run("req", "-new", "-subj", subject, *self._new_key(key), "-out", str(request))
        extensions: list[str] = []
        if address is not None:
            extra = self._directory / f"{file or name}.ext"
            extra.write_text(f"subjectAltName=IP:{address}\n")
            extensions = ["-extfile", str(extra)]
        self._run("x509", "-req", "-in", str(request), "-CA", str(self.ca_file), "-CAkey", str(self._ca_key),
                  "-CAcreateserial", "-days", "2", "-out", str(cert), *extensions)  # fmt: skip
        return cert, key

    def serial(self, name: str) -> int:
        """Of the newest certificate of a name."""
        return x509.load_pem_x509_certificate((self._directory / f"{name}.crt").read_bytes()).serial_number

    def revoke(
        self,
        path: Path,
        entries: Mapping[int, str | None] | None = None,
        *,
        number: int = 1,
        replaced: Mapping[int, str] | None = None,
        begins: datetime | None = None,
        holds: timedelta = timedelta(days=30),
    ) -> bytes:
        """Put a list into a file: serials with their owners' names, those with a newer certificate apart."""
        authority = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        key = serialization.load_pem_private_key(self._ca_key.read_bytes(), None)
        begins = begins or datetime.now(UTC) - timedelta(seconds=2)
        builder = x509.CertificateRevocationListBuilder(authority.subject, begins, begins + holds)
        builder = builder.add_extension(x509.CRLNumber(number), False)
        for serial, name in {**(entries or {}), **(replaced or {})}.items():
            entry = x509.RevokedCertificateBuilder(serial, begins)
            if name is not None:
                entry = entry.add_extension(name_extension(name), False)
            if serial in (replaced or {}):
                entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.superseded), False)
            builder = builder.add_revoked_certificate(entry.build())
        data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
        beside = path.with_suffix(".new")
        beside.write_bytes(data)
        beside.replace(path)
        return data

    @staticmethod
    def _new_key(key: Path) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], check=True, capture_output=True)
