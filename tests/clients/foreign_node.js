// trunkd as a foreign client sees it: Node's @grpc/grpc-js, with no .proto at hand but reflection's own.
//
//     NODE_PATH=build/node/node_modules node tests/clients/foreign_node.js FOLDER    # where trunkd and foreign_store are
'use strict';
const assert = require('node:assert/strict');
const { createHash } = require('node:crypto');
const { after, before, describe, it } = require('node:test');
const timers = require('node:timers/promises');
const { PATIENCE, Server, all, askReflection, bearer, grpc, listServices, plain, reflect, unary } = require('./foreign.js');

const folder = process.argv[2];
const OIP = 'inference.GRPCInferenceService';
const HEALTH = 'grpc.health.v1.Health';
const CLASSIFIER = 'trunkd.v1.Classifier';
const ADMIN = 'trunkd.v1.Admin';
const { status } = grpc;

let server, kinds, opened = [];

// A client of the service; closed at the end.
function client(service, { address = server.address, credentials = plain, options = {} } = {}) {
  const made = new (kinds.get(service))(address, credentials, options);
  opened.push(made);
  return made;
}

function as(who) {
  return bearer(server.facts[who]);
}

function refused(promise, code, words = '') {
  return assert.rejects(promise, (error) => {
    assert.equal(error.code, code, error.message);
    assert.ok(error.details.includes(words), `"${error.details}" does not have "${words}"`);
    return true;
  });
}

// -- requests --

const pictures = [];

function lengthPrefixed(files) {
  return Buffer.concat(files.flatMap((file) => {
    const size = Buffer.alloc(4);
    size.writeUInt32LE(file.length);
    return [size, file];
  }));
}

function filesRaw(times = 1) {
  const files = Array(times).fill(pictures.map((p) => p.file)).flat();
  return { model_name: 'type', inputs: [{ name: 'image', datatype: 'BYTES', shape: [files.length] }],
           raw_input_contents: [lengthPrefixed(files)] };
}

function filesTyped(files = pictures.map((p) => p.file)) {
  return { model_name: 'type', inputs: [{ name: 'image', datatype: 'BYTES', shape: [files.length],
                                          contents: { bytes_contents: files } }] };
}

function pixelsRaw({ pixels, height, width }) {
  return { model_name: 'type', inputs: [{ name: 'image', datatype: 'UINT8', shape: [1, height, width, 3] }],
           raw_input_contents: [pixels] };
}

function pixelsTyped({ pixels, height, width }) {
  return { model_name: 'type', inputs: [{ name: 'image', datatype: 'UINT8', shape: [1, height, width, 3],
                                          contents: { uint_contents: [...pixels] } }] };
}

// The rows of an output.
function floats(answer, name) {
  const i = answer.outputs.findIndex((output) => output.name === name);
  const [rows, width] = answer.outputs[i].shape;
  let values = answer.outputs[i].contents?.fp32_contents;
  if (answer.raw_output_contents.length > 0) {
    const raw = answer.raw_output_contents[i];
    values = Array.from({ length: raw.length / 4 }, (_, k) => raw.readFloatLE(4 * k));
  }
  assert.equal(values.length, rows * width);
  return Array.from({ length: rows }, (_, k) => values.slice(k * width, (k + 1) * width));
}

// Each picture's scores by class, by trunkd's own service.
async function classify(metadata = as('alice'), classifier = client(CLASSIFIER)) {
  const request = { images: pictures.map((p) => p.file), heads: ['type'], top_k: 99 };
  const answer = await unary(classifier, 'Classify', request, metadata);
  return answer.images.map((image) => {
    const scores = [];
    for (const { label, score } of image.heads[0].top) scores[Number(label.replace('type-', ''))] = score;
    return scores;
  });
}

