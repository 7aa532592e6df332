"""Ask the server in this container for its health: exit code 0 if it serves, 1 if not."""

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8470"
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack the methods
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=4)
        except grpc.RpcError as error:
            sys.exit(f"{address}: {error}")
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")
