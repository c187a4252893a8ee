# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made with the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True, timeout=30)


class Authority:
    """One that vouches for others."""

    def __init__(self, directory: Path, name: str, address: str = "127.0.0.1") -> None:
        """Make its key and certificate; it vouches for nobody but who is at `address`."""
        self._directory = directory
        self.certificate = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        directory.mkdir(parents=True, exist_ok=True)
        self._extensions = directory / f"{name}.ext"
        self._extensions.write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n")
        files = ("-keyout", str(self._key), "-out", str(self.certificate))
        _openssl("req", "-x509", *NEW_KEY, *files, "-subj", f"/CN={name}", "-days", "10")

    def issue(self, name: str, days: int = 10) -> tuple[Path, Path]:
        """Make key and certificate; return both. With days below 0 it has expired."""
        key, wish, certificate = (self._directory / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
        _openssl("req", *NEW_KEY, "-keyout", str(key), "-out", str(wish), "-subj", f"/CN={name}")
        signer = ("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial")
        files = ("-in", str(wish), "-out", str(certificate), "-extfile", str(self._extensions))
        _openssl("x509", "-req", *signer, *files, "-days", str(days))
        return key, certificate
