"""Ask the server in this container for its health: exit code 0 if it serves, 1 if not.

Of a server with TLS, BLL_CA names the CA of its certificate, BLL_SERVER_NAME the name in it, and BLL_CERT and BLL_KEY
what to show where the server wants a certificate of its clients: the variables of the `bll` command.
"""

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bll_client import TLS


def _channel(address: str) -> grpc.Channel:
    ca = os.environ.get("BLL_CA")
    if ca is None:
        return grpc.insecure_channel(address)
    tls = TLS(ca, *(os.environ.get(name) for name in ("BLL_CERT", "BLL_KEY", "BLL_SERVER_NAME")))
    return grpc.secure_channel(address, tls.credentials(), tls.options())


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8470"
    with _channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=4)
        except grpc.RpcError as error:
            sys.exit(f"{address}: {error}")
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")
