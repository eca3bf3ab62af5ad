// What the test with @grpc/grpc-js needs: a trunkd on a store of its own, and clients that are made from what server
// reflection tells; only reflection itself comes from proto/.
'use strict';
const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const timers = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PATIENCE = 60000; // milliseconds; a busy machine is no failure
const SHAPE = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const PROTO = path.resolve(__dirname, '../../proto');

const plain = grpc.credentials.createInsecure();

function bearer(token) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set('authorization', `Bearer ${token}`);
  return metadata;
}

// All messages of a stream that answers, until its end; rejects with its error.
async function all(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

// One request, one answer.
function unary(client, method, request, metadata = new grpc.Metadata(), timeout = PATIENCE) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline: Date.now() + timeout },
      (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// The answers of one reflection stream to several questions.
function askReflection(address, version, questions, credentials = plain) {
  const definition = loader.loadSync(`grpc/reflection/${version}/reflection.proto`, { ...SHAPE, includeDirs: [PROTO] });
  const name = `grpc.reflection.${version}.ServerReflection`;
  const Client = grpc.makeGenericClientConstructor(definition[name], name);
  const client = new Client(address, credentials);
  const stream = client.ServerReflectionInfo({ deadline: Date.now() + PATIENCE });
  for (const question of questions) stream.write(question);
  stream.end();
  return all(stream).finally(() => client.close());
}

async function listServices(address, version, credentials) {
  const [answer] = await askReflection(address, version, [{ list_services: '' }], credentials);
  return answer.list_services_response.service.map((service) => service.name);
}

// A FileDescriptorSet of these files: each is field 1, with its length.
function descriptorSet(files) {
  const parts = [];
  for (const file of files) {
    const head = [0x0a];
    let size = file.length;
    for (; size > 127; size >>>= 7) head.push((size & 127) | 128);
    parts.push(Buffer.from([...head, size]), file);
  }
  return Buffer.concat(parts);
}

// Each service's class of clients, by its full name.
async function reflect(address, version = 'v1', credentials = plain) {
  const names = await listServices(address, version, credentials);
  const questions = names.map((name) => ({ file_containing_symbol: name }));
  const files = new Map();
  for (const answer of await askReflection(address, version, questions, credentials)) {
    if (answer.error_response) throw new Error(answer.error_response.error_message);
    for (const file of answer.file_descriptor_response.file_descriptor_proto) files.set(file.toString('latin1'), file);
  }
  const definition = loader.loadFileDescriptorSetFromBuffer(descriptorSet([...files.values()]), SHAPE);
  return new Map(names.map((name) => [name, grpc.makeGenericClientConstructor(definition[name], name)]));
}

// A trunkd: two versions, heads of alice and bob (foreign_store.c). `folder` has the programs; "{dir}" in flags is
// where the store and the certificates are.
class Server {
  static async start(folder, ...flags) {
    const server = new Server();
    server.tmp = fs.mkdtempSync(path.join(os.tmpdir(), 'trunkd-foreign-'));
    const out = execFileSync(path.join(folder, 'foreign_store'), { env: { ...process.env, TMPDIR: server.tmp } });
    server.facts = Object.fromEntries(out.toString().trim().split('\n').map((line) => line.split(/=(.*)/s)));
    server.dir = server.facts.dir;
    const portFile = path.join(server.dir, 'port');
    const log = fs.openSync(path.join(server.dir, 'log'), 'w');
    server.process = spawn(path.join(folder, 'trunkd'),
      ['--store', path.join(server.dir, 'store'), '--listen', '127.0.0.1:0', '--port-file', portFile,
       ...flags.map((flag) => flag.replace('{dir}', server.dir))], { stdio: ['ignore', 'ignore', log] });
    fs.closeSync(log);
    process.once('exit', server.killer = () => server.process.kill('SIGKILL')); // a failed test leaves none behind
    const end = Date.now() + PATIENCE;
    while (!fs.existsSync(portFile) || fs.statSync(portFile).size === 0) {
      if (server.process.exitCode !== null || Date.now() > end)
        throw new Error(`trunkd did not start: ${server.read('log')}`);
      await timers.setTimeout(20);
    }
    server.port = Number(server.read('port').toString());
    server.address = `127.0.0.1:${server.port}`;
    return server;
  }

  read(name) {
    return fs.readFileSync(path.join(this.dir, name));
  }

  terminate() {
    this.process.kill('SIGTERM');
  }

  // Its exit status.
  async stop() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.terminate();
      await once(this.process, 'exit');
    }
    process.removeListener('exit', this.killer);
    if (this.process.exitCode !== 0) process.stderr.write(this.read('log'));
    fs.rmSync(this.tmp, { recursive: true });
    return this.process.exitCode;
  }
}

module.exports = { PATIENCE, Server, all, askReflection, bearer, grpc, listServices, plain, reflect, unary };
