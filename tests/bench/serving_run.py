"""The programs that tests/bench/serving.sh measures: trunkd, its peers, and the load generator."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 120  # seconds for a server to start or end
JOB_PATIENCE = 600  # seconds for a job's first epoch: it has idle priority
PICTURES_OF_A_CLASS = 32


class Process:
    """A server with a port file, and a folder of its own for both."""

    def __init__(self, name, command, **how):
        self.dir = tempfile.mkdtemp(prefix='trunkd-serving-')
        self.port_file = f'{self.dir}/port'
        self.errors = tempfile.TemporaryFile('w+')
        begun = time.monotonic()
        self.process = subprocess.Popen([*command, self.port_file], stderr=self.errors, stdout=self.errors, **how)
        while not os.path.exists(self.port_file):
            if self.process.poll() is not None or time.monotonic() > begun + PATIENCE:
                self.stop()
                self.errors.seek(0)
                sys.exit(f'serving.sh: {name} did not start:\n{self.errors.read()}')
            time.sleep(0.001)
        self.start_seconds = time.monotonic() - begun  # until it answers
        with open(self.port_file) as port:
            self.address = f'127.0.0.1:{port.read().strip()}'

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def cpu_seconds(self):
        """That all its threads have taken."""
        with open(f'/proc/{self.process.pid}/stat') as stat:
            user, system = stat.read().rpartition(')')[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')

    def inference_seconds(self):
        """That trunkd's thread of inference has run, and has waited for a core that others had."""
        tasks = f'/proc/{self.process.pid}/task'
        for task in os.listdir(tasks):
            with open(f'{tasks}/{task}/comm') as name:
                if name.read() != 'infer\n':
                    continue
            with open(f'{tasks}/{task}/schedstat') as times:
                return [int(ns) / 1e9 for ns in times.read().split()[:2]]
        return [0, 0]

    def mebibytes(self):
        """Resident."""
        with open(f'/proc/{self.process.pid}/status') as status:
            return next(int(line.split()[1]) for line in status if line.startswith('VmRSS:')) / 1024


