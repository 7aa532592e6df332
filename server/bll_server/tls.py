"""The server's certificate, its key and the CA of its clients, read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class BadCertificate(Exception):
    """The files cannot be read, or do not belong together."""


class Certificates:
    """What the server shows in each new handshake. Connections that are open keep what they began with."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Read PEM files. With a `client_ca`, whoever has no certificate of it is turned away in the handshake.

        Raises BadCertificate.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._stamp, self._first = self._read()
        self._refused: _Stamp | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._renewed,  # type: ignore[arg-type]  # the stubs lack the None that keeps the old
            require_client_authentication=self._client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What grpc asks for before every handshake: the new files, or None to go on with the old ones."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp in (self._stamp, self._refused):
                    return None
                self._refused = stamp  # said once, not at every handshake
                self._stamp, configuration = self._read()
            except (BadCertificate, OSError) as error:
                log.error("the new certificate is not used, the old one stays: %s", error)
                return None
            self._refused = None
            log.info("the certificate %s was read again", self._cert)
            return configuration

    def _read(self) -> tuple[_Stamp, grpc.ServerCertificateConfiguration]:
        try:
            stamp = self._look()
            # grpc takes any bytes, and then fails every handshake. An encrypted key would ask on the terminal.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._cert, self._key, password="")
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
            roots = self._client_ca.read_bytes() if self._client_ca else None
            pair = (self._key.read_bytes(), self._cert.read_bytes())
            changing = self._look() != stamp
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            files = ", ".join(str(path) for path in self._files())
            raise BadCertificate(
                f"{files} must be a PEM certificate, its plain key and a client CA: {error}"
            ) from error
        if changing:
            raise BadCertificate(f"{self._cert} and its key are being written")
        return stamp, grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def _look(self) -> _Stamp:
        found = [path.stat() for path in self._files()]
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)

    def _files(self) -> list[Path]:
        return [self._cert, self._key, *([self._client_ca] if self._client_ca else [])]
