"""A server of grpc.aio that answers each call with OK, without reading it: ``python grpc_ok.py PORT``."""

from __future__ import annotations

import asyncio
import sys

import grpc


class Anything(grpc.GenericRpcHandler):
    """Answers every method. Messages stay bytes: to decode them would cost more."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return what answers a method."""
        return grpc.unary_unary_rpc_method_handler(answer)


async def answer(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
    """Return a response of Envoy's rate limit service whose code is OK."""
    return b"\x08\x01"


async def main(port: str) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(handlers=[Anything()])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