class Site:
    """A store with tenants and their tokens, pictures, and trunkd serving them: those of one size of input."""

    def __init__(self, o, px, tenants):
        self.o, self.px, self.tenants = o, px, tenants
        self.dir = tempfile.mkdtemp(prefix='trunkd-serving-')
        self.trunkd = None

    def __enter__(self):
        o = self.o
        try:
            subprocess.run([f'{o.bin}/serving_store', self.dir, o.arch, str(self.px), str(self.tenants)],
                           check=True)
            self.token, self.tokens = f'{self.dir}/token', f'{self.dir}/tokens'
            self.few_tokens = f'{self.dir}/few-tokens'
            with open(self.tokens) as many, open(self.few_tokens, 'w') as few:
                few.writelines(many.readlines()[:o.models])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.trunkd:
            self.trunkd.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self):
        """Starts trunkd, anew when it runs; seconds until it answers."""
        o = self.o
        if self.trunkd:
            self.trunkd.stop()
        self.trunkd = Process('trunkd', [f'{o.bin}/trunkd', '--store', f'{self.dir}/store', '--listen', '127.0.0.1:0',
                                         '--threads', str(o.threads), '--batch', str(o.batch), '--port-file'])
        self.ctl('health')
        return self.trunkd.start_seconds

    def peer(self, models):
        """ONNX Runtime with so many models."""
        o = self.o
        env = dict(os.environ, NODE_PATH=f'{o.peers}/node_modules')
        return Process('the peer', ['node', f'{os.path.dirname(os.path.abspath(__file__))}/peer_serving.js',
                                    f'{o.peers}/onnx/{o.arch}-{self.px}-n.onnx', str(self.px), str(models), str(o.threads),
                                    str(o.batch), self.few_tokens], env=env)

    def environment(self, address):
        env = {k: v for k, v in os.environ.items() if not k.startswith('TRUNKD_')}
        env.update(TRUNKD_SERVER=address, XDG_CONFIG_HOME=f'{self.dir}/config')
        return env

    def bench(self, *args, at=None, warm_up=0):
        """A run's report, of trunkd or of another server."""
        o = self.o
        command = [f'{o.bin}/trunkctl', 'bench', '--json', '--seconds', str(o.seconds), '--warm-up',
                   str(max(o.warm_up, warm_up)), *args]
        if o.csv:
            command += ['--csv', o.csv]
        server = at or self.trunkd
        begun, took, infer = time.monotonic(), server.cpu_seconds(), server.inference_seconds()
        run = subprocess.run(command, env=self.environment(server.address), stdout=subprocess.PIPE, text=True)
        if not run.stdout:
            sys.exit('serving.sh: trunkctl bench failed')
        lasted = time.monotonic() - begun
        ran, waited = ((b - a) / lasted for a, b in zip(infer, server.inference_seconds()))
        return {**json.loads(run.stdout), 'server_cpus': (server.cpu_seconds() - took) / lasted, 'infer_ran': ran,
                'infer_waited': waited}

    def classify(self, *args, **how):
        own = [] if how.get('at') else ['--admin-token-file', f'{self.dir}/store/admin.token']
        return self.bench('--images', f'{self.dir}/pictures', *own, *args, **how)

    # -- a job --

    def ctl(self, *args):
        run = subprocess.run([f'{self.o.bin}/trunkctl', *args, '--token-file', self.token],
                             env=self.environment(self.trunkd.address), stdout=subprocess.PIPE, text=True, check=True)
        return run.stdout.strip()

    def upload(self):
        """The pictures as a data set of two classes; its id."""
        folder = f'{self.dir}/classes'
        if not os.path.exists(folder):
            names = sorted(os.listdir(f'{self.dir}/pictures'))
            for label, part in (('a', names[:PICTURES_OF_A_CLASS]), ('b', names[PICTURES_OF_A_CLASS:])):
                os.makedirs(f'{folder}/{label}')
                for name in part:
                    os.link(f'{self.dir}/pictures/{name}', f'{folder}/{label}/{name}')
        return self.ctl('dataset', 'upload', folder, '--quiet')

    def start_job(self):
        """A job that trains until it is cancelled; its id."""
        job = self.ctl('finetune', '--head', 'extra', '--data', self.upload(), '--set', 'epochs=10000', '--quiet')
        end = time.monotonic() + JOB_PATIENCE
        while not self.trains(job):
            if time.monotonic() > end:
                sys.exit(f'serving.sh: the job has not begun to train: {self.ctl("job", "get", job)}')
            time.sleep(0.5)
        return job

    def trains(self, job):
        """Whether an epoch of the trunk's training has ended."""
        return any(',train,' in line for line in self.ctl('job', 'curves', job, '--csv').splitlines())

    def end_job(self, job):
        """Whether it was still running."""
        running = self.ctl('job', 'get', job, '--quiet') == 'running'
        if running:
            self.ctl('job', 'cancel', job)
        return running


def engine(o, px):
    """Images a second of the engine alone."""
    ask = f'infer {o.arch} {px} {o.batch} {o.threads} fp32 {o.seconds}\n'
    run = subprocess.run([f'{o.bin}/engine_bench'], input=ask, stdout=subprocess.PIPE, text=True, check=True)
    words = run.stdout.split()
    if words[:1] != ['ok']:
        sys.exit(f'serving.sh: engine_bench: {run.stdout.strip()}')
    return o.batch * 1000 / float(words[1])


def swaps(o):
    """What soak.py found: rows by name."""
    here = os.path.dirname(os.path.abspath(__file__))
    run = subprocess.run(['/usr/bin/python3', f'{here}/soak.py', 'swaps', '--json', '--bin', o.bin, '--swaps', str(o.swaps)],
                         stdout=subprocess.PIPE, text=True)
    if not run.stdout:
        sys.exit('serving.sh: soak.py failed')
    return {row['measure']: row for row in json.loads(run.stdout)['rows']}
