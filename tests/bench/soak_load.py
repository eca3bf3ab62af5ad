"""The clients of tests/bench/soak.sh: good, hasty, slow and broken ones, those that train and those that roll back,
each in a thread; and what is known of the right answers."""
import collections
import random
import socket
import struct
import sys
import threading
import time
import traceback

import grpc

from foreign import PATIENCE, Reflected, png

OIP, HEALTH = 'inference.GRPCInferenceService', 'grpc.health.v1.Health'
CLASSIFIER, DATA_SETS, JOBS = 'trunkd.v1.Classifier', 'trunkd.v1.DataSets', 'trunkd.v1.Jobs'
HEADS, ADMIN = 'trunkd.v1.Heads', 'trunkd.v1.Admin'
LIMITED = 'RESOURCE_EXHAUSTED'  # fine only with a hint when to try again
HEAD = {'alice': 'type', 'bob': 'colour'}


class Truth:
    """What each version answers. The first answer to (version, head, picture) is kept, every other one must have the
    same bits; and a version that a rollback made must answer as the one that it equals."""

    def __init__(self):
        self.lock = threading.Lock()
        self.answers, self.equals = {}, {}
        self.compared, self.wrong = 0, []
        self.seen = set()  # versions that answered

    def origin(self, version):
        return self.equals.get(version, version)

    def compare(self, key, scores):
        self.compared += 1
        known = self.answers.setdefault(key, scores)
        if known != scores:
            self.wrong.append(f'version {key[0]}, {key[1]}, picture {key[2]}: {scores}, but before {known}')

    def check(self, version, head, picture, scores):
        with self.lock:
            self.seen.add(version)
            self.compare((self.origin(version), head, picture), scores)

    def is_equal(self, version, of):
        """A rollback to `of` made `version`; answers of it may have been seen before this is known."""
        with self.lock:
            of = self.origin(of)
            early = [key for key in self.answers if key[0] == version]
            self.equals[version] = of
            for key in early:
                self.compare((of, *key[1:]), self.answers.pop(key))

    def origins(self):
        with self.lock:
            return sorted({key[0] for key in self.answers})


