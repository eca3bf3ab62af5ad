// The peer of tests/bench/serving.sh: ONNX Runtime behind a gRPC server as a team would write it, doing trunkd's work for
// trunkd's own Classify: JPEG in (sharp, on libuv's threads), resized, cropped, normalised, batched with what is ready,
// through the model of the caller's token (a thread of its own), softmax, the best label out.
//
//     peer_serving.js MODEL.onnx PX MODELS THREADS BATCH TOKENS PORT-FILE
//
// MODELS sessions of the same file, which share nothing; the token in line k of TOKENS gets session k modulo MODELS.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');

// -- the thread that computes --

function best(logits, offset, classes) {
  let top = 0, sum = 0;
  for (let k = 1; k < classes; k++) if (logits[offset + k] > logits[offset + top]) top = k;
  for (let k = 0; k < classes; k++) sum += Math.exp(logits[offset + k] - logits[offset + top]);
  return { label: `class-${top}`, score: 1 / sum };
}

async function compute({ model, px, models, threads }) {
  const ort = require('onnxruntime-node');
  const sessions = [];
  for (let i = 0; i < models; i++)
    sessions.push(await ort.InferenceSession.create(model, { executionProviders: ['cpu'], graphOptimizationLevel: 'all',
      executionMode: 'sequential', intraOpNumThreads: threads, interOpNumThreads: 1 }));
  parentPort.on('message', async ({ session: k, images }) => {
    const plane = 3 * px * px, session = sessions[k];
    const values = new Float32Array(images.length * plane);
    images.forEach((image, i) => values.set(image, i * plane));
    const feeds = { [session.inputNames[0]]: new ort.Tensor('float32', values, [images.length, 3, px, px]) };
    const { data, dims } = (await session.run(feeds))[session.outputNames[0]];
    parentPort.postMessage(images.map((_, i) => best(data, i * dims[1], dims[1])));
  });
  parentPort.postMessage('ready');
}

// -- the thread that serves --

const MEAN = [0.485, 0.456, 0.406], DEVIATION = [0.229, 0.224, 0.225];

function decoder(px) {
  const sharp = require('sharp');
  sharp.concurrency(1);
  sharp.cache(false);
  const side = Math.round(px * 8 / 7);
  return async (file) => {
    const { data, info } = await sharp(file).resize(side, side, { fit: 'outside' }).removeAlpha().raw()
      .toBuffer({ resolveWithObject: true });
    const left = (info.width - px) >> 1, top = (info.height - px) >> 1;
    const planes = new Float32Array(3 * px * px);
    for (let c = 0; c < 3; c++)
      for (let y = 0, at = c * px * px; y < px; y++)
        for (let x = 0, p = ((top + y) * info.width + left) * 3 + c; x < px; x++, p += 3)
          planes[at++] = (data[p] / 255 - MEAN[c]) / DEVIATION[c];
    return planes;
  };
}

// Images that wait, by session; a pass of what is ready starts when the one before has ended.
class Batcher {
  constructor(worker, sessions, batch) {
    this.worker = worker;
    this.batch = batch;
    this.waiting = Array.from({ length: sessions }, () => []);
    this.turn = 0;
    this.running = null;
    worker.on('message', (answers) => {
      this.running.forEach(({ resolve }, i) => resolve(answers[i]));
      this.running = null;
      this.next();
    });
  }

  ask(session, planes) {
    return new Promise((resolve) => {
      this.waiting[session].push({ planes, resolve });
      this.next();
    });
  }

  next() {
    if (this.running) return;
    for (let i = 0; i < this.waiting.length; i++) {
      const session = (this.turn + i) % this.waiting.length;
      if (this.waiting[session].length === 0) continue;
      this.turn = session + 1;
      this.running = this.waiting[session].splice(0, this.batch);
      const images = this.running.map(({ planes }) => planes);
      this.worker.postMessage({ session, images }, images.map((image) => image.buffer));
      return;
    }
  }
}

function serve(worker, { px, models, batch, tokens, portFile }) {
  const grpc = require('@grpc/grpc-js');
  const loader = require('@grpc/proto-loader');
  const definition = loader.loadSync('trunkd/v1/classifier.proto',
    { keepCase: true, includeDirs: [path.resolve(__dirname, '../../proto')] });
  const { Classifier } = grpc.loadPackageDefinition(definition).trunkd.v1;
  const sessionOf = new Map(fs.readFileSync(tokens, 'utf8').trim().split('\n').map((token, k) => [token.trim(), k % models]));
  const decode = decoder(px), batcher = new Batcher(worker, models, batch);

  async function classify(call, callback) {
    try {
      const session = sessionOf.get(String(call.metadata.get('authorization')[0]).replace('Bearer ', ''));
      if (session === undefined) return callback({ code: grpc.status.UNAUTHENTICATED });
      const top = await Promise.all(call.request.images.map(async (file) => batcher.ask(session, await decode(file))));
      callback(null, { version: 1, images: top.map((one) => ({ heads: [{ head: 'type', top: [one] }] })) });
    } catch (error) {
      callback({ code: grpc.status.INVALID_ARGUMENT, details: error.message });
    }
  }

  const server = new grpc.Server();
  server.addService(Classifier.service, { Classify: classify });
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    fs.writeFileSync(`${portFile}.new`, `${port}\n`);
    fs.renameSync(`${portFile}.new`, portFile);
  });
}

function main() {
  const [model, px, models, threads, batch, tokens, portFile] = process.argv.slice(2);
  const settings = { model, px: Number(px), models: Number(models), threads: Number(threads), batch: Number(batch), tokens,
                     portFile };
  const worker = new Worker(__filename, { workerData: settings });
  worker.on('error', (error) => { throw error; });
  worker.once('message', () => serve(worker, settings));
}

if (isMainThread) main();
else compute(workerData);
