#!/usr/bin/env python3
"""As much of grpcurl as docs/client.md uses, so that its examples can be run: what reflection tells, and JSON."""
import argparse
import json
import sys

sys.dont_write_bytecode = True
import grpc
from google.protobuf import json_format

from foreign import PATIENCE, Reflected


def documents(text):
    """JSON documents one after another."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].lstrip()


def describe(reflected, symbol):
    reflected.load(symbol)
    for (service, method), kind in sorted(reflected.kinds.items()):
        if service == symbol:
            print(method, kind.input_type, kind.output_type)


def invoke(reflected, path, data, headers):
    service, method = path.split('/')
    reflected.load(service)
    kind = reflected.kinds[service, method]
    ask = reflected.message(kind.input_type[1:])
    requests = [json_format.ParseDict(document, ask()) for document in documents(data)] or [ask()]
    call = reflected.call(service, method)
    metadata = [(name.strip().lower(), value.strip()) for name, value in (h.split(':', 1) for h in headers)]
    if not kind.client_streaming:
        assert len(requests) == 1, f'{path} takes one message'
    answer = call(iter(requests) if kind.client_streaming else requests[0], metadata=metadata, timeout=PATIENCE)
    for message in answer if kind.server_streaming else [answer]:
        print(json_format.MessageToJson(message))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('-plaintext', action='store_true', required=True)
    parser.add_argument('-H', action='append', default=[])
    parser.add_argument('-d', default='')
    parser.add_argument('address')
    parser.add_argument('what')
    parser.add_argument('symbol', nargs='?')
    args = parser.parse_args()
    data = sys.stdin.read() if args.d == '@' else args.d
    options = [('grpc.max_receive_message_length', 64 << 20)]
    with grpc.insecure_channel(args.address, options) as channel:
        reflected = Reflected(channel, 'v1')
        try:
            if args.what == 'list':
                print('\n'.join(reflected.services()))
            elif args.what == 'describe':
                describe(reflected, args.symbol)
            else:
                invoke(reflected, args.what, data, args.H)
        except grpc.RpcError as error:
            sys.exit(f'ERROR:\n  Code: {error.code().name}\n  Message: {error.details()}')


if __name__ == '__main__':
    main()
