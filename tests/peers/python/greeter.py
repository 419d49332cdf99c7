"""The greeter of the README's five minutes, in Python: an ordinary gRPC server, with reflection, that knows nothing of dialback."""

import argparse
from concurrent import futures

import grpc
from grpc_reflection.v1alpha import reflection

from greeter_pb2 import DESCRIPTOR, HelloReply
from greeter_pb2_grpc import GreeterServicer, add_GreeterServicer_to_server


class Greeter(GreeterServicer):
    def SayHello(self, request, context):
        return HelloReply(message=f"Hello {request.name}, this is Python")

    def LotsOfReplies(self, request, context):
        for number in range(1, 4):
            yield HelloReply(message=f"Hello {request.name}, number {number}")

    def Chat(self, requests, context):
        for request in requests:
            yield HelloReply(message=f"Hello {request.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:50051")
    options = parser.parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    add_GreeterServicer_to_server(Greeter(), server)
    names = [service.full_name for service in DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port(options.listen)
    server.start()
    print(f"greeter: listening on port {port}")
    server.wait_for_termination()


if __name__ == "__main__":
    main()
