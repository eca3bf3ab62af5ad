#!/usr/bin/env python3
"""trunkd as a foreign client sees it: Python's grpcio with no .proto at hand. Messages are built from what
server reflection tells, so every test here is one of reflection, too.

    foreign_grpcio.py FOLDER      # where trunkd and foreign_store are
"""
import os
import signal
import struct
import sys
import time
import unittest

import grpc
from google.protobuf import descriptor_pb2

sys.dont_write_bytecode = True
from foreign import PATIENCE, Reflected, Server  # noqa: E402

BIN = ''
OIP = 'inference.GRPCInferenceService'
HEALTH = 'grpc.health.v1.Health'
CLASSIFIER = 'trunkd.v1.Classifier'
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Foreign(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BIN)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.r = Reflected(cls.channel, 'v1')
        for service in (OIP, HEALTH, CLASSIFIER):
            cls.r.load(service)
        cls.files = [cls.server.read('picture.png'), cls.server.read('picture.jpg')]
        cls.pixels = [(cls.server.read('picture.png.rgb'), 40, 48), (cls.server.read('picture.jpg.rgb'), 32, 64)]

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        status = cls.server.stop()
        assert status == 0, f'trunkd ended with {status}'

    def auth(self, who='alice'):
        return (('authorization', 'Bearer ' + self.server.facts[who]),)

    def call(self, method, request, service=OIP, who='alice', timeout=PATIENCE):
        ask = self.r.message(self.r.kinds[service, method].input_type[1:])
        metadata = self.auth(who) if who else ()
        return self.r.call(service, method)(ask(**request), timeout=timeout, metadata=metadata)

    def refused(self, code, words, method, request, **more):
        with self.assertRaises(grpc.RpcError) as raised:
            self.call(method, request, **more)
        self.assertEqual(raised.exception.code(), code, raised.exception.details())
        self.assertIn(words, raised.exception.details())

    # -- requests --

    def input(self, datatype, shape, **contents):
        tensor = {'name': 'image', 'datatype': datatype, 'shape': shape}
        if contents:
            tensor['contents'] = contents
        return tensor

    def files_raw(self, files=None):
        files = files or self.files
        raw = b''.join(struct.pack('<I', len(data)) + data for data in files)
        return {'model_name': 'type', 'inputs': [self.input('BYTES', [len(files)])], 'raw_input_contents': [raw]}

    def files_typed(self, files=None):
        files = files or self.files
        return {'model_name': 'type', 'inputs': [self.input('BYTES', [len(files)], bytes_contents=files)]}

    def pixels_raw(self, i):
        data, h, w = self.pixels[i]
        return {'model_name': 'type', 'inputs': [self.input('UINT8', [1, h, w, 3])], 'raw_input_contents': [data]}

    def pixels_typed(self, i):
        data, h, w = self.pixels[i]
        return {'model_name': 'type', 'inputs': [self.input('UINT8', [1, h, w, 3], uint_contents=list(data))]}

    @staticmethod
    def floats(answer, name):
        """The output's rows."""
        [i] = [i for i, t in enumerate(answer.outputs) if t.name == name]
        tensor = answer.outputs[i]
        n, width = tensor.shape
        if answer.raw_output_contents:
            values = struct.unpack(f'<{n * width}f', answer.raw_output_contents[i])
        else:
            values = list(tensor.contents.fp32_contents)
        assert len(values) == n * width
        return [list(values[k * width:(k + 1) * width]) for k in range(n)]

    def classify(self):
        """Each picture's scores by label, by trunkd's own service."""
        answer = self.call('Classify', {'images': self.files, 'heads': ['type'], 'top_k': 99}, CLASSIFIER)
        return [{p.label: p.score for p in image.heads[0].top} for image in answer.images]

    # -- reflection --

    def test_reflection_tells_every_service_and_every_method_is_there(self):
        services = self.r.services()
        for wanted in (OIP, HEALTH, CLASSIFIER, 'trunkd.v1.Admin', 'trunkd.v1.DataSets', 'trunkd.v1.Heads',
                       'trunkd.v1.Jobs', 'grpc.reflection.v1.ServerReflection',
                       'grpc.reflection.v1alpha.ServerReflection'):
            self.assertIn(wanted, services)
        for version in ('v1', 'v1alpha'):
            r = Reflected(self.channel, version)
            self.assertEqual(r.services(), services)
            for service in services:
                r.load(service)
            self.assertEqual({service for service, _ in r.kinds}, set(services))
        for service, method in sorted(r.kinds):  # without a token: refused, or public, but never unknown
            kind = r.kinds[service, method]
            ask = r.message(kind.input_type[1:])()
            call = r.call(service, method)
            try:
                answer = call(iter([ask]) if kind.client_streaming else ask, timeout=PATIENCE)
                if kind.server_streaming:
                    next(answer)
                    answer.cancel()
                self.assertIn(service.split('.')[0], ('grpc', 'inference'), method)
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED, f'{service}/{method}: {error}')

    def test_reflection_answers_several_questions_on_one_stream(self):
        ask = self.r.ask
        answers = self.r.info([ask(file_by_filename='trunkd/v1/jobs.proto'), ask(file_by_filename='no.proto'),
                               ask(all_extension_numbers_of_type='x.Y'),
                               ask(file_containing_symbol='inference.ModelInferRequest.InferInputTensor')])
        names = [[descriptor_pb2.FileDescriptorProto.FromString(f).name
                  for f in a.file_descriptor_response.file_descriptor_proto] for a in answers]
        self.assertEqual(names[0], ['trunkd/v1/jobs.proto', 'trunkd/v1/common.proto'])
        self.assertEqual(answers[1].error_response.error_code, grpc.StatusCode.NOT_FOUND.value[0])
        self.assertEqual(answers[2].error_response.error_code, grpc.StatusCode.UNIMPLEMENTED.value[0])
        self.assertEqual(names[3], ['inference/open_inference_grpc.proto', 'inference/model_config.proto'])

    # -- the Open Inference Protocol --

    def test_server_and_models_describe_themselves(self):
        self.assertTrue(self.call('ServerLive', {}, who=None).live)
        self.assertTrue(self.call('ServerReady', {}, who=None).ready)
        self.assertEqual(self.call('ServerMetadata', {}).name, 'trunkd')
        self.assertTrue(self.call('ModelReady', {'name': 'type'}).ready)
        self.assertFalse(self.call('ModelReady', {'name': 'colour'}).ready)
        meta = self.call('ModelMetadata', {'name': 'type'})
        self.assertEqual((meta.name, list(meta.versions)), ('type', ['1', '2']))
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in meta.inputs], [('image', 'BYTES', [-1])])
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in meta.outputs],
                         [('probabilities', 'FP32', [-1, 5]), ('logits', 'FP32', [-1, 5]),
                          ('features', 'FP32', [-1, 64])])
        config = self.call('ModelConfig', {'name': 'type'}).config
        self.assertEqual(config.parameters['px'].string_value, '32')
        for who, models in (('alice', ['type']), ('bob', ['colour']), ('admin', ['alice/type', 'bob/colour'])):
            index = self.call('RepositoryIndex', {}, who=who)
            self.assertEqual([(m.name, m.version) for m in index.models], [(m, v) for m in models for v in '12'])
            self.assertEqual({m.state for m in index.models if m.version == '2'}, {'READY'})

    def test_bytes_and_pixels_raw_and_typed_answer_as_classify_does(self):
        expected = [[scores[f'type-{k}'] for k in range(5)] for scores in self.classify()]
        for request in (self.files_raw(), self.files_typed()):
            answer = self.call('ModelInfer', dict(request, id='x'))
            self.assertEqual((answer.model_name, answer.model_version, answer.id), ('type', '2', 'x'))
            self.assertEqual(bool(answer.raw_output_contents), 'raw_input_contents' in request)
            self.assertEqual(self.floats(answer, 'probabilities'), expected)
        for i in range(2):
            for request in (self.pixels_raw(i), self.pixels_typed(i)):
                answer = self.call('ModelInfer', dict(request, outputs=[{'name': 'probabilities'}]))
                self.assertEqual(len(answer.outputs), 1)
                self.assertEqual(self.floats(answer, 'probabilities'), [expected[i]])

    def test_planes_are_taken_as_they_are(self):
        zeros = bytes(2 * 3 * 32 * 32 * 4)
        request = {'model_name': 'type', 'inputs': [self.input('FP32', [2, 3, 32, 32])],
                   'raw_input_contents': [zeros]}
        rows = self.floats(self.call('ModelInfer', request), 'logits')
        self.assertEqual(rows[0], rows[1])
        self.assertEqual(len(rows[0]), 5)

    def test_classification_gives_labels(self):
        two = self.r.message('inference.InferParameter')(int64_param=2)
        outputs = [{'name': 'probabilities', 'parameters': {'classification': two}}]
        expected = []
        for scores in self.classify():
            for label, score in sorted(scores.items(), key=lambda item: -item[1])[:2]:
                expected.append(f'{score:f}:{label[-1]}:{label}'.encode())
        typed = self.call('ModelInfer', dict(self.files_typed(), outputs=outputs))
        self.assertEqual((typed.outputs[0].datatype, list(typed.outputs[0].shape)), ('BYTES', [2, 2]))
        self.assertEqual(list(typed.outputs[0].contents.bytes_contents), expected)
        raw = self.call('ModelInfer', dict(self.files_raw(), outputs=outputs))
        self.assertEqual(raw.raw_output_contents[0], b''.join(struct.pack('<I', len(e)) + e for e in expected))

    def test_a_stream_of_requests_is_answered_in_order(self):
        ask = self.r.message('inference.ModelInferRequest')
        requests = [ask(**dict(self.pixels_raw(i % 2), id=str(i))) for i in range(12)]
        requests[5].model_name = 'colour'
        call = self.r.call(OIP, 'ModelStreamInfer')(iter(requests), timeout=PATIENCE, metadata=self.auth())
        answers = list(call)
        self.assertEqual([a.infer_response.id for a in answers], [str(i) for i in range(12)])
        self.assertEqual([i for i, a in enumerate(answers) if a.error_message], [5])
        self.assertEqual(answers[5].error_message, 'you have no model "colour"')

    def test_refusals_name_field_limit_and_value(self):
        bad, lost = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        self.refused(lost, 'you have no model "colour"', 'ModelInfer', dict(self.files_raw(), model_name='colour'))
        self.refused(lost, 'you have no model "colour"', 'ModelMetadata', {'name': 'colour'})
        self.refused(lost, 'you have no model "type" in version "3"', 'ModelInfer',
                     dict(self.files_raw(), model_version='3'))
        many = {'model_name': 'type', 'inputs': [self.input('BYTES', [257])], 'raw_input_contents': [b'']}
        self.refused(bad, 'inputs[0].shape[0] is 257, the limits are 1 and 256', 'ModelInfer', many)
        huge = {'model_name': 'type', 'inputs': [self.input('UINT8', [2, 2**40, 2**40, 3])],
                'raw_input_contents': [b'']}
        self.refused(bad, 'inputs[0].shape[1] is 1099511627776', 'ModelInfer', huge)
        self.refused(bad, 'image 1 of 2 cannot be read', 'ModelInfer', self.files_typed([self.files[0], b'no image']))
        self.refused(grpc.StatusCode.UNAUTHENTICATED, 'no token', 'ModelInfer', self.files_raw(), who=None)

    # -- deadlines and cancellation --

    def assert_still_serving(self):
        """Cancelled images leave a full queue as others ask for their room, so a client heeds the hint for a while."""
        for patience in range(100, 0, -1):
            try:
                return self.call('ModelInfer', self.files_raw())
            except grpc.RpcError as error:
                hint = dict(error.trailing_metadata()).get('grpc-retry-pushback-ms')
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or hint is None or patience == 1:
                    raise
                time.sleep(int(hint) / 1000)

    def test_a_deadline_ends_a_request(self):
        many = self.files_raw(self.files * 128)
        ended = 0
        for timeout in (0.001, 0.005, 0.01):
            try:
                self.call('ModelInfer', many, timeout=timeout)
            except grpc.RpcError as error:
                # The server may not have heard yet that the ones before are over: its queue is full then.
                self.assertIn(error.code(), (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED))
                ended += error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        self.assertGreater(ended, 0)
        self.assert_still_serving()

    def test_cancelled_calls_end(self):
        ask = self.r.message('inference.ModelInferRequest')
        ends = []
        for _ in range(5):
            future = self.r.call(OIP, 'ModelInfer').future(ask(**self.files_raw(self.files * 128)), timeout=PATIENCE,
                                                           metadata=self.auth())
            future.cancel()
            ends.append(future.code())
        # The server may not have heard yet that the ones before are over: its queue is full then.
        self.assertIn(grpc.StatusCode.CANCELLED, ends)
        self.assertLessEqual(set(ends), {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED})
        stream = self.r.call(OIP, 'ModelStreamInfer')(iter([ask(**self.pixels_raw(0))] * 50), metadata=self.auth())
        next(stream)
        stream.cancel()
        self.assertEqual(stream.code(), grpc.StatusCode.CANCELLED)
        self.assert_still_serving()

    # -- health --

    def test_health_of_the_whole_and_of_each_service(self):
        for service in [''] + self.r.services():
            self.assertEqual(self.call('Check', {'service': service}, HEALTH, who=None).status, SERVING, service)
        for service in ('nobody', OIP + '.', 'inference', OIP + '/ModelInfer'):
            self.refused(grpc.StatusCode.NOT_FOUND, 'there is no service', 'Check', {'service': service},
                         service=HEALTH, who=None)

    def test_health_watch_ends_with_the_server(self):
        server = Server(BIN)
        try:
            with grpc.insecure_channel(server.address) as channel:
                r = Reflected(channel, 'v1')
                r.load(HEALTH)
                ask = r.message('grpc.health.v1.HealthCheckRequest')
                watch = r.call(HEALTH, 'Watch')
                known = [watch(ask(service=s), timeout=PATIENCE) for s in ('', OIP)]
                unknown = watch(ask(service='nobody'), timeout=PATIENCE)
                for call in known:
                    self.assertEqual(next(call).status, SERVING)
                self.assertEqual(next(unknown).status, SERVICE_UNKNOWN)
                server.process.send_signal(signal.SIGTERM)
                for call in known:
                    self.assertEqual(next(call).status, NOT_SERVING)
                for call in known + [unknown]:
                    with self.assertRaises(grpc.RpcError) as raised:
                        next(call)
                    self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
        finally:
            self.assertEqual(server.stop(), 0)

    # -- TLS --

    TLS = ['--tls-cert', '{dir}/server.pem', '--tls-key', '{dir}/server.key']

    def type_scores(self, server, ca, client=None, token='alice', options=()):
        """Alice's scores, asked by TLS; `client` names its certificate."""
        own = {}
        if client:
            own = {'private_key': server.read(f'{client}.key'), 'certificate_chain': server.read(f'{client}.pem')}
        credentials = grpc.ssl_channel_credentials(server.read(ca), **own)
        metadata = (('authorization', 'Bearer ' + server.facts[token]),) if token else ()
        port = server.address.rsplit(':', 1)[1]
        ask = self.r.message('inference.ModelInferRequest')(**self.files_raw())
        with grpc.secure_channel(f'localhost:{port}', credentials, options) as channel:
            r = Reflected(channel, 'v1')
            r.load(OIP)
            answer = r.call(OIP, 'ModelInfer')(r.message('inference.ModelInferRequest').FromString(
                ask.SerializeToString()), timeout=PATIENCE, metadata=metadata)
        return self.floats(answer, 'probabilities')

    def tls_refused(self, code, *args, **how):
        with self.assertRaises(grpc.RpcError) as raised:
            self.type_scores(*args, **how)
        self.assertEqual(raised.exception.code(), code, raised.exception.details())

    def test_tls_with_whom_the_client_trusts(self):
        server = Server(BIN, *self.TLS)
        try:
            expected = [[scores[f'type-{k}'] for k in range(5)] for scores in self.classify()]
            self.assertEqual(self.type_scores(server, 'ca.pem'), expected)
            self.tls_refused(grpc.StatusCode.UNAVAILABLE, server, 'other-ca.pem')
            self.tls_refused(grpc.StatusCode.UNAVAILABLE, server, 'ca.pem',
                             options=[('grpc.ssl_target_name_override', 'elsewhere')])
        finally:
            self.assertEqual(server.stop(), 0)

    def test_a_certificate_stands_for_its_tenant_and_only_a_good_one_does(self):
        server = Server(BIN, *self.TLS, '--tls-client-ca', '{dir}/ca.pem')
        try:
            expected = [[scores[f'type-{k}'] for k in range(5)] for scores in self.classify()]
            self.assertEqual(self.type_scores(server, 'ca.pem', 'alice', token=None), expected)
            self.assertEqual(self.type_scores(server, 'ca.pem', 'alice'), expected)
            self.tls_refused(grpc.StatusCode.UNAUTHENTICATED, server, 'ca.pem', 'alice', token='bob')
            for client in (None, 'late', 'stranger'):
                self.tls_refused(grpc.StatusCode.UNAVAILABLE, server, 'ca.pem', client)
        finally:
            self.assertEqual(server.stop(), 0)


if __name__ == '__main__':
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    BIN = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
