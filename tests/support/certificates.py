"""A certificate authority for a test, made with the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Makes keys and certificates below one directory. Skips the test where there is no openssl."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("openssl")
        if program is None:
            pytest.skip("needs the openssl command")
        self._program = program
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.crt"
        self._ca_key = directory / "ca.key"
        self._run("req", "-x509", "-subj", "/CN=test authority", "-days", "2",
                  "-addext", "keyUsage=critical,keyCertSign,cRLSign", *self._new_key(self._ca_key),
                  "-out", str(self.ca_file))  # fmt: skip

    def issue(self, name: str, *, address: str | None = None) -> tuple[Path, Path]:
        """Certificate and key for a CN; with an address, for a server there."""
        cert, key, request = (self._directory / f"{name}.{end}" for end in ("crt", "key", "csr"))
        self._run("req", "-new", "-subj", f"/CN={name}", *self._new_key(key), "-out", str(request))
        extensions: list[str] = []
        if address is not None:
            file = self._directory / f"{name}.ext"
            file.write_text(f"subjectAltName=IP:{address}\n")
            extensions = ["-extfile", str(file)]
        self._run("x509", "-req", "-in", str(request), "-CA", str(self.ca_file), "-CAkey", str(self._ca_key),
                  "-CAcreateserial", "-days", "2", "-out", str(cert), *extensions)  # fmt: skip
        return cert, key

    @staticmethod
    def _new_key(key: Path) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], check=True, capture_output=True)
