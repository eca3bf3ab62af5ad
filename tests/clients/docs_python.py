#!/usr/bin/env python3
"""The pages in docs/ say what the programs do: the examples of client.md are run, Python's, grpcurl's and Node's, and
each language's call every method that there is; operator.md has every flag, metric and status code.

    docs_python.py FOLDER PACKAGES    # where trunkd, trunkd-trainer and foreign_store are; a node_modules (see
                                      # node_packages.sh)
"""
import contextlib
import io
import json
import os
import pathlib
import re
import stat
import struct
import subprocess
import sys
import tempfile
import traceback
import unittest
import urllib.request

import grpc

sys.dont_write_bytecode = True
from foreign import PATIENCE, Reflected, Server, normal_trainer, png  # noqa: E402

BIN, PACKAGES = '', ''
ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENT, OPERATOR = ROOT / 'docs/client.md', ROOT / 'docs/operator.md'


def blocks(page, language):
    """(line, text) of each block of the language."""
    text = page.read_text()
    for found in re.finditer(rf'^```{language}\n(.*?)^```$', text, re.M | re.S):
        yield text[:found.start(1)].count('\n'), found.group(1)


def trunk_of(version):
    """The trunk of a version's file, as a file that can be imported: without heads, under torchvision's names."""
    [size] = struct.unpack('<Q', version[:8])
    header, data = json.loads(version[8:8 + size]), b''
    tensors = {}
    for name, tensor in header.items():
        if name.startswith('trunk.'):
            begin, end = tensor['data_offsets']
            tensors[name[6:]] = dict(tensor, data_offsets=[len(data), len(data) + end - begin])
            data += version[8 + size + begin:8 + size + end]
    text = json.dumps(tensors).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + data


class Page:
    """A server, and a folder with the files that client.md assumes."""

    def __init__(self):
        self.tools = tempfile.TemporaryDirectory(prefix='trunkd-docs-')
        (pathlib.Path(self.tools.name) / 'grpcurl').symlink_to(pathlib.Path(__file__).resolve().parent / 'as_grpcurl.py')
        trainer = normal_trainer(BIN, self.tools.name)
        self.server = Server(BIN, '--http', '127.0.0.1:0', '--trainer', trainer)
        self.folder = pathlib.Path(self.server.dir) / 'work'
        self.folder.mkdir()
        (self.folder / 'proto').symlink_to(ROOT / 'proto')
        (self.folder / 'photo.jpg').write_bytes(self.server.read('picture.jpg'))
        objects = [path.read_bytes() for path in pathlib.Path(self.server.dir, 'store/objects').glob('*/*')]
        version = next(data for data in objects if b'"trunk.conv1.weight"' in data)
        (self.folder / 'resnet20.safetensors').write_bytes(trunk_of(version))
        for who in ('alice', 'admin'):
            (self.folder / f'{who}.token').write_text(self.server.facts[who] + '\n')
        for name, light in (('dark', 0), ('light', 1)):
            (self.folder / 'photos/train' / name).mkdir(parents=True)
            for i in range(20):
                (self.folder / f'photos/train/{name}/{i}.jpg').write_bytes(png(2 * i + light, light))
        self.environment = dict(os.environ, TRUNKD_SERVER=self.server.address)
        self.environment.pop('TRUNKD_TLS_CA', None)

    def metrics(self):
        [port] = re.findall(r'event="http listening".* port=(\d+)', self.server.read('log').decode())
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=PATIENCE) as answer:
            return answer.read().decode()

    def methods(self):
        with grpc.insecure_channel(self.server.address) as channel:
            r = Reflected(channel, 'v1')
            for service in r.services():
                r.load(service)
            return {f'{service}/{method}' for service, method in r.kinds}


