// The ONNX Runtime side of the engine benchmark: the same line protocol as peer_torch.py, inference in
// fp32 only. Models are <folder>/<arch>-<px>-<batch>.onnx, made by export_onnx.py.
//     node peer_ort.js FOLDER
'use strict';
const readline = require('readline');
const path = require('path');
const ort = require('onnxruntime-node');

const folder = process.argv[2];
const cases = new Map();

async function makeCase(arch, px, batch, threads) {
  const session = await ort.InferenceSession.create(path.join(folder, `${arch}-${px}-${batch}.onnx`), {
    executionProviders: ['cpu'],
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
  });
  const values = Float32Array.from({length: batch * 3 * px * px}, () => Math.random() * 2 - 1);
  const feeds = {[session.inputNames[0]]: new ort.Tensor('float32', values, [batch, 3, px, px])};
  return () => session.run(feeds);
}

// Median milliseconds of the calls that fit into `seconds`, after one that is not counted.
async function measure(call, seconds) {
  await call();
  const times = [];
  const end = performance.now() + seconds * 1e3;
  while (times.length < 3 || performance.now() < end) {
    const start = performance.now();
    await call();
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  return [times[times.length >> 1], times.length];
}

async function answer(line) {
  if (line === 'version') return `ok ${ort.env.versions.node || ort.env.versions.common}`;
  const [kind, arch, px, batch, threads, precision, seconds] = line.trim().split(/\s+/);
  if (kind !== 'infer') return 'error: inference only';
  if (precision !== 'fp32') return 'error: measured in fp32 only';
  const key = `${arch}-${px}-${batch}-${threads}`;
  if (!cases.has(key)) {
    cases.set(key, await makeCase(arch, Number(px), Number(batch), Number(threads)));
    await measure(cases.get(key), 0.5);
  }
  const [ms, calls] = await measure(cases.get(key), Number(seconds));
  return `ok ${ms.toFixed(4)} ${calls}`;
}

(async () => {
  for await (const line of readline.createInterface({input: process.stdin})) {
    try {
      console.log(await answer(line));
    } catch (e) {
      console.log(`error: ${String(e.message).split('\n')[0]}`);
    }
  }
})();
