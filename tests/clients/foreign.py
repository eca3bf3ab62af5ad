"""What the tests with Python's grpcio share: a trunkd on a store of its own, and messages that are built from
what server reflection tells."""
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PATIENCE = 60  # seconds; a busy machine is no failure


class Reflected:
    """The services of a channel: call(service, method) gives what grpc's stubs give."""

    def __init__(self, channel, version):
        self.channel = channel
        self.pool = descriptor_pool.DescriptorPool()
        self.factory = message_factory.MessageFactory(self.pool)
        self.files = {}
        self.kinds = {}
        self.version = version
        self.ask, self.answer = bootstrap()

    def info(self, requests):
        path = f'/grpc.reflection.{self.version}.ServerReflection/ServerReflectionInfo'
        call = self.channel.stream_stream(path, self.ask.SerializeToString, self.answer.FromString)
        return list(call(iter(requests), timeout=PATIENCE))

    def services(self):
        [answer] = self.info([self.ask(list_services='*')])
        return [s.name for s in answer.list_services_response.service]

    def load(self, symbol):
        [answer] = self.info([self.ask(file_containing_symbol=symbol)])
        assert not answer.HasField('error_response'), answer
        files = [descriptor_pb2.FileDescriptorProto.FromString(data)
                 for data in answer.file_descriptor_response.file_descriptor_proto]
        for file in reversed(files):  # what is imported comes last
            self.add(file, {f.name: f for f in files})

    def add(self, file, others):
        if file.name in self.files:
            return
        for name in file.dependency:
            self.add(others[name], others)
        self.pool.Add(file)
        self.files[file.name] = file
        for service in file.service:
            for method in service.method:
                self.kinds[f'{file.package}.{service.name}', method.name] = method

    def message(self, name):
        return self.factory.GetPrototype(self.pool.FindMessageTypeByName(name))

    def call(self, service, method):
        kind = self.kinds[service, method]
        ask, answer = self.message(kind.input_type[1:]), self.message(kind.output_type[1:])
        make = {(False, False): self.channel.unary_unary, (False, True): self.channel.unary_stream,
                (True, False): self.channel.stream_unary, (True, True): self.channel.stream_stream}
        return make[kind.client_streaming, kind.server_streaming](
            f'/{service}/{method}', ask.SerializeToString, answer.FromString)


def bootstrap():
    """The messages of reflection itself, as far as they are needed, which nobody else can tell."""
    file = descriptor_pb2.FileDescriptorProto(name='bootstrap.proto', package='boot', syntax='proto3')

    def add(name, fields):
        message = file.message_type.add(name=name)
        for number, field, kind, repeated in fields:
            f = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, int):
                f.type = kind
            else:
                f.type, f.type_name = 11, f'.boot.{kind}'

    string, data, int32 = 9, 12, 5
    add('Ask', [(3, 'file_by_filename', string, False), (4, 'file_containing_symbol', string, False),
                (6, 'all_extension_numbers_of_type', string, False), (7, 'list_services', string, False)])
    add('Files', [(1, 'file_descriptor_proto', data, True)])
    add('Service', [(1, 'name', string, False)])
    add('Services', [(1, 'service', 'Service', True)])
    add('Error', [(1, 'error_code', int32, False), (2, 'error_message', string, False)])
    add('Answer', [(4, 'file_descriptor_response', 'Files', False),
                   (6, 'list_services_response', 'Services', False), (7, 'error_response', 'Error', False)])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    return [factory.GetPrototype(pool.FindMessageTypeByName(f'boot.{name}')) for name in ('Ask', 'Answer')]


def png(seed, light, side=40):
    """A square of noise, light or dark."""
    dice = random.Random(seed)
    rows = b''.join(b'\0' + bytes(dice.randrange(90) + 160 * light for _ in range(3 * side)) for _ in range(side))

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) +
            chunk(b'IEND', b''))


def normal_trainer(programs, folder):
    """A trainer, made in `folder`, that is not idle: idle priority would wait for all else on a busy machine."""
    path = f'{folder}/trainer'
    with open(path, 'w') as script:
        script.write(f'#!/bin/sh\nexec "{programs}/trunkd-trainer" --normal-priority "$@"\n')
    os.chmod(path, 0o700)
    return path


class Server:
    """A trunkd on a store of its own: `versions` of them, heads of alice and bob (foreign_store.c). `folder` has the
    programs; "{dir}" in flags is where the store and the certificates are, and where prepare(dir) may put more."""

    def __init__(self, folder, *flags, versions=2, prepare=None):
        self.tmp = tempfile.mkdtemp(prefix='trunkd-foreign-')
        env = dict(os.environ, TMPDIR=self.tmp)
        out = subprocess.run([f'{folder}/foreign_store', str(versions)], env=env, check=True, stdout=subprocess.PIPE,
                             text=True)
        self.facts = dict(line.split('=', 1) for line in out.stdout.splitlines())
        self.dir = self.facts['dir']
        if prepare:
            prepare(self.dir)
        port_file = f'{self.dir}/port'
        with open(f'{self.dir}/log', 'w') as log:
            self.process = subprocess.Popen(
                [f'{folder}/trunkd', '--store', f'{self.dir}/store', '--listen', '127.0.0.1:0', '--port-file',
                 port_file, *(flag.format(dir=self.dir) for flag in flags)], stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not (os.path.exists(port_file) and os.path.getsize(port_file) > 0):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError('trunkd did not start')
            time.sleep(0.02)
        with open(port_file) as f:
            self.address = f'127.0.0.1:{int(f.read())}'

    def read(self, name):
        with open(f'{self.dir}/{name}', 'rb') as f:
            return f.read()

    def stop(self):
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status != 0:
            sys.stderr.write(self.read('log').decode())
        shutil.rmtree(self.tmp, ignore_errors=True)
        return status