// Cancelled images leave a full queue as others ask for their room, so a client heeds the hint for a while.
async function assertStillServing() {
  for (let patience = 100; ; patience--) {
    try {
      return await unary(client(OIP), 'ModelInfer', filesRaw(), as('alice'));
    } catch (error) {
      const [hint] = error.metadata.get('grpc-retry-pushback-ms');
      if (error.code !== status.RESOURCE_EXHAUSTED || hint === undefined || patience === 0) throw error;
      await timers.setTimeout(Number(hint));
    }
  }
}

// What was left behind is gone: no image waits, and no call is alive but the one that asks.
async function assertIdle() {
  const admin = client(ADMIN);
  const end = Date.now() + PATIENCE;
  for (;;) {
    const { queue, in_flight } = await unary(admin, 'GetStatus', {}, as('admin'));
    if (queue === 0 && in_flight === 1) return;
    assert.ok(Date.now() < end, `${queue} images wait, ${in_flight} calls are alive`);
    await timers.setTimeout(20);
  }
}

before(async () => {
  server = await Server.start(folder);
  kinds = await reflect(server.address);
  pictures.push({ file: server.read('picture.png'), pixels: server.read('picture.png.rgb'), height: 40, width: 48 },
    { file: server.read('picture.jpg'), pixels: server.read('picture.jpg.rgb'), height: 32, width: 64 });
});

after(async () => {
  for (const one of opened) one.close();
  assert.equal(await server.stop(), 0);
});

describe('reflection', () => {
  it('tells every service, in both versions, and every method is there', async () => {
    const services = await listServices(server.address, 'v1');
    assert.deepEqual(await listServices(server.address, 'v1alpha'), services);
    for (const wanted of [OIP, HEALTH, CLASSIFIER, ADMIN, 'trunkd.v1.DataSets', 'trunkd.v1.Heads', 'trunkd.v1.Jobs',
                          'grpc.reflection.v1.ServerReflection', 'grpc.reflection.v1alpha.ServerReflection'])
      assert.ok(services.includes(wanted), wanted);
    const older = await reflect(server.address, 'v1alpha');
    for (const name of services) {
      const methods = Object.keys(kinds.get(name).service);
      assert.ok(methods.length > 0);
      assert.deepEqual(Object.keys(older.get(name).service), methods);
    }
    for (const name of services.filter((service) => service.startsWith('trunkd.'))) {
      for (const [method, { requestStream, responseStream }] of Object.entries(kinds.get(name).service)) {
        if (requestStream || responseStream) continue;
        await refused(unary(client(name), method, {}), status.UNAUTHENTICATED);
      }
    }
  });

  it('answers several questions on one stream', async () => {
    const answers = await askReflection(server.address, 'v1', [{ file_by_filename: 'trunkd/v1/jobs.proto' },
      { file_by_filename: 'no.proto' }, { all_extension_numbers_of_type: 'x.Y' },
      { file_containing_symbol: 'inference.ModelInferRequest.InferInputTensor' }]);
    assert.deepEqual(answers.map((a) => a.file_descriptor_response?.file_descriptor_proto.length),
      [2, undefined, undefined, 2]);
    assert.equal(answers[1].error_response.error_code, status.NOT_FOUND);
    assert.equal(answers[2].error_response.error_code, status.UNIMPLEMENTED);
  });
});