class Docs(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.page = Page()

    def tearDown(self):
        status = self.page.server.stop()
        self.page.tools.cleanup()
        self.assertEqual(status, 0)

    def run_shell(self, script):
        env = dict(self.page.environment, PATH=f'{self.page.tools.name}:/usr/bin:/bin:{os.environ["PATH"]}')
        done = subprocess.run(['bash', '-euo', 'pipefail', '-c', script], cwd=self.page.folder, env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10 * PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout[-3000:])
        return done.stdout

    def assert_called(self, but=()):
        """Every method was called, and answered OK."""
        ok = set(re.findall(r'trunkd_rpc_calls_total\{method="([^"]+)",code="OK"\}', self.page.metrics()))
        self.assertEqual(self.page.methods() - ok, set(but))

    # -- client.md --

    def test_the_python_examples_run_and_call_every_method(self):
        [stubs] = [text for _, text in blocks(CLIENT, 'sh') if 'protoc ' in text]
        self.run_shell(stubs)
        script = ''
        for line, text in blocks(CLIENT, 'python'):
            script += '\n' * (line - script.count('\n')) + text
        out, before, where = io.StringIO(), dict(os.environ), os.getcwd()
        os.environ.clear()
        os.environ.update(self.page.environment)
        os.chdir(self.page.folder)
        names = {'__name__': 'client.md'}
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(script, CLIENT, 'exec'), names)  # its lines are the page's
        except Exception:
            self.fail(f'{traceback.format_exc()}\nprinted:\n{out.getvalue()[-2000:]}')
        finally:
            for channel in ('channel', 'patient'):
                if channel in names:
                    names[channel].close()
            os.chdir(where)
            os.environ.clear()
            os.environ.update(before)
        # The trunk cannot be replaced under heads, which the example says; cancelled watches are no OK.
        self.assert_called(['grpc.health.v1.Health/Watch', 'grpc.reflection.v1alpha.ServerReflection/'
                            'ServerReflectionInfo', 'trunkd.v1.Admin/ImportTrunk'])
        calls = set(re.findall(r'method="([^"]+)",code="([A-Z_]+)"', self.page.metrics()))
        self.assertIn(('trunkd.v1.Admin/ImportTrunk', 'FAILED_PRECONDITION'), calls)
        self.assertIn('COMMITTED', out.getvalue())
        self.assertIn('NOT_FOUND you have no head "none" None', out.getvalue())
        self.assertEqual(stat.S_IMODE((self.page.folder / 'carol.token').stat().st_mode), 0o600)

    def test_the_grpcurl_examples_run_and_call_every_method(self):
        out = self.run_shell('\n'.join(text for _, text in blocks(CLIENT, 'sh') if 'protoc ' not in text))
        self.assert_called(['grpc.health.v1.Health/Watch', 'grpc.reflection.v1alpha.ServerReflection/'
                            'ServerReflectionInfo', 'trunkd.v1.Admin/ImportTrunk'])
        self.assertIn('refused: there are heads', out)
        self.assertIn('FAILED_PRECONDITION', out)
        self.assertIn('"state": "COMMITTED"', out)

    def test_the_node_examples_run_and_call_every_method(self):
        script = ''
        for line, text in blocks(CLIENT, 'js'):
            script += '\n' * (line - script.count('\n')) + text  # its lines are the page's
        (self.page.folder / 'client.mjs').write_text(script)
        (self.page.folder / 'node_modules').symlink_to(PACKAGES)
        out = self.run_shell('node client.mjs')
        # As in Python; its client waits for no stream's status after a cancel.
        self.assert_called(['grpc.health.v1.Health/Watch', 'grpc.reflection.v1alpha.ServerReflection/'
                            'ServerReflectionInfo', 'trunkd.v1.Admin/ImportTrunk'])
        self.assertIn('COMMITTED', out)
        self.assertIn('true you have no head "none" []', out)
        self.assertEqual(stat.S_IMODE((self.page.folder / 'carol.token').stat().st_mode), 0o600)

    # -- operator.md --

    def section(self, title):
        return re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', OPERATOR.read_text(), re.M | re.S).group(1)

    def test_operator_has_every_flag_with_its_default(self):
        told = subprocess.run([f'{BIN}/trunkd', '--help'], stdout=subprocess.PIPE, text=True, check=True).stdout
        flags = re.findall(r'^  --(\S+) \S+\n((?:      .*\n)+)', told, re.M)
        rows = dict(re.findall(r'^\| `--([a-z0-9-]+)[^`]*` \| ([^|]*) \|', self.section('Flags'), re.M))
        self.assertEqual(set(rows), {name for name, _ in flags})
        for name, text in flags:
            default = re.search(r'Default: (\S+?)[.,]?(\s|$)', text)
            if default and default.group(1) not in ('plain', 'one', 'none', 'half'):  # these begin sentences
                self.assertIn(default.group(1), rows[name], f'--{name}')

    def test_operator_has_every_metric(self):
        text = self.page.metrics()
        there = set(re.findall(r'^# TYPE (\S+)', text, re.M))
        rows = '\n'.join(re.findall(r'^\| (.*?) \|', self.section('Metrics'), re.M))
        self.assertEqual(set(re.findall(r'`([a-z_]+)`', rows)), there)

    def test_operator_has_every_status_code(self):
        source = (ROOT / 'server/rpc/status.c').read_text()
        codes = set(re.findall(r'GRPC_STATUS_([A-Z_]+);', source))
        self.assertEqual(set(re.findall(r'^\| `([A-Z_]+)`', self.section('Status codes'), re.M)) - codes,
                         {'UNIMPLEMENTED'})
        rows = set(re.findall(r'`([A-Z_]+)`', self.section('Status codes')))
        self.assertEqual(codes - rows, set())


if __name__ == '__main__':
    if len(sys.argv) < 3 or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    BIN, PACKAGES = os.path.abspath(sys.argv.pop(1)), os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