class Relay:
    """Between a client and the server until `limit` bytes went there; then both lose the connection at once."""

    def __init__(self, address, limit):
        self.to, self.left = address.rsplit(':', 1), limit
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = '127.0.0.1:%d' % self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        client, _ = self.listener.accept()
        self.listener.close()
        server = socket.create_connection((self.to[0], int(self.to[1])))
        for end in (client, server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # close() resets
        back = threading.Thread(target=self.pump_back, args=(server, client), daemon=True)
        back.start()
        while self.left > 0 and (data := client.recv(min(self.left, 65536))):
            server.sendall(data)
            self.left -= len(data)
        for end in (client, server):
            end.shutdown(socket.SHUT_RD)  # wakes the other thread
        back.join()
        client.close()
        server.close()

    @staticmethod
    def pump_back(server, client):
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass  # the other thread has ended it


class Load:
    """The clients of one server, and what they met."""

    def __init__(self, server, patience=1):
        self.server, self.patience = server, patience
        self.stop = threading.Event()
        self.truth = Truth()
        self.lock = threading.Lock()
        self.ends = collections.Counter()  # (client, how a round ended)
        self.unexpected = []
        self.threads = []
        self.channel = grpc.insecure_channel(server.address)
        self.r = Reflected(self.channel, 'v1')
        for service in (OIP, HEALTH, CLASSIFIER, DATA_SETS, JOBS, HEADS, ADMIN):
            self.r.load(service)
        self.pictures = [png(1000 + i, i % 2, 24 + 4 * i) for i in range(8)] + [
            server.read('picture.png'), server.read('picture.jpg')]
        self.tokens = dict(server.facts)

    # -- calls --

    def make(self, name, **fields):
        return self.r.message(name)(**fields)

    def asker(self, service, method, channel=None):
        if channel is None:
            return self.r.call(service, method)
        kind = self.r.kinds[service, method]
        ask, answer = self.r.message(kind.input_type[1:]), self.r.message(kind.output_type[1:])
        make = channel.stream_unary if kind.client_streaming else channel.unary_unary
        return make(f'/{service}/{method}', ask.SerializeToString, answer.FromString)

    def auth(self, who):
        return (('authorization', 'Bearer ' + self.tokens[who]),) if who else ()

    def call(self, who, service, method, timeout=None, channel=None, **fields):
        ask = self.r.message(self.r.kinds[service, method].input_type[1:])
        return self.asker(service, method, channel)(ask(**fields), timeout=timeout or PATIENCE * self.patience,
                                                    metadata=self.auth(who))

    def stream(self, who, service, method, requests, **how):
        return self.asker(service, method, how.pop('channel', None))(
            iter(requests), timeout=PATIENCE * self.patience, metadata=self.auth(who), **how)

    # -- right answers --

    def classify(self, who, picked, head=None, channel=None):
        """Asks, and checks the answers against what the version is known to say."""
        head = head or HEAD[who]
        answer = self.call(who, CLASSIFIER, 'Classify', channel=channel, images=[self.pictures[i] for i in picked],
                           heads=[head], top_k=99)
        assert len(answer.images) == len(picked), 'an answer for each image'
        for i, image in zip(picked, answer.images):
            top = sorted((p.label, p.score) for p in image.heads[0].top)
            self.truth.check(answer.version, f'{who}/{head}', i, tuple(score for _, score in top))
        return answer.version

    def infer_request(self, who, picked, **more):
        raw = b''.join(struct.pack('<I', len(self.pictures[i])) + self.pictures[i] for i in picked)
        image = {'name': 'image', 'datatype': 'BYTES', 'shape': [len(picked)]}
        return dict(model_name=HEAD[who], inputs=[image], outputs=[{'name': 'probabilities'}],
                    raw_input_contents=[raw], **more)

    def check_infer(self, who, picked, answer):
        rows, width = answer.outputs[0].shape
        assert rows == len(picked), 'a row for each image'
        values = struct.unpack(f'<{rows * width}f', answer.raw_output_contents[0])
        for k, i in enumerate(picked):
            self.truth.check(int(answer.model_version), f'{who}/{HEAD[who]}', i, values[k * width:(k + 1) * width])

    # -- threads --

    def fail(self, who, text):
        with self.lock:
            self.unexpected.append(f'{who}: {text}')

    def round(self, name, once, dice, expected):
        """How it ended; seconds to wait before the next."""
        try:
            once(self, dice)
            return 'OK', 0
        except grpc.RpcError as error:
            code = error.code().name
            hint = dict(error.trailing_metadata() or ()).get('grpc-retry-pushback-ms')
            if code not in expected or (code == LIMITED and hint is None):
                self.fail(name, f'{code}: {error.details()}')
            return code, int(hint) / 1000 if hint else 0
        except Exception:
            self.fail(name, traceback.format_exc())
            return 'broken', 1

    def start(self, name, once, expected=(), pause=0.02, seed=0):
        def run():
            dice = random.Random(f'{name} {seed}')
            while not self.stop.is_set():
                end, wait = self.round(name, once, dice, expected)
                with self.lock:
                    self.ends[name, end] += 1
                self.stop.wait(wait + dice.random() * pause)

        thread = threading.Thread(target=run, name=name)
        thread.start()
        self.threads.append(thread)

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(2 * PATIENCE * self.patience)
            if thread.is_alive():
                frame = sys._current_frames()[thread.ident]
                self.fail(thread.name, 'hangs\n' + ''.join(traceback.format_stack(frame)))

    def close(self):
        self.channel.close()


# -- good clients --

def some(dice, load, n=6):
    return [dice.randrange(len(load.pictures)) for _ in range(dice.randint(1, n))]


def classifies(who):
    return lambda load, dice: load.classify(who, some(dice, load))


def infers(who):
    def once(load, dice):
        picked = some(dice, load)
        load.check_infer(who, picked, load.call(who, OIP, 'ModelInfer', **load.infer_request(who, picked)))
    return once


def streams(who):
    def once(load, dice):
        asked = [some(dice, load, 3) for _ in range(dice.randint(5, 20))]
        requests = [load.make('inference.ModelInferRequest', **load.infer_request(who, picked, id=str(i)))
                    for i, picked in enumerate(asked)]
        answers = list(load.stream(who, OIP, 'ModelStreamInfer', requests))
        for i, (picked, answer) in enumerate(zip(asked, answers, strict=True)):
            assert not answer.error_message and answer.infer_response.id == str(i), str(answer)[:300]
            load.check_infer(who, picked, answer.infer_response)
    return once


def reconnects(load, dice):
    """A connection of its own for one call."""
    options = [('grpc.use_local_subchannel_pool', 1)]
    with grpc.insecure_channel(load.server.address, options) as channel:
        load.classify('alice', some(dice, load), channel=channel)


def watches(load, dice):
    """Health.Watch for a while."""
    watch = load.asker(HEALTH, 'Watch')(load.make('grpc.health.v1.HealthCheckRequest'), timeout=PATIENCE)
    assert next(watch).status == 1, 'SERVING'
    load.stop.wait(dice.random())
    watch.cancel()


# -- careless and hostile ones --

def sends_bad_images(load, dice):
    """One of two cannot be read; then none."""
    good, cut = load.pictures[dice.randrange(10)], load.pictures[dice.randrange(8)][:-dice.randint(20, 400)]
    answer = load.call('bob', CLASSIFIER, 'Classify', images=[good, cut], heads=['colour'])
    assert answer.images[0].heads and answer.images[1].error and not answer.images[1].heads, str(answer)[:300]
    load.call('bob', CLASSIFIER, 'Classify', images=[cut, b''], heads=['colour'])


def cancels(load, dice):
    picked = [dice.randrange(10) for _ in range(64)]
    ask = load.make('inference.ModelInferRequest', **load.infer_request('bob', picked))
    future = load.asker(OIP, 'ModelInfer').future(ask, timeout=PATIENCE, metadata=load.auth('bob'))
    time.sleep(dice.random() * 0.03)
    future.cancel()
    if not future.cancelled():
        load.check_infer('bob', picked, future.result())


def is_late(load, dice):
    picked = [dice.randrange(10) for _ in range(48)]
    load.check_infer('bob', picked, load.call('bob', OIP, 'ModelInfer', timeout=0.001 + 0.02 * dice.random(),
                                              **load.infer_request('bob', picked)))


def reads_slowly(load, dice):
    """A stream whose answers are taken one in a while, until it is cancelled."""
    requests = [load.make('inference.ModelInferRequest', **load.infer_request('bob', some(dice, load, 2)))] * 40
    call = load.stream('bob', OIP, 'ModelStreamInfer', requests)
    for _ in range(dice.randint(1, 20)):
        next(call)
        load.stop.wait(0.1)
    call.cancel()


def images(load, n, seed, pause=0.0):
    """The messages of an upload."""
    yield load.make('trunkd.v1.UploadRequest', manifest={'name': 'soak', 'bad_images': 0})
    for i in range(n):
        image = {'label': ('dark', 'light')[i % 2], 'file': f'{i}.png', 'data': png(seed + i, i % 2)}
        yield load.make('trunkd.v1.UploadRequest', images={'images': [image]})
        if pause:
            load.stop.wait(pause)


def uploads_slowly(load, dice):
    answer = load.stream('bob', DATA_SETS, 'Upload', images(load, 10, 1, 0.2))
    assert (answer.data_set.images, answer.skipped) == (10, 0), str(answer)[:300]
    load.call('bob', DATA_SETS, 'Delete', id=answer.data_set.id)


def vanishes(load, dice):
    """In the middle of an upload, without a word."""
    relay = Relay(load.server.address, dice.randint(5000, 150000))
    with grpc.insecure_channel(relay.address, [('grpc.use_local_subchannel_pool', 1)]) as channel:
        load.stream('bob', DATA_SETS, 'Upload', images(load, 60, 1), channel=channel)


# -- those who change what is served --

def learns(load, dice):
    """Carol: a data set, a job, its head, and away with all of it; one job in four is cancelled."""
    data = load.stream('carol', DATA_SETS, 'Upload', images(load, 40, dice.randrange(10**6))).data_set.id
    wish = {'head': 'shade', 'data_set': data, 'set': [{'name': 'epochs', 'value': 1}], 'seed': dice.randint(1, 10**6)}
    job = load.call('carol', JOBS, 'Submit', **wish).id
    if dice.randrange(4) == 0:
        load.stop.wait(dice.random() * 2)
        try:
            load.call('carol', JOBS, 'Cancel', id=job)
        except grpc.RpcError as error:  # it may have ended
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    *_, last = load.asker(JOBS, 'Watch')(load.make('trunkd.v1.WatchJobRequest', id=job),
                                        timeout=10 * PATIENCE * load.patience, metadata=load.auth('carol'))
    states = load.r.pool.FindEnumTypeByName('trunkd.v1.JobState').values_by_number
    state = states[last.job.state].name
    assert state in ('COMMITTED', 'REJECTED', 'CANCELLED'), f'job {job} is {state}: {last.job.reason}'
    with load.lock:
        load.ends['carol: jobs', state] += 1
    try:
        load.classify('carol', some(dice, load), 'shade')
        load.call('carol', HEADS, 'Delete', name='shade')
    except grpc.RpcError as error:  # a rollback, or no commit: there is no such head
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            raise
    load.call('carol', DATA_SETS, 'Delete', id=data)


def asks_what_comes_and_goes(load, dice):
    load.classify('carol', some(dice, load), 'shade')


def rolls_back(load, to):
    """The new version's number; None where `to` is current."""
    try:
        number = load.call('admin', ADMIN, 'Rollback', version=to).number
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return None
    load.truth.is_equal(number, to)
    return number


def swaps(load, dice):
    """To a version made before, by a job or by hand."""
    rolls_back(load, dice.choice(load.truth.origins()))
    load.stop.wait(load.patience * dice.uniform(2, 8))


def looks(load, dice):
    """What an operator's tools ask for."""
    load.call('admin', ADMIN, 'GetStatus')
    load.call('admin', ADMIN, 'ListVersions')
    load.call('alice', HEADS, 'List')
    load.call('alice', OIP, 'RepositoryIndex')


def start_good(load):
    for seed in range(2):
        load.start('alice: classify', classifies('alice'), seed=seed)
    load.start('alice: infer', infers('alice'))
    load.start('alice: stream', streams('alice'))
    load.start('bob: classify', classifies('bob'), (LIMITED,))


def start_all(load):
    """Bob floods his own part of the queue and is told so; nobody else is to notice."""
    start_good(load)
    load.start('alice: a connection a call', reconnects, pause=0.2)
    load.start('alice: watch', watches)
    load.start('bob: bad images', sends_bad_images, ('INVALID_ARGUMENT', LIMITED), pause=0.1)
    load.start('bob: cancels', cancels, ('CANCELLED', LIMITED), pause=0.1)
    load.start('bob: late', is_late, ('DEADLINE_EXCEEDED', LIMITED), pause=0.1)
    load.start('bob: reads slowly', reads_slowly)
    load.start('bob: uploads slowly', uploads_slowly)
    load.start('bob: vanishes', vanishes, ('UNAVAILABLE',), pause=0.5)
    load.start('carol: learns', learns, pause=0.5)
    load.start('carol: asks', asks_what_comes_and_goes, ('NOT_FOUND', 'FAILED_PRECONDITION'), pause=0.1)
    load.start('admin: swaps', swaps)
    load.start('admin: looks', looks, pause=1)