describe('the Open Inference Protocol', () => {
  // From descriptors proto-loader makes maps lists of key and value, which is how they travel.
  it('describes server and models', async () => {
    const oip = client(OIP), alice = as('alice');
    assert.equal((await unary(oip, 'ServerLive', {})).live, true);
    assert.equal((await unary(oip, 'ServerReady', {})).ready, true);
    assert.equal((await unary(oip, 'ServerMetadata', {}, alice)).name, 'trunkd');
    assert.equal((await unary(oip, 'ModelReady', { name: 'type' }, alice)).ready, true);
    assert.equal((await unary(oip, 'ModelReady', { name: 'colour' }, alice)).ready, false);
    const meta = await unary(oip, 'ModelMetadata', { name: 'type' }, alice);
    assert.deepEqual([meta.name, meta.versions], ['type', ['1', '2']]);
    assert.deepEqual(meta.inputs, [{ name: 'image', datatype: 'BYTES', shape: [-1] }]);
    assert.deepEqual(meta.outputs, [{ name: 'probabilities', datatype: 'FP32', shape: [-1, 5] },
      { name: 'logits', datatype: 'FP32', shape: [-1, 5] }, { name: 'features', datatype: 'FP32', shape: [-1, 64] }]);
    const { config } = await unary(oip, 'ModelConfig', { name: 'type' }, alice);
    assert.equal(config.parameters.find(({ key }) => key === 'px').value.string_value, '32');
    for (const [who, models] of [['alice', ['type']], ['bob', ['colour']], ['admin', ['alice/type', 'bob/colour']]]) {
      const index = await unary(oip, 'RepositoryIndex', {}, as(who));
      assert.deepEqual(index.models.map((m) => [m.name, m.version]), models.flatMap((m) => [[m, '1'], [m, '2']]));
      assert.ok(index.models.every((m) => m.version !== '2' || m.state === 'READY'));
    }
  });

  it('takes files and pixels, raw and typed, and answers as Classify does', async () => {
    const oip = client(OIP), alice = as('alice');
    const expected = await classify();
    for (const request of [filesRaw(), filesTyped()]) {
      const answer = await unary(oip, 'ModelInfer', { ...request, id: 'x' }, alice);
      assert.deepEqual([answer.model_name, answer.model_version, answer.id], ['type', '2', 'x']);
      assert.equal(answer.raw_output_contents.length > 0, 'raw_input_contents' in request);
      assert.deepEqual(floats(answer, 'probabilities'), expected);
    }
    for (const [i, picture] of pictures.entries()) {
      for (const request of [pixelsRaw(picture), pixelsTyped(picture)]) {
        const answer = await unary(oip, 'ModelInfer', { ...request, outputs: [{ name: 'probabilities' }] }, alice);
        assert.equal(answer.outputs.length, 1);
        assert.deepEqual(floats(answer, 'probabilities'), [expected[i]]);
      }
    }
  });

  it('gives labels for Triton\'s parameter "classification"', async () => {
    const outputs = [{ name: 'probabilities', parameters: [{ key: 'classification', value: { int64_param: 2 } }] }];
    const answer = await unary(client(OIP), 'ModelInfer', { ...filesTyped(), outputs }, as('alice'));
    const best = (await classify()).flatMap((scores) =>
      [...scores.entries()].sort((a, b) => b[1] - a[1]).slice(0, 2).map(([k, p]) => `${p.toFixed(6)}:${k}:type-${k}`));
    assert.deepEqual(answer.outputs[0].contents.bytes_contents.map(String), best);
    assert.deepEqual(answer.outputs[0].shape, [2, 2]);
  });

  it('answers a stream in order, and an error does not end it', async () => {
    const stream = client(OIP).ModelStreamInfer(as('alice'), { deadline: Date.now() + PATIENCE });
    for (let i = 0; i < 200; i++) {
      const request = { ...pixelsRaw(pictures[i % 2]), id: String(i) };
      stream.write(i === 5 ? { ...request, model_name: 'colour' } : request);
    }
    stream.end();
    const answers = await all(stream);
    assert.deepEqual(answers.map((a) => a.infer_response.id), Array.from({ length: 200 }, (_, i) => String(i)));
    assert.deepEqual(answers.flatMap((a, i) => (a.error_message ? [i] : [])), [5]);
    assert.equal(answers[5].error_message, 'you have no model "colour"');
    const expected = await classify();
    for (const [i, a] of answers.entries())
      if (i !== 5) assert.deepEqual(floats(a.infer_response, 'probabilities'), [expected[i % 2]]);
  });

  it('refuses with field, limit and value', async () => {
    const infer = (request, who = as('alice')) => unary(client(OIP), 'ModelInfer', request, who);
    const image = (datatype, shape) => ({ model_name: 'type', raw_input_contents: [Buffer.alloc(0)],
                                          inputs: [{ name: 'image', datatype, shape }] });
    await refused(infer({ ...filesRaw(), model_name: 'colour' }), status.NOT_FOUND, 'you have no model "colour"');
    await refused(infer(image('BYTES', [257])), status.INVALID_ARGUMENT, 'shape[0] is 257, the limits are 1 and 256');
    await refused(infer(image('UINT8', [2, 2 ** 40, 2 ** 40, 3])), status.INVALID_ARGUMENT, 'shape[1] is 1099511627776');
    await refused(infer(filesTyped([pictures[0].file, Buffer.from('no image')])), status.INVALID_ARGUMENT,
      'image 1 of 2 cannot be read');
    await refused(infer(filesRaw(), bearer()), status.UNAUTHENTICATED, 'no token');
    const gzip = { 'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip };
    await refused(unary(client(OIP, { options: gzip }), 'ModelInfer', filesRaw(), as('alice')), status.UNIMPLEMENTED);
  });
});

describe('deadlines and cancellation', () => {
  it('a deadline ends a request', async () => {
    let ended = 0;
    for (const timeout of [1, 5, 10]) {
      await unary(client(OIP), 'ModelInfer', filesRaw(128), as('alice'), timeout).catch((error) => {
        // The server may not have heard yet that the ones before are over: its queue is full then.
        assert.ok([status.DEADLINE_EXCEEDED, status.RESOURCE_EXHAUSTED].includes(error.code), error.message);
        ended += error.code === status.DEADLINE_EXCEEDED;
      });
    }
    assert.ok(ended > 0);
    await assertStillServing();
    await assertIdle();
  });

  it('cancelled calls end, here and in the server', async () => {
    const oip = client(OIP), codes = new Set();
    for (let i = 0; i < 5; i++) {
      const done = new Promise((resolve) => {
        const call = oip.ModelInfer(filesRaw(128), as('alice'), { deadline: Date.now() + PATIENCE }, resolve);
        setTimeout(() => call.cancel(), 2 * i);
      });
      codes.add((await done)?.code);
    }
    codes.delete(status.RESOURCE_EXHAUSTED); // the server has not heard of the ones before yet
    assert.deepEqual([...codes], [status.CANCELLED]);
    const stream = oip.ModelStreamInfer(as('alice'));
    for (let i = 0; i < 50; i++) stream.write(pixelsRaw(pictures[0]));
    stream.once('data', () => stream.cancel());
    await refused(all(stream), status.CANCELLED);
    await assertStillServing();
    await assertIdle();
  });
});

describe('streams', () => {
  it('an upload is counted, one that is cancelled leaves nothing', async () => {
    const dataSets = client('trunkd.v1.DataSets');
    const upload = (expected, finish) => new Promise((resolve, reject) => {
      const stream = dataSets.Upload(as('alice'), { deadline: Date.now() + PATIENCE },
        (error, answer) => (error ? reject(error) : resolve(answer)));
      stream.write({ manifest: { name: 'some', expected_images: expected } });
      for (let i = 0; i < 20; i++) {
        const { file } = pictures[i % 2];
        const data = i === 7 ? file.subarray(99) : file;
        stream.write({ images: { images: [{ label: `l-${i % 2}`, file: `f-${i}`, data }] } });
      }
      finish(stream);
    });
    // Node's HTTP/2 cancels with an ordinary end of the stream and a reset right behind it, and only the count tells the
    // one from the other for sure.
    for (let i = 0; i < 8; i++)
      await refused(upload(1000, (stream) => setTimeout(() => stream.cancel(), 30)), status.CANCELLED);
    await assertIdle();
    const { data_set, skipped, bad } = await upload(0, (stream) => stream.end());
    assert.deepEqual([data_set.images, skipped, bad[0].file], [19, 1, 'f-7']);
    const { data_sets } = await unary(dataSets, 'List', {}, as('alice'));
    assert.deepEqual(data_sets.map((set) => set.id), [data_set.id]);
  });

  it('an exported version is the file that its hash says', async () => {
    const admin = client(ADMIN);
    const hash = createHash('sha256');
    for (const part of await all(admin.ExportVersion({ version: 1 }, as('admin')))) hash.update(part.data);
    const { versions } = await unary(admin, 'ListVersions', {}, as('admin'));
    assert.equal(hash.digest('hex'), versions.find((version) => version.number === 1).sha256);
  });
});

describe('health', () => {
  it('is known of the whole and of each service', async () => {
    const health = client(HEALTH);
    for (const service of ['', ...kinds.keys()])
      assert.equal((await unary(health, 'Check', { service })).status, 'SERVING', service);
    for (const service of ['nobody', `${OIP}.`, 'inference', `${OIP}/ModelInfer`])
      await refused(unary(health, 'Check', { service }), status.NOT_FOUND, 'there is no service');
  });

  it('a watch ends with the server', async () => {
    const other = await Server.start(folder);
    const health = client(HEALTH, { address: other.address });
    const watch = (service) => {
      const seen = [];
      const call = health.Watch({ service }, { deadline: Date.now() + PATIENCE });
      const first = new Promise((resolve) => call.once('data', resolve));
      call.on('data', (change) => seen.push(change.status));
      const end = new Promise((resolve) => call.on('error', resolve));
      return { first, end, seen };
    };
    const known = ['', OIP].map(watch), unknown = watch('nobody');
    await Promise.all([...known, unknown].map((one) => one.first));
    other.terminate();
    for (const one of [...known, unknown]) assert.equal((await one.end).code, status.UNAVAILABLE);
    for (const one of known) assert.deepEqual(one.seen, ['SERVING', 'NOT_SERVING']);
    assert.equal(unknown.seen[0], 'SERVICE_UNKNOWN');
    assert.equal(await other.stop(), 0);
  });
});

describe('TLS', () => {
  const own = ['--tls-cert', '{dir}/server.pem', '--tls-key', '{dir}/server.key'];
  const secure = (s, who) => grpc.credentials.createSsl(s.read('ca.pem'), who ? s.read(`${who}.key`) : null,
    who ? s.read(`${who}.pem`) : null);

  it('is spoken with whom the client trusts', async () => {
    const s = await Server.start(folder, ...own);
    const classifier = (credentials, options) => client(CLASSIFIER, { address: `localhost:${s.port}`, credentials, options });
    const alice = bearer(s.facts.alice);
    assert.deepEqual(await classify(alice, classifier(secure(s))), await classify());
    assert.ok((await listServices(`localhost:${s.port}`, 'v1', secure(s))).includes(OIP));
    await refused(classify(alice, classifier(grpc.credentials.createSsl(s.read('other-ca.pem')))), status.UNAVAILABLE);
    const misnamed = classifier(secure(s), { 'grpc.ssl_target_name_override': 'elsewhere' });
    await refused(classify(alice, misnamed), status.UNAVAILABLE);
    await refused(classify(alice, classifier(plain)), status.UNAVAILABLE);
    assert.equal(await s.stop(), 0);
  });

  it('a certificate stands for its tenant, and only a good one does', async () => {
    const s = await Server.start(folder, ...own, '--tls-client-ca', '{dir}/ca.pem');
    const classifier = (who) => client(CLASSIFIER, { address: `localhost:${s.port}`, credentials: secure(s, who) });
    assert.deepEqual(await classify(bearer(), classifier('alice')), await classify());
    assert.deepEqual(await classify(bearer(s.facts.alice), classifier('alice')), await classify());
    await refused(classify(bearer(s.facts.bob), classifier('alice')), status.UNAUTHENTICATED);
    for (const who of [undefined, 'late', 'stranger'])
      await refused(classify(bearer(s.facts.alice), classifier(who)), status.UNAVAILABLE);
    assert.equal(await s.stop(), 0);
  });
});
